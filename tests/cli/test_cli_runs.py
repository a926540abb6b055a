"""Every command on a tiny model and drawn pictures, from training to JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from duotune.artifacts import describe, load
from duotune.cli import main
from duotune.methods import METHODS
from duotune.methods.coop import CoOpConfig
from duotune.recipes import load_recipe

ARTIFACT = ["prompt.json", "prompt.safetensors"]


@pytest.mark.parametrize("method", list(METHODS))
def test_train_writes_an_artifact(method, trained):
    folder = trained(method)
    info = describe(folder)
    assert info.method == method and info.class_names == ("blue", "green", "grey", "red")
    assert set(ARTIFACT) < set(os.listdir(folder)) <= {*ARTIFACT, "metrics.json", "recipe.yaml", "checkpoints"}
    row = json.loads((folder / "metrics.json").read_text())["classification"][method]
    assert row["artifact_bytes"] == sum((folder / name).stat().st_size for name in ARTIFACT)
    assert 0 <= row["accuracy"] <= 100 and row["seconds"] > 0
    assert (row["trainable_parameters"] == 0) == (method == "zero_shot")


def test_what_train_says_is_what_evaluate_finds(trained, duotune, picture_folder):
    folder = trained("dpt")
    accuracy = json.loads((folder / "metrics.json").read_text())["classification"]["dpt"]["accuracy"]
    ran = duotune("evaluate", folder, "--data", picture_folder, "--workers", 0)
    assert ran.status == 0 and f"dpt on {picture_folder.name}: {accuracy:.2f} % of 20 images" in ran.out
    assert ran.err == ""


def test_option_beats_recipe_beats_default(tmp_path, duotune, few_steps):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "method: coop\nepochs: 7\nseed: 5\nsettings: {num_context_tokens: 3, text_lr: 1e-3}\n"
        "training: {weight_decay: 0.25}\n"
    )
    ran = duotune("train", recipe, "--out", tmp_path / "run", "--set", "num_context_tokens=2", *few_steps)
    assert ran.status == 0, ran.err
    written = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (written.epochs, written.seed, written.batch_size, written.views) == (2, 5, 8, 0)
    assert written.settings == CoOpConfig(num_context_tokens=2, text_lr=0.001).to_dict()  # defaults, too
    assert written.training == {"weight_decay": 0.25, "dataloader_num_workers": 0}
    info = describe(tmp_path / "run")
    assert info.config["num_context_tokens"] == 2 and info.config["text_lr"] == 0.001
    assert info.tensors["text.context.tokens"][1][0] == 2


def test_the_written_recipe_gives_the_same_run(tmp_path, duotune, trained):
    first = trained("vlp")
    assert duotune("train", first / "recipe.yaml", "--out", tmp_path / "again").status == 0
    ours, theirs = load(first).method.state_dict(), load(tmp_path / "again").method.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_another_method_keeps_the_settings_it_knows(tmp_path, few_steps, duotune):
    (tmp_path / "r.yaml").write_text("method: dpt\nsettings: {text_lr: 0.5, guidance_epochs: 1}\n")
    ran = duotune("train", tmp_path / "r.yaml", "--method", "coop", "--out", tmp_path / "run", *few_steps)
    assert ran.status == 0, ran.err
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["settings"] == CoOpConfig(text_lr=0.5).to_dict()


def test_train_on_base_classes_and_measure_new_ones(tmp_path, duotune, few_steps, picture_folder):
    folder, where = tmp_path / "base", ["--data", picture_folder, "--workers", 0]
    assert duotune("train", "--method", "coop", "--classes", "base", "--out", folder, *few_steps).status == 0
    assert describe(folder).class_names == ("blue", "green")
    both = duotune("evaluate", folder, *where, "--base-to-new", "--json")
    numbers = json.loads(both.out)
    assert set(numbers) == {"base", "new", "harmonic_mean"}
    new = duotune("evaluate", folder, *where, "--classes", "new")
    assert f"{numbers['new']:.2f} % of 10 images" in new.out
    assert new.err == (
        f"classes: the 2 of {picture_folder.name}, not those that {folder} was trained on "
        "(2 of them new to it: 'grey', 'red')\n"
    )
    some = duotune("evaluate", folder, *where)
    assert "classes: the 4 of " in some.err and "(2 of them new to it: 'grey', 'red')" in some.err
    base = duotune("evaluate", folder, *where, "--classes", "base", "--json")
    assert json.loads(base.out)["accuracy"] == numbers["base"]


def test_evaluate_zero_shot_without_an_artifact(duotune, tiny_clip_folder, picture_folder, trained):
    where = ["--data", picture_folder, "--workers", 0, "--json"]
    ran = duotune("evaluate", "--method", "zero_shot", "--backbone", tiny_clip_folder, *where)
    result = json.loads(ran.out)
    assert result["num_images"] == 20 and len(result["predictions"]) == 20
    assert result["accuracy"] == json.loads(duotune("evaluate", trained("zero_shot"), *where).out)["accuracy"]


def test_evaluate_keeps_the_artifacts_order_of_classes(duotune, trained, picture_folder, tmp_path):
    """The same classes in another order: labels follow the artifact, a linear probe's rows stay where they are."""
    reordered = tmp_path / "reordered"
    reordered.mkdir()
    for split in ("train", "test"):
        (reordered / split).symlink_to(picture_folder / split, target_is_directory=True)
    (reordered / "dataset.json").write_text(json.dumps({"class_names": ["red", "blue", "grey", "green"]}))
    folder = trained("linear_probe")
    old = json.loads(duotune("evaluate", folder, "--data", picture_folder, "--workers", 0, "--json").out)
    new = json.loads(duotune("evaluate", folder, "--data", reordered, "--workers", 0, "--json").out)
    assert new["accuracy"] == old["accuracy"]
    said = lambda result: {
        tuple(p["image"].split("/")[-2:]): (p["label"], p["predicted"]) for p in result["predictions"]
    }
    assert said(new) == said(old)


