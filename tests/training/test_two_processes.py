"""torchrun with two processes (gloo, CPU): the same result as one process with the doubled batch, and one voice.

The library's jobs run once in two processes and once in this one; see `job_of_two_processes.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "detection")]
import job_of_two_processes as job  # noqa: E402
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launch(*words: object, check: bool = True) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, *map(str, words)]
    return subprocess.run(command, check=check, timeout=500, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def inputs(tiny_clip_folder, picture_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    things = write_folder(folder / "things", splits={"train": 8, "val": 1, "test": 5}, sizes=((64, 64),))
    glip = save_tiny_glip(folder / "glip")
    return {k: str(v) for k, v in
            {"clip": tiny_clip_folder, "pictures": picture_folder, "things": things, "glip": glip}.items()}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(inputs, folder):
    """What each of two processes left."""
    ended = launch(Path(job.__file__), json.dumps(inputs), folder, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def one(inputs, tmp_path_factory):
    """The same of this process alone."""
    return job.run(inputs, tmp_path_factory.mktemp("one"))["library"]


def moved_alike(learnt, expected, start, share):
    """Sums are made in another order, and the differences grow from step to step: a share of what was learnt."""
    assert learnt.keys() == expected.keys()
    for name, value in expected.items():
        if not value.is_floating_point():
            continue
        moved = (value - start[name]).abs().max().item()
        assert_close(learnt[name], value, rtol=0, atol=share * moved + 1e-7, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", ["coop", "dpt", "few"])
def test_two_processes_learn_as_one_and_resume(two, one, folder, name):
    for rank in (0, 1):
        ours = two[rank]["library"]
        moved_alike(ours[name], one[name], one[f"start {name}"], 1e-3)
        for key, value in two[0]["library"][name].items():
            assert torch.equal(ours[name][key], value)  # of one sum
            assert torch.equal(ours[f"{name} in parts"][key], value)
    stored = load_file(folder / f"{name}-artifact" / "prompt.safetensors")
    assert all(torch.equal(two[0]["library"][name][key], value) for key, value in stored.items())


def test_images_of_the_auxiliary_loss_were_unevenly_spread(two, one):
    """What `few` is for: the divisor differs from process to process."""
    first, second = (ranks["library"]["hits few"] for ranks in two)
    assert [a + b for a, b in zip(first, second)] == one["hits few"]
    assert any(a != b for a, b in zip(first, second)) and 0 < sum(one["hits few"]) < 4 * 24


def test_each_process_encodes_its_share(two, one):
    """Of 24 training images and 8 for validation, and of what is tested; nothing twice, whatever each one sees."""
    assert one["decoded coop"] == 32
    assert [ranks["library"]["decoded coop"] for ranks in two] == [16, 16]
    assert [ranks["library"]["decoded dpt"] for ranks in two] == [0, 0]  # of the same cache
    shared = two[0]["library"]["coop"]
    assert all(
        torch.equal(ranks["library"]["coop with caches of its own"][k], v) for ranks in two for k, v in shared.items()
    )
    for name in ("coop", "few"):
        seen = [ranks["library"][f"decoded to measure {name}"] for ranks in two]
        assert sum(seen) == one[f"decoded to measure {name}"] == 21 and abs(seen[0] - seen[1]) <= 3


@pytest.mark.parametrize("name", ["coop", "few"])
def test_what_two_measure_is_what_one_measures(two, one, name):
    expected = one[f"measured {name}"]
    assert len(expected["predictions"]) == 20 and len(expected["broken"]) == 1
    for ranks in two:
        found = dict(ranks["library"][f"measured {name}"])
        assert found.pop("confidences") == pytest.approx(expected["confidences"], rel=1e-4)  # other weights, see above
        assert found == {key: value for key, value in expected.items() if key != "confidences"}


@pytest.mark.parametrize("name", ["fresh", "held", "kept", "kept apart"])
def test_two_processes_learn_to_detect_as_one(two, one, name):
    # 8 pictures in two views, and one for validation; a machine with a folder of its own makes all
    shares = {"fresh": [1, 0], "held": [9, 8], "kept": [9, 8], "kept apart": [17, 17]}
    assert [ranks["library"][f"encoded {name}"] for ranks in two] == shares[name]
    assert one[f"encoded {name}"] == (1 if name == "fresh" else 17)
    for ranks in two:
        ours = ranks["library"]
        moved_alike(ours[f"sdpt {name}"], one[f"sdpt {name}"], one[f"start {name}"], 0.02)
        assert all(torch.equal(v, two[0]["library"][f"sdpt {name}"][k]) for k, v in ours[f"sdpt {name}"].items())


def test_what_two_find_is_what_one_finds(two, one):
    for ranks in two:
        found, expected = ranks["library"]["boxes"], one["boxes"]
        assert found["items"] == expected["items"] and len(found["items"]) == 5
        for ours, theirs in zip(found["scores"], expected["scores"]):
            assert len(ours) == len(theirs) > 0 and ours == pytest.approx(theirs, rel=0.02)  # weights as above
        assert found["metrics"]["ap"] == pytest.approx(expected["metrics"]["ap"], abs=1.0)


def test_what_one_raises_all_raise(two):
    first, second = (ranks["faults"] for ranks in two)
    cases = set(first) - {"that cannot be sent"}
    assert all(first[name] == second[name] for name in cases)
    assert first["of the second"] == ["DataError", "bad picture", True, 1]
    assert first["of both"] == ["DataError", "of 0", True, 0]
    assert first["while the first gathers"] == ["DataError", "meanwhile", True, 1]
    assert first["that cannot be sent"] == ["RuntimeError", "Odd: odd", True, 1]
    assert second["that cannot be sent"] == ["Odd", "odd", True, 1]
    assert first["afterwards"] == [0, 1]


ENDS = {
    "data that one does not see": "process 1: ",
    "data that none sees": "",
    "no folder": "",
    "a wrong setting": "",
    "no such option": "",
    "in use": "another run",
    "diverging": "the loss is",
}


@pytest.mark.parametrize("case", ENDS)
def test_a_fault_is_one_line_of_one_process(two, case):
    (first, out, line), (second, silent, nothing) = (ranks["commands"][case] for ranks in two)
    assert first == second == 2
    assert silent == nothing == ""
    assert line.count("\n") == 1 and line.startswith(f"duotune: error: {ENDS[case]}"), line
    assert (out == "") == (case != "diverging")


def test_the_command_line_in_two_processes(inputs, tmp_path, capfd):
    """`torchrun -m duotune train`, and the same again in one process: one voice, the same numbers."""
    words = ["train", "--backbone", inputs["clip"], "--data", inputs["pictures"], "--method", "vpt", "--report"]
    words += [
        "--shots",
        "0",
        "--epochs",
        "2",
        "--set",
        "visual_warmup_epochs=0",
        "--training",
        "dataloader_num_workers=0",
    ]
    ended = launch("-m", "duotune", *words, "--batch-size", 4, "--out", tmp_path / "two")
    assert job.main([*words, "--batch-size", "8", "--out", str(tmp_path / "one")]) == 0
    alone = capfd.readouterr().out.splitlines()
    said = ended.stdout.replace("/two", "/one").splitlines()
    assert [line.split() for line in said] == [line.split() for line in alone]
    names = ("prompt.json", "prompt.safetensors", "metrics.json", "recipe.yaml", "report.html", "checkpoints")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(names)
    rows = [
        json.loads((tmp_path / name / "metrics.json").read_text())["classification"]["vpt"] for name in ("one", "two")
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    ours, theirs = (load_file(tmp_path / name / "prompt.safetensors") for name in ("two", "one"))
    for name, value in theirs.items():
        assert_close(ours[name].float(), value.float(), rtol=0, atol=1e-3 * value.abs().max().item())
