"""Help and lists: complete, and there at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from duotune.backbones import EMBEDDED
from duotune.cli import COMMANDS, main
from duotune.data import list_datasets
from duotune.methods import METHODS
from duotune.recipes import list_recipes


def test_bare_command_prints_help(duotune):
    ran = duotune()
    assert ran.status == 0 and all(f"\n    {name} " in ran.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith(f"usage: duotune {command}") and "SUPPRESS" not in text
    options = [line for line in text.splitlines() if line.startswith("  -")]
    assert options and len(text) > 200


def test_list_names_everything_that_is_known(duotune):
    for kind, names in {
        "methods": METHODS,
        "backbones": EMBEDDED,
        "datasets": list_datasets(),
        "recipes": list_recipes(),
    }.items():
        ran = duotune("list", kind)
        listed = [line.split()[0] for line in ran.out.splitlines()]
        assert set(names) <= set(listed) and ran.status == 0 and ran.err == ""
        assert all(len(line.split(maxsplit=1)) == 2 for line in ran.out.splitlines()), "a name without a description"
    whole = duotune("list").out
    assert all(f"{kind}:\n" in whole for kind in ("methods", "backbones", "datasets", "recipes"))


def test_methods_of_one_name_are_told_apart(duotune):
    rows = [line.split(maxsplit=2)[:2] for line in duotune("list", "methods").out.splitlines()]
    assert len({tuple(row) for row in rows}) == len(rows)
    assert sorted(kind for name, kind in rows if name == "vpt") == ["classifier", "detector"]
    assert ["sdpt", "detector"] in rows and ["dpt", "classifier"] in rows


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["train", "--help"]])
def test_help_and_list_load_neither_torch_nor_transformers(argv):
    """What makes them instant. The time itself depends on the machine; an import of torch alone takes seconds."""
    code = (
        "import sys\nfrom duotune.cli import main\n"
        f"try: main({argv})\nexcept SystemExit: pass\n"
        "print('HEAVY', *sorted({'torch', 'transformers', 'matplotlib', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "HEAVY"
    assert time.perf_counter() - start < 10


CHEAP = {
    "a run in --out": (
        ["train", "coop", "--backbone", "tiny", "--data", "tiny-food", "--out", "run"],
        "holds an artifact",
    ),
    "no artifact": (["predict", "absent", "a.png"], "absent has no prompt.json"),
    "no image": (["predict", "run", "a.png"], "no such file or folder: 'a.png'"),
    "nothing to measure": (["evaluate", "absent", "--data", "tiny-food"], "absent has no prompt.json"),
    "nothing to show": (["show", "absent"], "absent has no prompt.json"),
    "no class names": (["import", "x", "--backbone", "tiny", "--classes", "a.txt", "--out", "y"], "no file a.txt"),
    "nothing to convert": (["convert", "glip", "a.pth", "y"], "no file a.pth"),
}


@pytest.mark.parametrize("argv, says", CHEAP.values(), ids=list(CHEAP))
def test_what_costs_nothing_to_find_is_found_before_torch_is_loaded(argv, says, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("prompt.json", "prompt.safetensors"):
        (tmp_path / "run" / name).write_text("{}")
    code = (
        f"import sys\nfrom duotune.cli import main\nstatus = main({argv})\n"
        "print(status, *sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout == "2\n" and says in ran.stderr


def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        ran = subprocess.run([sys.executable, "-m", "duotune", "list"], stdout=gone, stderr=subprocess.PIPE, text=True)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_version(duotune):
    import torch

    assert f"torch {torch.__version__}" in duotune("--version").out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--out", "x", "--epoch", "3"], "did you mean --epochs?"),
        (["train", "--out", "x", "--shots", "many"], "--shots: invalid int value: 'many'"),
        (["train"], "--out"),
        (["list", "method"], "invalid choice: 'method'"),
        (["predict", "runs/mine"], "IMAGES"),
    ],
)
def test_misspelt_command_lines(duotune, argv, says):
    assert says in duotune(*argv).error


def test_the_traceback_is_there_when_asked_for(monkeypatch):
    from duotune.errors import UnknownNameError

    monkeypatch.setenv("DUOTUNE_TRACEBACK", "1")
    with pytest.raises(UnknownNameError):
        main(["train", "no_such_recipe", "--out", "x"])


def test_what_nobody_foresaw_is_one_line_too(duotune, monkeypatch):
    def broken(options):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("duotune.cli.list_names.run", broken)
    ran = duotune("list")
    assert ran.status == 1
    assert ran.err == (
        "duotune: error: unexpected ZeroDivisionError: division by zero (set DUOTUNE_TRACEBACK=1 to see where)\n"
    )


def test_list_names_methods_registered_from_outside(duotune, monkeypatch):
    from duotune.methods import METHODS

    here = type("Mine", (), {"__module__": "no_such_module"})
    monkeypatch.setattr(METHODS, "_table", {**METHODS._table, "mine": here})
    ran = duotune("list", "methods")
    assert ran.status == 0 and "registered from outside" in ran.out