def test_evaluate_writes_what_it_prints(duotune, trained, picture_folder, tmp_path):
    where = ["--data", picture_folder, "--workers", 0, "--out", tmp_path / "deep" / "result.json"]
    ran = duotune("evaluate", trained("coop"), *where, "--per-class")
    assert ran.status == 0 and ran.out.splitlines()[0].split() == ["class", "images", "accuracy"]
    assert json.loads((tmp_path / "deep" / "result.json").read_text())["num_images"] == 20


def test_predict_as_table_and_as_json(duotune, trained, picture_folder):
    images = [picture_folder / "test" / "red", picture_folder / "test" / "blue" / "0.png"]
    ran = duotune("predict", trained("dpt"), *images, "--top-k", 2)
    assert ran.status == 0 and ran.err == "" and len(ran.out.splitlines()) == 2 + 6
    rows = json.loads(duotune("predict", trained("dpt"), *images, "--top-k", 9, "--json").out)
    assert [row["source"] for row in rows] == [str(images[0] / f"{i}.png") for i in range(5)] + [str(images[1])]
    for row, line in zip(rows, ran.out.splitlines()[2:]):
        assert sorted(row["names"]) == ["blue", "green", "grey", "red"]
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        cells = line.split()
        assert cells[:2] == [row["source"], row["names"][0]] and float(cells[2]) == pytest.approx(
            100 * row["probabilities"][0], abs=0.051
        )


def test_show(duotune, trained):
    text = duotune("show", trained("dpt"), "--words", 2).out
    assert "method      dpt" in text and "text.context.tokens" in text
    lines = text.split("nearest words")[1].splitlines()[1:]
    assert [line.split()[0] for line in lines] == [str(i) for i in range(1, 17)]
    assert "nearest words" not in duotune("show", trained("vpt")).out
    assert "nearest words" not in duotune("show", trained("dpt"), "--words", 0).out


def test_both_numbers_of_parameters_where_they_differ(duotune, trained, few_steps, tmp_path):
    """DPT's auxiliary heads are trained and not stored; CoOp stores all that it trains."""
    for method in ("dpt", "coop"):
        ran = duotune("train", "--method", method, *few_steps, "--out", tmp_path / method)
        info, shown = describe(tmp_path / method), duotune("show", tmp_path / method, "--words", 0).out
        model = load(tmp_path / method)
        more = sum(v.numel() for k, v in model.method.state_dict().items() if k.startswith("aux"))
        assert info.num_trained == model.num_trainable_parameters() == info.num_parameters + more
        note = (
            f"{info.num_trained:,} values; {more:,} of them serve training alone (auxiliary heads) and are not stored"
        )
        assert (more > 0) == (method == "dpt") == (note in shown) == (f"dpt trained {note}\n" in ran.out)
        assert f"size        {info.num_parameters:,} values" in shown
    assert "init_words=''," in shown


