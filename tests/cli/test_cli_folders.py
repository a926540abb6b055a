"""Folders to write into: nothing leaves them through a link, nothing that is read lies in them, devices are named."""

from __future__ import annotations

import json
import shutil

import pytest

from duotune.artifacts import describe


@pytest.fixture
def elsewhere(tmp_path):
    """A folder with files that are none of a run's, and how it must look afterwards."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("prompt.json", "prompt.safetensors", "recipe.yaml", "metrics.json", "report.html", "lock"):
        (folder / name).write_text("mine")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
        ("prompt.json", "prompt.safetensors", "recipe.yaml", "metrics.json", "report.html", "lock"), "mine"
    )


def test_files_that_are_links_are_replaced(duotune, few_steps, tmp_path, elsewhere):
    run = tmp_path / "run"
    run.mkdir()
    for path in elsewhere.iterdir():
        if path.name != "lock":
            (run / path.name).symlink_to(path)
    argv = ["train", "--method", "coop", *few_steps, "--report", "--overwrite", "--out", run]
    assert duotune(*argv).status == 0
    assert not any(path.is_symlink() for path in run.iterdir()) and describe(run).method == "coop"


@pytest.mark.parametrize("name", [".lock", "checkpoints", "checkpoints/runs"])
def test_links_that_would_lead_out_are_refused(duotune, few_steps, tmp_path, elsewhere, name):
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(elsewhere / "lock" if name == ".lock" else elsewhere)
    argv = ["train", "--method", "coop", *few_steps, "--overwrite", "--out", run]
    assert f"{run / name} is a symbolic link to {elsewhere}" in duotune(*argv).error
    assert (run / name).is_symlink()


def test_a_folder_that_is_a_link_is_taken(duotune, few_steps, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    assert duotune("train", "--method", "zero_shot", *few_steps, "--out", tmp_path / "run").status == 0
    assert (tmp_path / "run").is_symlink() and describe(tmp_path / "disk").method == "zero_shot"


def test_the_demo_writes_through_no_link(duotune, tmp_path, elsewhere):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "coop").symlink_to(elsewhere)
    error = duotune("demo", "--detection", "none", "--out", tmp_path / "demo").error
    assert f"{tmp_path / 'demo' / 'coop'} is a symbolic link" in error


def test_data_and_backbone_never_lie_in_the_folder(duotune, few_steps, tmp_path, picture_folder, tiny_clip_folder):
    """--overwrite deletes checkpoints, and a picture may lie anywhere below."""
    home = tmp_path / "home"
    shutil.copytree(picture_folder, home / "checkpoints" / "pictures")
    shutil.copytree(tiny_clip_folder, home / "clip")
    before = sorted(home.rglob("*"))
    data, argv = home / "checkpoints" / "pictures", ["train", "--method", "coop", *few_steps, "--overwrite"]
    (tmp_path / "other name").symlink_to(data)
    for out, options, said in (
        (home, ["--data", data], f"{home} holds the data {data}"),
        (home / "checkpoints", ["--data", data], "holds the data"),
        (data, ["--data", data], f"{data} is the data {data}"),
        (home, ["--data", tmp_path / "other name"], "holds the data"),
        (tmp_path / "other name", ["--data", data], "is the data"),
        (home, ["--backbone", home / "clip"], "holds the backbone"),
        (home, ["--data", "dtd", "--root", home / "checkpoints"], "holds the root"),
    ):
        assert said in duotune(*argv, *options, "--out", out).error
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta"])
def test_devices_that_are_not_there_for_commands_that_write(duotune, few_steps, tmp_path, device):
    (tmp_path / "names.txt").write_text("cat\n")
    names = ["--backbone", "tiny", "--classes", tmp_path / "names.txt"]
    for command in (
        ["train", "--method", "coop", *few_steps],
        ["demo"],
        ["import", tmp_path, *names],
    ):
        error = duotune(*command, "--device", device, "--out", tmp_path / "run").error
        assert f"no device '{device}'" in error and "this machine has cpu" in error
    assert not (tmp_path / "run").exists()


def test_the_device_reaches_backbone_and_training(duotune, few_steps, tmp_path, monkeypatch):
    """A machine with other devices is not at hand: what is asked of the backbone is looked at, and the CPU is used."""
    from duotune import backbones
    from duotune.recipes import running

    asked, load = [], backbones.load_backbone
    asks = lambda name, dtype, device: asked.append(device) or load(name, dtype, device)
    monkeypatch.setattr(running, "load_backbone", asks)
    argv = ["train", "--method", "coop", *few_steps, "--device", "cpu", "--out", tmp_path / "run"]
    assert duotune(*argv).status == 0 and asked == ["cpu"]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["classification"]["coop"]
