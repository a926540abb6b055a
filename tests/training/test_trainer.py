"""The trainer: cached equals uncached, resuming changes nothing, checkpoints are small, faults leave them usable."""

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainerCallback

from closeness import ROUNDING
from duotune import attach
from duotune.data.torch_dataset import ImageDataset
from duotune.errors import ArtifactError, ConfigError, DataError, TrainingError
from duotune.training import PromptTrainer, PromptTrainingArguments, last_checkpoint
from duotune.training.checkpoints import why_not_written
from duotune.training.features import FeatureDataset, PixelsAndFeatures, train_transform


def arguments(folder, **changes):
    settings = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 8,
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    return PromptTrainingArguments(output_dir=str(folder), **{**settings, **changes})


QUICK = {"text_warmup_epochs": 0}
SETTINGS = {
    "coop": QUICK,
    "linear_probe": {"warmup_epochs": 0},
    "vpt": {"visual_warmup_epochs": 0, "num_visual_tokens": 2},
    "vlp": {**QUICK, "visual_warmup_epochs": 0, "num_visual_tokens": 2},
    "dpt": {**QUICK, "visual_warmup_epochs": 0, "num_visual_tokens": 2, "guidance_epochs": 2},
}


def make(backbone, method, data, **changes):
    return attach(backbone, method, data.class_names, data.template, {**SETTINGS[method], **changes})


def losses(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


class Gradients(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.steps.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})


class Stop(TrainerCallback):
    """Ends a run at a step, as a crash would."""

    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            if self.error is not None:
                raise self.error
            control.should_training_stop = True