def test_show_finds_the_words_that_context_started_from(duotune, tmp_path, few_steps):
    """With a rate of next to nothing the context stays at its words, so they are its nearest words, at distance 0."""
    options = ["--set", "init_words=a photo of a", "--set", "text_lr=1e-12", "--set", "text_warmup_epochs=0"]
    ran = duotune("train", "--method", "coop", "--out", tmp_path / "run", *options, *few_steps)
    assert ran.status == 0, ran.err
    shown = json.loads(duotune("show", tmp_path / "run", "--json", "--words", 1).out)
    assert [near[0]["word"] for near in shown["nearest_words"]] == ["a", "photo", "of", "a"]
    assert all(near[0]["distance"] < 1e-2 for near in shown["nearest_words"])
    assert shown["method"] == "coop" and shown["class_names"] == ["blue", "green", "grey", "red"]


def test_import_of_a_checkpoint_of_the_authors_code(duotune, tiny_clip_folder, tiny_clip, tmp_path):
    tokens = torch.randn(4, tiny_clip.text_width) * 0.02
    state = {"ctx": tokens}
    for part in ("prefix", "suffix"):
        state[f"token_{part}"] = _embedded(tiny_clip, ["cat", "dog"], 4)[part]
    folder = tmp_path / "output" / "prompt_learner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 50}, folder / "model.pth.tar-50")
    (tmp_path / "names.txt").write_text("cat\n\ndog\n")
    what = ["--backbone", tiny_clip_folder, "--classes", tmp_path / "names.txt", "--out", tmp_path / "artifact"]
    ran = duotune("import", folder.parent, *what)
    assert ran.status == 0 and "coop, 2 classes" in ran.out, ran.err
    model = load(tmp_path / "artifact")
    assert torch.equal(model.method.text.context.tokens, tokens) and model.class_names == ("cat", "dog")
    assert "holds an artifact already" in duotune("import", folder.parent, *what).error


def _embedded(backbone, names: list[str], num_context: int) -> dict[str, torch.Tensor]:
    """token_prefix (C, 1, d) and token_suffix (C, L, d) as CoOp registers them."""
    texts = [" ".join(["X"] * num_context) + f" {name}." for name in names]
    rows = backbone.tokenizer(texts).input_ids
    end = rows[0][-1]
    ids = torch.tensor([row + [end] * (backbone.max_text_tokens - len(row)) for row in rows])
    with torch.no_grad():
        embedded = backbone.embed_tokens(ids)
    return {"prefix": embedded[:, :1].clone(), "suffix": embedded[:, 1 + num_context :].clone()}


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's shell has it ignored
from duotune.cli import main
from duotune.training import PromptTrainer
save = PromptTrainer._save_checkpoint
def save_and_interrupt(self, *args):
    save(self, *args)
    if self.state.epoch >= 3:
        os.kill(os.getpid(), signal.SIGINT)
