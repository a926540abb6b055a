"""Every block of README.md and docs/ runs as it stands, page by page, on the embedded model and drawn pictures.

A page's blocks share one folder and, in Python, one namespace. `$ duotune ...` runs in this process, `$ python -m
benchmarks...` with its smallest shape; `make` targets must exist; YAML becomes my_recipe.yaml. A block after
`<!-- not run: why -->` does what NOT_RUN says of its reason. The one thing that is changed is how long training takes:
epochs are cut to two.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
import shutil
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402

from duotune.cli import build_parser, main
from duotune.errors import DuotuneError

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = {"python", "console", "yaml", "text"}  # text is a drawing or an equation
STOPS, SLOW, PARSED = "runs up to what is missing", "runs in the slow tier", "is only parsed"
NOT_RUN = {
    "needs the Hub": STOPS,
    "needs a download and a data set": STOPS,
    "needs a checkpoint folder of the authors' code": STOPS,
    "needs OpenAI's files": STOPS,
    "needs GLIP's file": STOPS,
    "needs Flickr30k Entities": STOPS,
    "needs a file of the authors' code": STOPS,
    "needs checkpoints and data sets": STOPS,
    "needs several GPUs": PARSED,
    "needs several machines": PARSED,
    "takes minutes": SLOW,
    "takes hours": PARSED,
    "registers a device in its process": PARSED,  # run in one of its own by tests/benchmarks
}
FENCE = re.compile(r"^(?P<before>[^\n]*)\n```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
MAKE = re.compile(r"(?:^    |`)make (\w+)", re.M)
COLOURS = {"red_square": (210, 40, 40), "green_square": (40, 180, 60), "blue_square": (40, 70, 210)}


@dataclass
class Block:
    kind: str
    code: str
    line: int
    not_run: str  # why, empty if it runs


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        skip = re.fullmatch(r"<!-- not run: (.*) -->", match["before"])
        found.append(Block(match["kind"], match["code"], line, skip[1] if skip else ""))
    assert text.count("```") == 2 * len(found), f"{page.name}: a fence that this test does not read"
    return found


RUNNABLE = [page for page in PAGES if any(b.kind in ("python", "console") and not b.not_run for b in blocks(page))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with my_pictures/, my_boxes/ (COCO), models/glip-t/ (a small GLIP), more_photos/ and photo.jpg."""
    root = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = root / "my_pictures" / name
        folder.mkdir(parents=True)
        for i in range(32):  # split 50/20/30: 16 shots
            pixels = np.full((48, 48, 3), 255.0)
            y, x = random.integers(0, 18, 2)
            pixels[y : y + 28, x : x + 28] = colour
            pixels += random.normal(0, 10, pixels.shape)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{i}.png")
    (root / "more_photos").mkdir()
    write_folder(root / "my_boxes", splits={"train": 4, "val": 2, "test": 2}, sizes=((64, 64),))
    save_tiny_glip(root / "models" / "glip-t")
    image.save(root / "photo.jpg")
    image.save(root / "more_photos" / "1.png")
    return root


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    """A copy of that folder, and the place to work in."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: Block) -> list[list[str]]:
    lines = [line[2:] for line in block.code.splitlines() if line.startswith("$ ")]
    assert lines, f"line {block.line}: a console block without a command"
    return [shlex.split(line, comments=True) for line in lines]


def benchmark(module: str, argv: list[str], folder: Path, monkeypatch) -> int:
    """`python -m benchmarks...` at its smallest shape, both sides in this process."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import flops, run, worker

    rate = flops.matmul_rate

    def side(kind, bench, dtype, quick, repeats, threads):
        worker.main(kind, bench.name, dtype, str(int(quick)), str(repeats), str(threads), str(folder / "side.pt"))
        return torch.load(folder / "side.pt")

    with monkeypatch.context() as patch:
        patch.setattr(flops, "matmul_rate", lambda *args, **rest: rate(*args, **rest, seconds=0.01))
        patch.setattr(run, "side", side)
        importlib.import_module(module).main([*argv, "--quick"])
    return 0