class EpochsSeen(TrainerCallback):
    """What the loss and the data set were told."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, **_):
        trainer = self.trainer
        self.seen.append((trainer.progress.epoch, trainer.progress.num_epochs, trainer.train_dataset.epoch))


@pytest.mark.parametrize("method", ["coop", "linear_probe", "dpt"])
def test_cached_training_equals_uncached_training(tiny_clip, picture_data, tmp_path, method):
    """Loss curve and gradients of a run from cached features against one that reads pixels alone."""
    views, runs = 2, []
    for cached in (True, False):
        gradients = Gradients()
        args = arguments(tmp_path, views=views, cache_dir=str(tmp_path / "cache") if cached else None)
        model = make(tiny_clip, method, picture_data)
        if cached:
            trainer = PromptTrainer(model, args, picture_data, callbacks=[gradients])
            kind = PixelsAndFeatures if method == "dpt" else FeatureDataset
            assert isinstance(trainer.train_dataset, kind)
        else:
            pixels = ImageDataset(picture_data.train, train_transform(tiny_clip), views, seed=args.seed)
            trainer = PromptTrainer(model, args, train_dataset=pixels, callbacks=[gradients])
        trainer.train()
        runs.append((losses(trainer), gradients.steps, model.method.state_dict()))
    (ours, our_gradients, our_state), (plain, plain_gradients, plain_state) = runs
    assert len(ours) == 12 and len(set(ours)) > 8
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for got, expected in zip(our_gradients, plain_gradients):
        assert set(got) == set(expected) and got
        for name in got:
            size = expected[name].abs().max().item()
            assert_close(got[name], expected[name], rtol=0, atol=1e-5 * size)
    assert_close(our_state, plain_state, rtol=1e-5, atol=1e-6)


def test_training_equals_a_plain_loop(tiny_clip, picture_data, tmp_path):
    """VLP with fresh views against a loop written out: SGD, two groups, decay, momentum, rates set by hand."""
    epochs, size = 4, 8
    trained = make(tiny_clip, "vlp", picture_data, text_warmup_epochs=2, text_lr=0.02)
    trainer = PromptTrainer(trained, arguments(tmp_path), picture_data)
    trainer.train()

    plain = make(tiny_clip, "vlp", picture_data, text_warmup_epochs=2, text_lr=0.02).train()
    images = ImageDataset(picture_data.train, train_transform(tiny_clip), views=0, seed=1)
    text, visual = plain.method.text.context.tokens, plain.method.visual.prompts.tokens
    velocity = {text: None, visual: None}
    curve = []
    for epoch in range(epochs):
        cosine = lambda since: 0.5 * (1 + np.cos(np.pi * since / epochs))
        rates = {text: 1e-5 if epoch < 2 else 0.02 * cosine(epoch - 2), visual: 0.01 * cosine(epoch)}
        images.set_epoch(epoch)
        order = np.random.default_rng([1, epoch]).permutation(len(images))
        for start in range(0, len(order), size):
            rows = [images[int(i)] for i in order[start : start + size]]
            pixels, labels = torch.stack([r["pixel_values"] for r in rows]), torch.tensor([r["labels"] for r in rows])
            loss = torch.nn.functional.cross_entropy(plain(pixels)["logits"], labels)
            curve.append(loss.item())
            for p, gradient in zip((text, visual), torch.autograd.grad(loss, (text, visual))):
                step = gradient + 5e-4 * p.detach()
                velocity[p] = step if velocity[p] is None else 0.9 * velocity[p] + step
                p.data -= rates[p] * velocity[p]
    np.testing.assert_allclose(losses(trainer), curve, rtol=1e-5)
    for name, expected in plain.method.state_dict().items():
        size = expected.abs().max().item()
        assert_close(trained.method.state_dict()[name], expected, rtol=0, atol=1e-5 * size)


def test_no_image_is_decoded_when_features_are_cached(tiny_clip, picture_data, tmp_path, monkeypatch):
    args = arguments(tmp_path, views=2, cache_dir=str(tmp_path / "cache"), dataloader_num_workers=2)
    first = PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data)

    def decode(*_):
        raise AssertionError("an image was decoded")

    for module in ("training.features", "data.torch_dataset"):
        monkeypatch.setattr(f"duotune.{module}.open_image", decode)
    second = PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data)
    assert second.args.dataloader_num_workers == 0
    first.train()
    second.train()
    assert losses(first) == pytest.approx(losses(second), rel=ROUNDING)
    assert second.cache.statistics.misses == 0


@pytest.mark.parametrize(
    ("method", "views", "steps", "workers"),
    [
        ("coop", 2, 6, 0),
        ("coop", 2, 5, 0),
        ("dpt", 0, 6, 0),
        ("dpt", 2, 5, 0),
        ("vpt", 0, 4, 2),
        ("linear_probe", 0, 6, 0),
    ],
)
def test_resuming_continues_bit_for_bit(tiny_clip, picture_data, tmp_path, method, views, steps, workers):
    """4 epochs of 3 steps in one go, against a stop (between or within epochs) and a resumed second half."""
    save = {"save_strategy": "steps", "save_steps": 1, "views": views, "dataloader_num_workers": workers}
    plain = arguments(tmp_path / "whole", views=views)
    whole = PromptTrainer(make(tiny_clip, method, picture_data), plain, picture_data)
    whole.train()

    args = arguments(tmp_path / "parts", **save)
    PromptTrainer(make(tiny_clip, method, picture_data), args, picture_data, callbacks=[Stop(steps)]).train()
    seen = EpochsSeen()
    seen.trainer = rest = PromptTrainer(make(tiny_clip, method, picture_data), args, picture_data, callbacks=[seen])
    output = rest.train(resume_from_checkpoint=True)
    assert output.global_step == whole.state.global_step == 12
    expected, got = whole.model.method.state_dict(), rest.model.method.state_dict()
    assert set(got) == set(expected)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    assert losses(rest)[-(12 - steps) :] == pytest.approx(losses(whole)[steps:], rel=ROUNDING)
    assert seen.seen == [(step // 3, 4, step // 3) for step in range(steps, 12)]


def test_the_loss_is_told_the_epoch(tiny_clip, picture_data, tmp_path, monkeypatch):
    model, told = make(tiny_clip, "dpt", picture_data), []
    original = model.method.loss

    def loss(output, labels, progress):
        told.append((progress.epoch, progress.num_epochs))
        return original(output, labels, progress)

    monkeypatch.setattr(model.method, "loss", loss)
    PromptTrainer(model, arguments(tmp_path, views=1), picture_data).train()
    assert told == [(step // 3, 4) for step in range(12)]


def test_every_epoch_has_its_own_order_and_the_seed_counts(tiny_clip, picture_data, tmp_path):
    orders = {}
    for seed in (1, 2):
        trainer = PromptTrainer(
            make(tiny_clip, "coop", picture_data), arguments(tmp_path, seed=seed, views=1), picture_data
        )
        loader = trainer.get_train_dataloader()
        for epoch in range(2):
            trainer.state.global_step = epoch * len(loader)
            orders[seed, epoch] = torch.cat([batch["labels"] for batch in loader]).tolist()
    assert all(sorted(order) == sorted(orders[1, 0]) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4


def test_checkpoints_hold_the_method_alone(tiny_clip, picture_data, tmp_path):
    model = make(tiny_clip, "dpt", picture_data)
    before = {k: v.clone() for k, v in tiny_clip.model.state_dict().items()}
    trainer = PromptTrainer(model, arguments(tmp_path, save_strategy="epoch", views=1), picture_data)
    trainer.train()
    folders = sorted(tmp_path.glob("checkpoint-*"))
    assert [f.name for f in folders] == ["checkpoint-12", "checkpoint-9"]  # save_total_limit
    saved = load_file(folders[0] / "model.safetensors")
    assert set(saved) == set(model.method.state_dict())
    assert any(k.startswith("aux") for k in saved)  # needed to go on, unlike in the artifact
    learnt = sum(v.numel() * 4 for v in saved.values())
    assert sum(f.stat().st_size for f in folders[0].iterdir()) < 2 * learnt + 40_000
    for name, value in tiny_clip.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad or p.grad is not None for p in tiny_clip.parameters())


def test_the_backbone_stays_in_eval_mode_while_training(tiny_clip, picture_data, tmp_path):
    modes = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            modes.append((model.training, any(m.training for m in model.backbone.modules())))

    model = make(tiny_clip, "vlp", picture_data)
    PromptTrainer(model, arguments(tmp_path, num_train_epochs=1), picture_data, callbacks=[Look()]).train()
    assert modes == [(True, False)] * 3
    assert not model.training


def test_the_best_epoch_is_kept_if_asked_for(tiny_clip, picture_data, tmp_path):
    # a rate that is far too high: later epochs are worse than an early one
    model = make(tiny_clip, "linear_probe", picture_data, lr=5.0)
    args = arguments(tmp_path, num_train_epochs=8, views=2, save_strategy="epoch", metric_for_best="loss")
    trainer = PromptTrainer(model, args, picture_data)
    trainer.train()
    validation = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert len(validation) == 8 and validation[-1] > min(validation)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(validation), rel=1e-6)


def test_selecting_without_validation_images_is_an_error(tiny_clip, picture_data, tmp_path):
    from dataclasses import replace

    args = arguments(tmp_path, save_strategy="epoch", metric_for_best="accuracy", views=1)
    with pytest.raises(ConfigError, match="needs validation images"):
        PromptTrainer(make(tiny_clip, "coop", picture_data), args, replace(picture_data, val=()))


def test_shots_are_drawn_if_asked_for(tiny_clip, picture_data, tmp_path):
    trainer = PromptTrainer(
        make(tiny_clip, "coop", picture_data), arguments(tmp_path, num_shots=2, views=1), picture_data
    )
    assert sorted(trainer.train_dataset.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    expected = picture_data.few_shot(2, seed=1)
    assert trainer.train_dataset.labels.tolist() == [item.label for item in expected.train]


def test_other_classes_no_data_and_both_kinds_of_data_are_errors(tiny_clip, picture_data, tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ConfigError, match="other 4"):
        PromptTrainer(attach(tiny_clip, "coop", ["cat", "dog"]), args, picture_data)
    with pytest.raises(ConfigError, match="give one"):
        PromptTrainer(make(tiny_clip, "coop", picture_data), args)


@pytest.mark.parametrize("method", ["coop", "vpt"])
def test_broken_images_are_skipped_by_name_up_to_a_share(tiny_clip, picture_data, tmp_path, method, caplog):
    from dataclasses import replace

    from duotune.data.base import ImageItem

    broken = tmp_path / "torn.png"
    broken.write_bytes(b"\x89PNG")
    data = replace(picture_data, train=(ImageItem(broken, 0), *picture_data.train))
    trainer = PromptTrainer(make(tiny_clip, method, data), arguments(tmp_path, views=1, max_broken_share=0.1), data)
    assert list(trainer.broken) == [str(broken)] and "torn.png" in caplog.text
    assert len(trainer.train_dataset) == len(picture_data.train)
    with pytest.raises(DataError, match="torn.png"):
        PromptTrainer(make(tiny_clip, method, data), arguments(tmp_path, views=1, max_broken_share=0.01), data)


# faults


def test_a_nan_loss_names_the_step_and_the_last_good_checkpoint(tiny_clip, picture_data, tmp_path):
    model = make(tiny_clip, "vpt", picture_data)
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=None)

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step == 5:
                with torch.no_grad():
                    model.method.visual.prompts.tokens.mul_(float("nan"))

    with pytest.raises(TrainingError) as caught:
        PromptTrainer(model, args, picture_data, callbacks=[Poison()]).train()
    message = str(caught.value)
    assert "nan at step 6 (epoch 2 of 4)" in message and str(tmp_path / "checkpoint-5") in message
    assert "\n" not in message
    fresh = make(tiny_clip, "vpt", picture_data)
    assert PromptTrainer(fresh, args, picture_data).train(resume_from_checkpoint=True).global_step == 12
    assert torch.isfinite(fresh.method.visual.prompts.tokens).all()


def test_poisoned_weights_are_never_saved(tiny_clip, picture_data, tmp_path):
    model = make(tiny_clip, "coop", picture_data)

    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step == 2:
                with torch.no_grad():
                    model.method.text.context.tokens[0, 0] = float("inf")

    args = arguments(tmp_path, save_strategy="steps", save_steps=1, views=1)
    with pytest.raises(TrainingError, match="holds NaN or infinity after step 2.*checkpoint-1"):
        PromptTrainer(model, args, picture_data, callbacks=[Poison()]).train()
    assert [f.name for f in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


@pytest.mark.parametrize("place", ["weights", "optimizer", "state"])
def test_no_space_leaves_earlier_checkpoints_usable(tiny_clip, picture_data, tmp_path, monkeypatch, place):
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, views=1)
    calls = []

    def full(*_, **__):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    def failing(original):
        return lambda *a, **k: (full(), original(*a, **k))[1]

    with monkeypatch.context() as patch:
        if place == "weights":
            patch.setattr(safetensors.torch, "save_file", failing(safetensors.torch.save_file))
        elif place == "optimizer":
            method = PromptTrainer._save_optimizer_and_scheduler
            patch.setattr(PromptTrainer, "_save_optimizer_and_scheduler", failing(method))
        else:
            from transformers import TrainerState

            patch.setattr(TrainerState, "save_to_json", failing(TrainerState.save_to_json))
        with pytest.raises(TrainingError, match="checkpoint-3: no space left on the disk; .*checkpoint-2; free"):
            PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train()
    assert not (tmp_path / "checkpoint-3").exists()
    trainer = PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data)
    assert trainer.train(resume_from_checkpoint=True).global_step == 12


def test_a_full_disk_is_told_in_our_words(tmp_path, monkeypatch):
    of_safetensors = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    of_torch = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534\nmore")
    assert why_not_written(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path) == "no space left on the disk"
    assert why_not_written(of_safetensors, tmp_path) == "no space left on the disk"
    assert why_not_written(of_torch, tmp_path) == str(of_torch).partition("\n")[0]
    assert why_not_written(PermissionError(errno.EACCES, "Permission denied"), tmp_path) == "Permission denied"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=512))
    assert why_not_written(of_torch, tmp_path) == "no space left on the disk"


def test_ctrl_c_leaves_usable_checkpoints(tiny_clip, picture_data, tmp_path):
    whole = make(tiny_clip, "coop", picture_data)
    PromptTrainer(whole, arguments(tmp_path / "whole", views=2), picture_data).train()
    args = arguments(tmp_path / "run", save_strategy="steps", save_steps=2, views=2)
    with pytest.raises(KeyboardInterrupt):
        interrupted = make(tiny_clip, "coop", picture_data)
        PromptTrainer(interrupted, args, picture_data, callbacks=[Stop(7, KeyboardInterrupt())]).train()
    assert last_checkpoint(args.output_dir).endswith("checkpoint-6")
    model = make(tiny_clip, "coop", picture_data)
    PromptTrainer(model, args, picture_data).train(resume_from_checkpoint=True)
    assert torch.equal(model.method.text.context.tokens, whole.method.text.context.tokens)


def test_an_unfinished_checkpoint_is_passed_over(tiny_clip, picture_data, tmp_path):
    args = arguments(tmp_path, save_strategy="epoch", views=1)
    PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train()
    killed = tmp_path / "checkpoint-99"
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path).endswith("checkpoint-12")
    with pytest.raises(ArtifactError, match="no complete checkpoint"):
        trainer = PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data)
        trainer.train(resume_from_checkpoint=str(killed))


def test_resuming_something_else_is_an_error(tiny_clip, picture_data, tmp_path):
    args = arguments(tmp_path, save_strategy="epoch", views=1)
    with pytest.raises(ArtifactError, match="no complete checkpoint in"):
        PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train(resume_from_checkpoint=True)
    PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train()
    with pytest.raises(ArtifactError, match="of another run: method was 'coop', now 'linear_probe'"):
        trainer = PromptTrainer(make(tiny_clip, "linear_probe", picture_data), args, picture_data)
        trainer.train(resume_from_checkpoint=True)
    with pytest.raises(ArtifactError, match="of another run: num_context_tokens was 16, now 4; resume"):
        trainer = PromptTrainer(make(tiny_clip, "coop", picture_data, num_context_tokens=4), args, picture_data)
        trainer.train(resume_from_checkpoint=True)


OTHER_ARGUMENTS = {
    "views": 2,
    "augment": False,
    "num_train_epochs": 5,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "optim": "adamw_torch",
    "sgd_momentum": 0.5,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "seed": 2,
    "data_seed": 7,
}


@pytest.fixture(scope="module")
def begun(tiny_clip, picture_data, tmp_path_factory):
    """A folder with the checkpoint of one epoch of CoOp."""
    folder = tmp_path_factory.mktemp("begun")
    args = arguments(folder, save_strategy="epoch", views=1)
    PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data, callbacks=[Stop(3)]).train()
    assert last_checkpoint(folder).endswith("checkpoint-3")
    return folder


@pytest.mark.parametrize("name", OTHER_ARGUMENTS)
def test_resuming_with_another_argument_is_told(tiny_clip, picture_data, begun, name):
    old = arguments(begun, views=1)
    was, now = {**vars(old), "data_seed": 1}[name], OTHER_ARGUMENTS[name]
    was, now = (repr(str(getattr(v, "value", v))) if name == "optim" else repr(v) for v in (was, now))
    args = arguments(begun, **{"views": 1, name: OTHER_ARGUMENTS[name]})
    with pytest.raises(ArtifactError) as caught:
        PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train(resume_from_checkpoint=True)
    assert f"{name} was {was}, now {now}" in str(caught.value) and "\n" not in str(caught.value)


def test_resuming_on_other_images_or_another_template_is_told(tiny_clip, picture_data, begun, tmp_path):
    from dataclasses import replace

    def resume(data, **changes):
        model = attach(tiny_clip, "coop", data.class_names, data.template, SETTINGS["coop"])
        PromptTrainer(model, arguments(begun, views=1, **changes), data).train(resume_from_checkpoint=True)

    fewer = replace(picture_data, train=picture_data.train[:-1])
    with pytest.raises(ArtifactError, match="training_images was 24, now 23; training_data was '[0-9a-f]{16}', now"):
        resume(fewer)
    swapped = [replace(picture_data.train[0], label=1), *picture_data.train[1:]]
    with pytest.raises(ArtifactError, match="of another run: training_data was"):
        resume(replace(picture_data, train=tuple(swapped)))
    path = tmp_path / Path(*picture_data.train[0].path.parts[-2:])  # another picture under the same name
    path.parent.mkdir()
    Image.new("RGB", (32, 32)).save(path)
    painted = [replace(picture_data.train[0], path=path), *picture_data.train[1:]]
    with pytest.raises(ArtifactError, match="of another run: training_data was"):
        resume(replace(picture_data, train=tuple(painted)))
    with pytest.raises(ArtifactError, match="template was 'a drawing of a {}.', now 'a {}.'"):
        resume(replace(picture_data, template="a {}."))
    with pytest.raises(ArtifactError, match="num_shots was not set, now 2; shots_seed was not set, now 3; training_im"):
        resume(picture_data, num_shots=2, shots_seed=3)


def test_resuming_where_the_data_has_moved(tiny_clip, picture_folder, picture_data, tmp_path, monkeypatch):
    """The same images under a relative path, and in a copy elsewhere."""
    from dataclasses import replace
    from pathlib import Path
    from shutil import copytree

    copytree(picture_folder, tmp_path / "copy")
    args = arguments(tmp_path / "run", save_strategy="epoch", views=1)
    PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data, callbacks=[Stop(3)]).train()
    monkeypatch.chdir(tmp_path)
    move = lambda item: replace(item, path=Path("copy") / item.path.relative_to(picture_folder))
    moved = replace(picture_data, train=tuple(map(move, picture_data.train)))
    trainer = PromptTrainer(make(tiny_clip, "coop", moved), args, moved)
    assert trainer.train(resume_from_checkpoint=True).global_step == 12


def test_a_torn_identity_is_one_line(tiny_clip, picture_data, tmp_path):
    args = arguments(tmp_path, save_strategy="epoch", views=1)
    PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train()
    (tmp_path / "checkpoint-12" / "checkpoint.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot read .*checkpoint.json"):
        PromptTrainer(make(tiny_clip, "coop", picture_data), args, picture_data).train(resume_from_checkpoint=True)


# the rest of transformers' Trainer


def test_bf16_needs_no_word_about_the_cpu_where_there_is_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = arguments(tmp_path, bf16=True)
    assert args.use_cpu and args.device.type == "cpu"


def test_bf16_trains_and_leaves_forward_as_it_was(tiny_clip, picture_data, tmp_path):
    from duotune.predictor import Predictor

    model = make(tiny_clip, "vlp", picture_data)
    dtypes = []
    hook = tiny_clip.model.visual_projection.register_forward_hook(lambda m, i, out: dtypes.append(out.dtype))
    trainer = PromptTrainer(model, arguments(tmp_path, bf16=True, use_cpu=True), picture_data)
    trainer.train()
    assert set(dtypes) == {torch.bfloat16} and np.isfinite(losses(trainer)).all()
    assert model.method.visual.prompts.tokens.dtype == torch.float32
    dtypes.clear()
    Predictor(model).classify(str(picture_data.test[0].path))
    hook.remove()
    assert dtypes == [torch.float32]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("method", "views"), [("coop", 2), ("dpt", 2), ("vlp", 0)])
def test_a_backbone_in_half_precision(tiny_clip_folder, picture_data, tmp_path, dtype, method, views):
    from duotune.backbones import load_backbone
    from duotune.evaluation import evaluate

    backbone = load_backbone(str(tiny_clip_folder), dtype=dtype, device="cpu")
    model = make(backbone, method, picture_data)
    trainer = PromptTrainer(model, arguments(tmp_path, num_train_epochs=2, views=views), picture_data)
    trainer.train()
    assert np.isfinite(losses(trainer)).all() and len(losses(trainer)) == 6
    assert {p.dtype for p in model.method.parameters()} == {torch.float32}
    assert evaluate(model, picture_data.test, workers=0, progress=False).num_images == 20


def test_one_bar_that_can_be_taken_away(tiny_clip, picture_data, tmp_path, capsys):
    from transformers.trainer_callback import ProgressCallback

    for keep in (True, False):
        model = make(tiny_clip, "coop", picture_data)
        trainer = PromptTrainer(model, arguments(tmp_path, views=1, disable_tqdm=False), picture_data)
        if not keep:
            trainer.remove_callback(ProgressCallback)
        capsys.readouterr()
        trainer.train()
        shown = capsys.readouterr()
        assert ("training" in shown.err and "loss=" in shown.err) == keep
        assert "{" not in shown.out


def test_gradient_accumulation_counts_epochs_by_steps(tiny_clip, picture_data, tmp_path):
    model = make(tiny_clip, "coop", picture_data)
    args = arguments(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, views=1)
    seen = EpochsSeen()
    seen.trainer = trainer = PromptTrainer(model, args, picture_data, callbacks=[seen])
    trainer.train()
    assert seen.seen == [(step // 3, 4, step // 3) for step in range(12)]
    plain = make(tiny_clip, "coop", picture_data)
    PromptTrainer(plain, arguments(tmp_path, views=1), picture_data).train()
    assert_close(model.method.state_dict(), plain.method.state_dict(), rtol=1e-5, atol=1e-7)


def test_rates_and_curves_reach_the_log_and_tensorboard(tiny_clip, picture_data, tmp_path):
    args = arguments(tmp_path, report_to="tensorboard", views=1, logging_strategy="epoch")
    trainer = PromptTrainer(make(tiny_clip, "dpt", picture_data, text_warmup_epochs=1), args, picture_data)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["learning_rate_text"] for row in rows[:2]] == pytest.approx([1e-5, 0.002])
    assert rows[0]["learning_rate_visual"] == pytest.approx(0.01)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_zero_shot_has_nothing_to_train(tiny_clip, picture_data, tmp_path):
    model = attach(tiny_clip, "zero_shot", picture_data.class_names, picture_data.template)
    assert PromptTrainer(model, arguments(tmp_path), picture_data).train().global_step == 0


def test_the_artifact_is_what_was_trained_and_is_evaluated(tiny_clip, picture_data, tmp_path):
    from duotune import artifacts
    from duotune.evaluation import evaluate

    model = make(tiny_clip, "dpt", picture_data)
    trainer = PromptTrainer(model, arguments(tmp_path, views=1), picture_data)
    trainer.train()
    trainer.save_artifact(tmp_path / "artifact")
    info = artifacts.describe(tmp_path / "artifact")
    kinds = {dtype for dtype, _ in info.tensors.values()}
    assert "float16" in kinds <= {"float16", "float32"}  # what no rounding changes, and the rest
    assert not any(name.startswith("aux") for name in info.tensors)
    loaded = artifacts.load(tmp_path / "artifact", tiny_clip)
    options = {"workers": 0, "progress": False}
    ours, theirs = (evaluate(m, picture_data.test, **options) for m in (model, loaded))
    assert ours.predictions == theirs.predictions
    assert ours.confidences == pytest.approx(theirs.confidences, rel=ROUNDING)


def test_a_failed_checkpoint_is_no_json_puzzle(tmp_path):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    for name in ("model.safetensors", "checkpoint.json"):
        (folder / name).write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"epoch": 1})[:-3])
    assert last_checkpoint(tmp_path) is None