PromptTrainer._save_checkpoint = save_and_interrupt
sys.exit(main(sys.argv[1:]))
"""  # Ctrl-C in the fourth epoch, however slow the machine


def test_resume_after_ctrl_c_ends_where_an_undisturbed_run_ends(tmp_path, few_steps, duotune, left_behind):
    argv = ["train", "--method", "vlp", *few_steps, "--epochs", "12"]
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *argv, "--out", str(broken)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    err = process.communicate(timeout=240)[1].decode()
    assert (
        process.returncode == 130
        and err == f"duotune: error: interrupted; `duotune train --resume --out {broken}` goes on\n"
    )
    left = left_behind(broken)
    assert left and not set(ARTIFACT) & set(left) and not [name for name in left if "tmp" in name or "part" in name]

    again = duotune(*argv, "--out", broken)
    assert "--resume" in again.error and left_behind(broken) == left
    ran = duotune("train", "--resume", "--out", broken)
    assert ran.status == 0, ran.err
    ours, theirs = load(broken).method.state_dict(), load(tmp_path / "whole").method.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_resuming_with_another_option_names_every_difference(duotune, few_steps, tmp_path, monkeypatch, left_behind):
    run = tmp_path / "run"
    workers = ["--set", "text_warmup_epochs=0"]
    argv = ["train", "--method", "coop", *few_steps, *workers, "--out", run]
    with monkeypatch.context() as patch:
        patch.setattr("duotune.training.PromptTrainer.save_artifact", lambda *_, **__: 1 / 0)
        assert duotune(*argv).status == 1  # trained, checkpoints written, and then something went wrong
    before = left_behind(run)
    changes = ["--shots", 3, "--batch-size", 4, "--set", "text_lr=0.5", "--template", "a {}.", "--views", 2]
    line = duotune("train", "--resume", "--out", run, *changes).error
    for piece in (
        "num_shots was 4, now 3",
        "training_images was 16, now 12",
        "per_device_train_batch_size was 8, now 4",
        "text_lr was 0.002, now 0.5",
        "views was 0, now 2",
        "now 'a {}.'",
    ):
        assert piece in line
    assert "seed" not in line.partition("checkpoint-")[2].replace("shots_seed", "") and left_behind(run) == before
    assert "num_train_epochs was 2, now 3" in duotune("train", "--resume", "--out", run, "--epochs", 3).error
    ran = duotune("train", "--resume", "--out", run)
    assert ran.status == 0, ran.err


def test_settings_that_fit_no_short_run_are_noted(tmp_path, few_steps, duotune):
    ran = duotune("train", "--method", "dpt", *few_steps, "--set", "num_candidates=2", "--out", tmp_path / "run")
    assert ran.status == 0, ran.err
    notes = [line for line in ran.out.splitlines() if line.startswith("note: ")]
    assert [note.split(" (")[0] for note in notes] == [
        "note: all 2 epochs are warm-up at the rate 1e-05 for the visual parameters",
        "note: all 2 epochs are warm-up at the rate 1e-05 for the class_aware parameters",
        "note: all 2 epochs are guided by the frozen features",
    ]
    fitting = ["--set", "visual_warmup_epochs=1", "--set", "guidance_epochs=1", "--set", "num_candidates=2"]
    ran = duotune("train", "--method", "dpt", *few_steps, *fitting, "--out", tmp_path / "fits")
    assert ran.status == 0 and "note: " not in ran.out


def test_train_writes_a_report_when_asked(tmp_path, few_steps, duotune):
    assert duotune("train", "--method", "coop", *few_steps, "--report", "--out", tmp_path / "run").status == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<figure>") == 12 and "training loss" in page and "Accuracy of every class" in page


def test_demo(duotune, tmp_path):
    """The real thing, one epoch on one shot: what it writes and prints."""
    short = ("--data", "tiny-styles", "--shots", 1, "--epochs", 1, "--detection", "none")
    ran = duotune("demo", *short, "--out", tmp_path / "demo")
    assert ran.status == 0, ran.err
    assert ", 1 shot, " in ran.out
    keys = ["zero_shot", "coop", "vpt", "vlp", "dpt"]
    rows = json.loads((tmp_path / "demo" / "metrics.json").read_text())["classification"]
    assert list(rows) == keys
    for key in keys:
        assert set(rows[key]) == {"accuracy", "trainable_parameters", "artifact_bytes", "seconds"}
        assert describe(tmp_path / "demo" / key).method == key
        (line,) = [line for line in ran.out.splitlines() if line.startswith(f"{key} ")]
        assert f" {rows[key]['accuracy']:.1f} " in line and f" {rows[key]['trainable_parameters']:,} " in line
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<figure>") == 12 and all(f"<td>{key}</td>" in page for key in keys)
    assert "coop:" in ran.err and "dpt:" in ran.err  # progress bars


def test_a_finished_run_is_not_overwritten_unasked(tmp_path, few_steps, duotune):
    argv = ["train", "--method", "zero_shot", *few_steps, "--out", tmp_path / "run"]
    assert duotune(*argv).status == 0
    before = (tmp_path / "run" / "prompt.json").read_bytes()
    assert "holds an artifact already" in duotune(*argv).error
    assert (tmp_path / "run" / "prompt.json").read_bytes() == before
    assert duotune(*argv, "--overwrite").status == 0
