"""Checkpoints that were altered, mixed, cut short, moved or made up: refused by name, or resumed to the same result."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from duotune import attach
from duotune.errors import ArtifactError
from duotune.training import PromptTrainer, PromptTrainingArguments, checkpoints, last_checkpoint
from duotune.training.resuming import load_optimizer, read_state

FILES = (
    "model.safetensors",
    "checkpoint.json",
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
)


def trainer(backbone, data, folder, **changes):
    settings = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 1}
    settings |= {"dataloader_num_workers": 0, "views": 1, "save_total_limit": None, "disable_tqdm": True, **changes}
    model = attach(backbone, "coop", data.class_names, data.template, {"text_warmup_epochs": 0})
    return PromptTrainer(model, PromptTrainingArguments(output_dir=str(folder), **settings), data)


class Draws(TrainerCallback):
    """Moves the global generators, so that each step's states differ."""

    def on_step_begin(self, *_, **__):
        random.random(), np.random.rand(), torch.rand(1)


@pytest.fixture(scope="module")
def whole(tiny_clip, picture_data, tmp_path_factory):
    """A folder with a checkpoint after each of 9 steps."""
    folder = tmp_path_factory.mktemp("whole")
    made = trainer(tiny_clip, picture_data, folder)
    made.add_callback(Draws())
    made.train()
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy with the checkpoints of steps 3, 4 and 5."""
    for step in (3, 4, 5):
        shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    return tmp_path / "run"


@pytest.fixture
def refused(tiny_clip, picture_data, run, monkeypatch):
    """refused(): the one line that resuming ends with; no tensor may have reached the model before the files are
    checked."""

    def line(loaded: bool = False) -> str:
        resumed = trainer(tiny_clip, picture_data, run)
        before = {k: v.clone() for k, v in resumed.model.method.state_dict().items()}
        with pytest.raises(ArtifactError) as caught:
            resumed.train(resume_from_checkpoint=True)
        same = all(torch.equal(v, before[k]) for k, v in resumed.model.method.state_dict().items())
        assert same or loaded
        assert "\n" not in str(caught.value) and "checkpoint-5" in str(caught.value)
        return str(caught.value)

    return line


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_each_file_altered_mixed_cut_short_or_missing(run, refused, name):
    path = run / "checkpoint-5" / name
    whole = path.read_bytes()
    flip(path)
    assert f"{name} is not the file that was written with it" in refused()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{name} is not the file that was written with it" in refused()
    if name != "checkpoint.json":  # the same of every step
        shutil.copy(run / "checkpoint-4" / name, path)
        assert f"{name} is not the file that was written with it" in refused()
    path.unlink()
    assert f"{name}' is missing" in refused()


def test_files_that_are_no_part_of_it(run, refused, tiny_clip, picture_data):
    added = run / "checkpoint-5" / "scaler.pt"
    added.write_bytes(b"x")
    assert "'scaler.pt' is no part of it; remove that file" in refused()
    added.rename(added.with_name(".DS_Store"))
    assert trainer(tiny_clip, picture_data, run).train(resume_from_checkpoint=True).global_step == 9


def test_a_checkpoint_under_the_name_of_another_step(run, refused):
    shutil.rmtree(run / "checkpoint-5")
    shutil.copytree(run / "checkpoint-3", run / "checkpoint-5")
    assert "holds the checkpoint of step 3" in refused()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 5}', '{"step": "5", "files": {}}', "[" * 100_000])
def test_manifests_that_are_none(run, refused, text):
    (run / "checkpoint-5" / "manifest.json").write_text(text)
    assert "manifest.json" in refused()


def test_without_its_manifest_it_is_passed_over(run, tiny_clip, picture_data):
    (run / "checkpoint-5" / "manifest.json").unlink()
    assert last_checkpoint(run) == str(run / "checkpoint-4")
    resumed = trainer(tiny_clip, picture_data, run)
    with pytest.raises(ArtifactError, match="checkpoint-5 is no complete checkpoint: it has no manifest.json"):
        resumed.train(resume_from_checkpoint=str(run / "checkpoint-5"))
    assert resumed.train(resume_from_checkpoint=True).global_step == 9


def test_the_one_before_goes_once_the_next_is_complete(tiny_clip, picture_data, tmp_path, monkeypatch):
    """With one checkpoint kept and the process killed anywhere in writing the second, the first is there."""
    seal, kept = checkpoints.seal, []

    def killed(folder, step):
        kept.append([Path(p).name for p in sorted(tmp_path.iterdir())])
        assert step < 3, "killed"
        seal(folder, step)

    monkeypatch.setattr(checkpoints, "seal", killed)
    with pytest.raises(AssertionError, match="killed"):
        trainer(tiny_clip, picture_data, tmp_path, save_total_limit=1).train()
    assert kept == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert last_checkpoint(tmp_path).endswith("checkpoint-2")


def test_what_is_left_of_a_removal_cut_short_is_no_checkpoint(run, monkeypatch):
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    checkpoints.discard(run / "checkpoint-5")
    assert (run / "checkpoint-5" / "optimizer.pt").exists() and last_checkpoint(run).endswith("checkpoint-4")


def test_writing_again_does_not_follow_a_link(run, tiny_clip, picture_data, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "optimizer.pt").write_text("mine")
    (run / "checkpoint-6").symlink_to(tmp_path / "mine")
    trainer(tiny_clip, picture_data, run).train(resume_from_checkpoint=True)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["optimizer.pt"]
    assert (tmp_path / "mine" / "optimizer.pt").read_text() == "mine" and not (run / "checkpoint-6").is_symlink()


def test_the_best_checkpoint_of_a_run_that_was_moved(tiny_clip, picture_data, tmp_path):
    """Its path stands in trainer_state.json; the last epochs are worse, so that forgetting it changes the result."""
    how = {"save_strategy": "epoch", "metric_for_best": "loss", "num_train_epochs": 4, "save_total_limit": 2}

    def make(folder, stop):
        made = trainer(tiny_clip, picture_data, folder, **how)

        class Losses(TrainerCallback):
            def on_evaluate(self, args, state, control, metrics, **_):
                metrics["eval_loss"] = {3: 2.0, 6: 1.0, 9: 3.0, 12: 4.0}[state.global_step]

            def on_save(self, args, state, control, **_):
                control.should_training_stop = state.global_step >= stop

        made.add_callback(Losses())
        return made

    undisturbed = make(tmp_path / "whole", 12)
    undisturbed.train()
    make(tmp_path / "here", 9).train()
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = make(tmp_path / "there", 12)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-6")
    expected, got = (made.model.method.state_dict() for made in (undisturbed, resumed))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    flip(tmp_path / "there" / "checkpoint-6" / "model.safetensors")
    with pytest.raises(ArtifactError, match="checkpoint-6: model.safetensors is not the file"):
        make(tmp_path / "there", 12).train(resume_from_checkpoint=True)


# a manifest that fits, and contents that do not


def tensors(change):
    def edit(path):
        saved = torch.load(path, weights_only=False)
        changed = change(saved)
        torch.save(saved if changed is None else changed, path)

    return edit


def table(change):
    def edit(path):
        saved = json.loads(path.read_text())
        changed = change(saved)
        path.write_text(json.dumps(saved if changed is None else changed))

    return edit


def put(saved, value, *keys):
    for key in keys[:-1]:
        saved = saved[key]
    saved[keys[-1]] = value


MOMENTUM = ("state", 0, "momentum_buffer")
GROUP = ("param_groups", 0)
MADE_UP = {
    "optimizer.pt": [
        lambda s: put(s, s["state"][0]["momentum_buffer"][:, :3], *MOMENTUM),
        lambda s: put(s, s["state"][0]["momentum_buffer"] * float("nan"), *MOMENTUM),
        lambda s: put(s, s["state"][0]["momentum_buffer"].to_sparse(), *MOMENTUM),
        lambda s: put(s, s["state"][0]["momentum_buffer"].long(), *MOMENTUM),
        lambda s: put(s, "text", *MOMENTUM),
        lambda s: put(s, s["state"][0], "state", 7),
        lambda s: put(s, [1], "state"),
        lambda s: put(s, {0: 3}, "state"),
        lambda s: put(s, 0.5, *GROUP, "momentum"),
        lambda s: put(s, 0.5, *GROUP, "lr"),
        lambda s: put(s, float("nan"), *GROUP, "lr"),
        lambda s: put(s, True, *GROUP, "nesterov"),
        lambda s: put(s, 1, *GROUP, "extra"),
        lambda s: put(s, [], "param_groups"),
        lambda s: put(s, 3, "param_groups"),
        lambda s: s["param_groups"][0].pop("lr") and None,
        lambda s: [s],
        lambda s: s["state"],
        lambda s: {},
    ],
    "scheduler.pt": [
        lambda s: put(s, 4, "last_epoch"),
        lambda s: put(s, -1, "last_epoch"),
        lambda s: put(s, 10**400, "last_epoch"),
        lambda s: put(s, "5", "last_epoch"),
        lambda s: put(s, [0.9], "base_lrs"),
        lambda s: put(s, "text", "step"),
        lambda s: put(s, None, "lr_lambdas"),
        lambda s: put(s, [0.9], "_last_lr"),
        lambda s: torch.ones(3),
        lambda s: {},
    ],
    "rng_state.pth": [
        lambda s: {},
        lambda s: put(s, "text", "python"),
        lambda s: put(s, torch.zeros(3, dtype=torch.uint8), "cpu"),
        lambda s: put(s, 3, "numpy"),
        lambda s: [1],
    ],
    "trainer_state.json": [
        lambda s: put(s, 4, "global_step"),
        lambda s: put(s, -5, "global_step"),
        lambda s: put(s, "5", "global_step"),
        lambda s: put(s, None, "max_steps"),
        lambda s: put(s, "often", "save_steps"),
        lambda s: put(s, 0, "logging_steps"),
        lambda s: put(s, -1, "save_steps"),
        lambda s: put(s, 1, "unknown"),
        lambda s: put(s, {}, "log_history"),
        lambda s: put(s, [3], "log_history"),
        lambda s: put(s, [{"loss": "low"}], "log_history"),
        lambda s: put(s, [], "stateful_callbacks"),
        lambda s: put(s, 3, "best_model_checkpoint"),
        lambda s: put(s, "best", "best_metric"),
        lambda s: [s],
        lambda s: {},
    ],
}


@pytest.fixture(scope="module")
def prepared(tiny_clip, picture_data, tmp_path_factory):
    """A trainer with an optimizer and a schedule that have not moved."""
    made = trainer(tiny_clip, picture_data, tmp_path_factory.mktemp("prepared"))
    made.get_train_dataloader()
    made.create_optimizer_and_scheduler(9)
    return made


@pytest.mark.parametrize("name", MADE_UP)
def test_made_up_contents_under_a_manifest_that_fits(run, refused, prepared, name):
    """One goes through a whole run, the others through what it calls."""
    folder, path = run / "checkpoint-5", run / "checkpoint-5" / name
    load = {
        "optimizer.pt": lambda: load_optimizer(folder, prepared.optimizer, prepared.lr_scheduler, 5),
        "trainer_state.json": lambda: read_state(folder, 5),
        "rng_state.pth": lambda: prepared._load_rng_state(str(folder)),
    }
    load["scheduler.pt"] = load["optimizer.pt"]
    whole = path.read_bytes()
    for number, change in enumerate(MADE_UP[name]):
        path.write_bytes(whole)
        (table if name.endswith("json") else tensors)(change)(path)
        with pytest.raises(ArtifactError) as caught:
            load[name]()
            pytest.fail(f"number {number} was taken")
        line = str(caught.value)
        assert "checkpoint-5" in line and "\n" not in line and len(line) < 700, (number, line)
    checkpoints.seal(folder, 5)
    assert refused(loaded=True) == line
    path.write_bytes(whole)
    load[name]()


def test_a_best_checkpoint_that_is_not_there(run, refused):
    table(lambda s: put(s, "/elsewhere/checkpoint-2", "best_model_checkpoint"))(run / "checkpoint-5/trainer_state.json")
    checkpoints.seal(run / "checkpoint-5", 5)
    with pytest.raises(AssertionError, match="run/checkpoint-2 is no complete checkpoint"):
        refused()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_pickle_that_would_run_code_does_not(run, refused, name, tmp_path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = run / "checkpoint-5" / name
    for write in (lambda: path.write_bytes(pickle.dumps({"a": Runs()})), lambda: torch.save({"a": Runs()}, path)):
        write()
        checkpoints.seal(path.parent, 5)
        assert name in refused(loaded=True).replace("the states of random generators", name)
        assert not (tmp_path / "ran").exists()