def test_there_are_pages_and_blocks():
    assert len(PAGES) >= 5 and len(RUNNABLE) >= 4
    kinds = [block.kind for page in RUNNABLE for block in blocks(page) if not block.not_run]
    assert kinds.count("python") >= 5 and kinds.count("console") >= 8
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.kind for block in found} <= KINDS, "a kind of block that nothing here runs"
    assert {block.not_run for block in found if block.not_run} == set(NOT_RUN)
    assert sum(len(re.findall(r"`duotune [a-z]", page.read_text("utf-8"))) for page in PAGES) >= 20


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_blocks_run(page, place, capsys, monkeypatch):
    module = types.ModuleType(f"page_{page.stem}")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    namespace = module.__dict__
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.not_run:
            continue
        if block.kind == "python":
            code = re.sub(r"num_train_epochs=\d+", "num_train_epochs=2", block.code)
            assert "TrainingArguments(" not in code or code != block.code, f"{where}: trains for how long?"
            exec(compile(code, where, "exec"), namespace)
        elif block.kind == "yaml":
            Path("my_recipe.yaml").write_text(block.code)
        elif block.kind == "console":
            for program, *argv in commands(block):
                if (program, *argv[:1]) == ("python", "-m"):
                    assert benchmark(argv[1], argv[2:], place, monkeypatch) == 0, where
                    continue
                assert program == "duotune", f"{where}: {program}"
                if argv[0] == "train" and not {"--resume", "--epochs", "--help"} & set(argv):
                    argv += ["--epochs", "2"]
                try:
                    status = main(argv)
                except SystemExit as stop:  # --help
                    status = stop.code
                assert status == 0, f"{where}: {shlex.join(argv)}: {capsys.readouterr().err}"


def left_out(what: str) -> list[tuple[Path, Block]]:
    return [(page, b) for page in PAGES for b in blocks(page) if b.not_run and NOT_RUN.get(b.not_run) == what]


def name_of(value) -> str | None:
    return value.name if isinstance(value, Path) else f"line {value.line}" if isinstance(value, Block) else None


@pytest.mark.parametrize(("page", "block"), left_out(STOPS), ids=name_of)
def test_blocks_that_need_something_run_up_to_it(page, block, place, capsys):
    """What stops a command is a file, a folder or a model that is not here, and the error names it."""
    if block.kind == "python":
        with pytest.raises(DuotuneError) as stopped:
            exec(compile(block.code, page.name, "exec"), {})
        wanted = {
            n.value for n in ast.walk(ast.parse(block.code)) if isinstance(n, ast.Constant) and "/" in str(n.value)
        }
        assert any(text in str(stopped.value) for text in wanted)
        return
    for program, *argv in commands(block):
        assert program == "duotune"
        assert main(argv) == 2, shlex.join(argv)
        said = capsys.readouterr().err.strip().splitlines()[-1]
        missing = [a for a in argv if re.search(r"[/.]|DATASETS|-b16", a) and not Path(a).exists()]
        assert said.startswith("duotune: error: ") and any(name in said for name in missing), said


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), left_out(SLOW), ids=name_of)
def test_blocks_that_take_minutes_run(page, block, place, capsys):
    for program, *argv in commands(block):
        assert program == "duotune"
        assert main(argv) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_blocks_parse(page):
    """Also those that are not run: Python parses, YAML loads, options, scripts and targets exist."""
    parser = build_parser()
    for block in blocks(page):
        if block.kind == "python":
            ast.parse(block.code)
        elif block.kind == "yaml":
            yaml.safe_load(block.code)
        elif block.kind == "console":
            for program, *argv in commands(block):
                if program == "duotune" and "--help" not in argv:
                    assert isinstance(parser.parse_args(argv), argparse.Namespace)
                elif program == "python" and argv[0] != "-m":
                    text = "".join(p.read_text("utf-8") for p in (ROOT / argv[0]).parent.glob("*.py"))
                    assert (ROOT / argv[0]).exists()
                    assert all(f'"{a}"' in text for a in argv if a.startswith("--")), shlex.join(argv)
                elif program == "make":
                    assert set(argv) <= make_targets()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_is_named_in_the_text_exists(page):
    """`duotune COMMAND`, `--option` and paths of the repository between backticks."""
    text = FENCE.sub("", page.read_text("utf-8"))
    spans = re.findall(r"`([^`\n]+)`", text)
    known = {text for action in parsers() for text in action.option_strings}
    known |= {"--repeats", "--threads", "--json", "--quick", "--index-url"}  # of benchmarks.run and pip
    for span in spans:
        if command := re.match(r"duotune ([a-z]+)", span):
            assert command[1] in build_parser()._subparsers._group_actions[0].choices, span
        if not span.startswith(("python ", "pip ", "pytest ", "gate", "torchrun ", "accelerate ")):
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", span)) <= known, span
        for path in re.findall(r"(?:src|tests|docs|scripts|examples|benchmarks)/[\w/.*-]*\w", span):
            assert list(ROOT.glob(path)), f"{page.name}: {path}"


def parsers() -> list[argparse.Action]:
    """Every option of every command."""
    found, waiting = [], [build_parser()]
    while waiting:
        for action in waiting.pop()._actions:
            found.append(action)
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def make_targets() -> set[str]:
    return set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))


def test_make_targets_exist():
    named = {name for page in PAGES for name in MAKE.findall(page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= make_targets()


def test_every_documentation_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                waiting.append((page.parent / target).resolve())
    assert not [page.name for page in PAGES if page.resolve() not in reached]
