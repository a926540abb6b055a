"""Training a detector: what is trained, kept, measured and resumed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from coco_folder import write_folder
from PIL import Image
from transformers import TrainerCallback

from closeness import ROUNDING, all_close, close, same_boxes
from duotune import PromptTrainer, attach
from duotune.data.detection import load_detection
from duotune.data.detection.captions import OneCaption, SampledClasses
from duotune.errors import ArtifactError, ConfigError, DataError, TrainingError
from duotune.training import DetectionTrainer, DetectionTrainingArguments, PromptTrainingArguments
from duotune.training.detection import detection_train_transform, training_captions
from duotune.training.detection_features import MapsDataset, SizeGroupedSampler


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("coco") / "things", splits={"train": 6, "val": 1, "test": 1})


@pytest.fixture(scope="session")
def data(folder):
    return load_detection(folder)


def arguments(folder, **changes) -> DetectionTrainingArguments:
    values = {"num_train_epochs": 2, "per_device_train_batch_size": 3, "dataloader_num_workers": 0}
    values |= {"disable_tqdm": True, "save_strategy": "no", "flip": 0.5, "short_sides": [32, 48]}
    return DetectionTrainingArguments(output_dir=str(folder), **{**values, **changes})


def train(backbone, data, folder, method="sdpt", settings=None, callbacks=None, resume=None, **changes):
    model = attach(backbone, method, data.class_names, config=settings)
    trainer = PromptTrainer(model, arguments(folder, **changes), data=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def digest(model) -> str:
    return hashlib.sha256(b"".join(v.cpu().numpy().tobytes() for v in model.state_dict().values())).hexdigest()


@pytest.mark.parametrize("method", ["sdpt", "text_prompt", "linear_probe", "vpt", "full"])
def test_methods_learn_and_the_backbone_stays(backbone, data, tmp_path, method):
    before = digest(backbone.model)
    rate = {"linear_probe": {"lr": 1e-2}, "full": {"lr": 1e-3}, "sdpt": {"lr": 0.1}, "vpt": {"visual_lr": 0.05}}
    model = attach(backbone, method, data.class_names, config=rate.get(method))
    start = {name: p.detach().clone() for name, p in model.method.named_parameters()}
    args = arguments(tmp_path, num_train_epochs=3, short_sides=[32], flip=0.0, views=1, per_device_train_batch_size=6)
    trainer = PromptTrainer(model, args, data=data)
    assert type(trainer) is DetectionTrainer
    trainer.train()
    assert digest(backbone.model) == before and not model.training
    moved = {name for name, p in model.method.named_parameters() if not torch.equal(p, start[name])}
    assert moved and moved <= {name for name, p in model.method.named_parameters() if p.requires_grad}
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)


def test_defaults_are_a_detectors(tmp_path):
    args = DetectionTrainingArguments(output_dir=str(tmp_path))
    assert (args.optim, args.weight_decay, args.max_grad_norm) == ("adamw_torch", 1e-4, 1.0)
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size, args.num_train_epochs) == (2, 1, 12)
    with pytest.raises(ConfigError, match="metric_for_best must be 'ap', 'ap50', 'loss'.*flip.*short_sides|short_sid"):
        DetectionTrainingArguments(output_dir="x", metric_for_best="accuracy", flip=2, short_sides=[0])


def test_what_does_not_fit_is_told(shared_backbone, tiny_clip, data, picture_data, tmp_path):
    model = attach(shared_backbone, "sdpt", data.class_names)
    with pytest.raises(ConfigError, match="trains with DetectionTrainingArguments, not PromptTrainingArguments"):
        PromptTrainer(model, PromptTrainingArguments(output_dir=str(tmp_path)), data=data)
    with pytest.raises(ConfigError, match="trains on DetectionData .pictures with boxes., not ClassificationData"):
        PromptTrainer(model, arguments(tmp_path), data=picture_data)
    with pytest.raises(ConfigError, match="the model has 1 classes, things has other 2"):
        PromptTrainer(attach(shared_backbone, "sdpt", ["cat"]), arguments(tmp_path), data=data)
    with pytest.raises(ConfigError, match="trains detectors"):
        classifier = attach(tiny_clip, "coop", picture_data.class_names)
        DetectionTrainer(classifier, arguments(tmp_path), data=data)


# ------------------------------------------------------------------ feature maps


def count_pictures(monkeypatch, backbone) -> list[int]:
    seen, original = [], backbone.model.model.encode_image

    def counted(pixels, *rest):
        seen.append(len(pixels))
        return original(pixels, *rest)

    monkeypatch.setattr(backbone.model.model, "encode_image", counted)
    return seen


def test_kept_maps_are_what_the_image_tower_makes_of_the_same_view(backbone, data, tmp_path):
    model = attach(backbone, "sdpt", data.class_names)
    trainer = PromptTrainer(model, arguments(tmp_path, views=2), data=data)
    kept = trainer.train_dataset
    assert isinstance(kept, MapsDataset)
    sizes = set()
    for epoch in range(4):
        kept.set_epoch(epoch)
        for i in range(len(kept)):
            row, plain = kept[i], kept.images[i]
            assert "pixel_values" not in row and set(plain) - set(row) == {"pixel_values"}
            for name in set(row) & set(plain) - {"caption"}:
                assert np.array_equal(np.asarray(row[name]), np.asarray(plain[name])), name
            with torch.no_grad():
                expected = backbone.encode_image(backbone.pad([plain["pixel_values"]]))
            assert all_close(row["feature_maps"], [e[0] for e in expected])
            assert kept.shape(i) == tuple(backbone.pad([plain["pixel_values"]]).shape[-2:])
            sizes.add(row["image_size"])
    assert len(sizes) > 3


@pytest.mark.parametrize("method", ["sdpt", "linear_probe"])
def test_kept_maps_give_the_loss_of_pixels(backbone, data, tmp_path, method):
    """In a batch of one size; others are in tests/training/test_detection_mixed_sizes.py."""
    model = attach(backbone, method, data.class_names)
    trainer = PromptTrainer(model, arguments(tmp_path, augment=False), data=data)
    dataset = trainer.train_dataset
    rows = [2, 5]  # of one size, and with boxes
    assert dataset.shape(2) == dataset.shape(5) and all(len(dataset.items[i]) for i in rows)
    kept = trainer._prepare_inputs(trainer.data_collator([dataset[i] for i in rows]))
    plain = trainer.data_collator([dataset.images[i] for i in rows])
    assert "pixel_values" not in kept and "feature_maps" not in plain
    with torch.no_grad():
        torch.testing.assert_close(model(**kept)["loss"], model(**plain)["loss"], rtol=1e-5, atol=1e-6)


def test_the_image_tower_runs_once_per_view(backbone, data, tmp_path, monkeypatch):
    seen = count_pictures(monkeypatch, backbone)
    common = {"views": 2, "num_train_epochs": 2, "per_device_train_batch_size": 1}  # nothing is padded
    trainer = train(backbone, data, tmp_path, metric_for_best="ap", save_strategy="epoch", **common)
    assert seen == [1] * (2 * len(data.train) + len(data.val))
    assert trainer.maps.refused == 0 and not trainer.maps.on_disk
    seen.clear()
    train(backbone, data, tmp_path / "fresh", views=0, num_train_epochs=2, short_sides=[32])
    assert sum(seen) == 2 * len(data.train) + len(data.val)  # validation pictures are the same every epoch


def test_a_store_without_room_changes_no_number(backbone, data, tmp_path, caplog):
    whole = train(backbone, data, tmp_path / "a", views=1)
    one = sum(m.numel() * 4 for m in whole.train_dataset[0]["feature_maps"])
    with caplog.at_level(logging.WARNING, "duotune"):
        little = train(backbone, data, tmp_path / "b", views=1, cache_gb=3.5 * one / 1e9)
    assert 0 < sum(key in little.maps for keys in little.train_dataset._keys for key in keys) < len(data.train)
    assert "feature maps fit into" in caplog.text
    assert losses(little) == pytest.approx(losses(whole), rel=ROUNDING)
    for name, value in whole.model.method.state_dict().items():
        assert close(little.model.method.state_dict()[name], value)


def test_maps_on_disk_serve_later_runs_and_damage_is_found(backbone, data, tmp_path, monkeypatch, caplog):
    cache = tmp_path / "cache"
    common = {"views": 2, "cache_dir": str(cache), "per_device_train_batch_size": 1}  # nothing is padded
    first = train(backbone, data, tmp_path / "a", **common)
    files = sorted(cache.rglob("*.safetensors"))
    assert len(files) == 2 * len(data.train) + len(data.val)
    seen = count_pictures(monkeypatch, backbone)
    second = train(backbone, data, tmp_path / "b", dataloader_num_workers=1, **common)
    assert seen == [] and losses(second) == pytest.approx(losses(first), rel=ROUNDING)
    content = bytearray(files[0].read_bytes())
    content[-5] ^= 0xFF
    files[0].write_bytes(content)
    files[1].write_bytes(b"no tensors")
    with caplog.at_level(logging.WARNING, "duotune"):
        third = train(backbone, data, tmp_path / "c", num_train_epochs=2, **common)
    assert losses(third) == pytest.approx(losses(first), rel=ROUNDING)
    assert len(seen) >= 1 and "corrupt" in caplog.text
    left = len(list(cache.rglob("*.safetensors")))
    model = attach(backbone, "sdpt", data.class_names)
    PromptTrainer(model, arguments(tmp_path, views=2, cache_dir=str(cache), seed=9), data=data)
    after = left + 2 * len(data.train)  # other views; those of validation are the same whatever the seed
    assert len(list(cache.rglob("*.safetensors"))) == after
    PromptTrainer(model, arguments(tmp_path, augment=False, cache_dir=str(cache), seed=1), data=data)
    seen.clear()
    PromptTrainer(model, arguments(tmp_path, augment=False, cache_dir=str(cache), seed=2), data=data)
    assert seen == []


def test_old_maps_make_room(backbone, data, tmp_path):
    cache = tmp_path / "cache"
    train(backbone, data, tmp_path / "a", views=1, cache_dir=str(cache), num_train_epochs=1)
    size = sum(path.stat().st_size for path in cache.rglob("*.safetensors"))
    before = set(cache.rglob("*.safetensors"))
    settings = {"views": 1, "cache_dir": str(cache), "cache_gb": 1.4 * size / 1e9, "seed": 5, "num_train_epochs": 1}
    trainer = train(backbone, data, tmp_path / "b", **settings)
    after = set(cache.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in after) <= 1.4 * size
    assert before - after and after - before and trainer.maps.refused == 0


def test_batches_hold_pictures_of_one_size_where_they_can(backbone, data, tmp_path):
    model = attach(backbone, "sdpt", data.class_names)
    trainer = PromptTrainer(model, arguments(tmp_path, augment=False, per_device_train_batch_size=2), data=data)
    dataset, sampler = trainer.train_dataset, trainer._get_train_sampler()
    order = list(sampler)
    assert sorted(order) == list(range(len(dataset))) and order == list(sampler)
    for start in range(0, 6, 2):  # three sizes, two pictures of each
        assert len({dataset.shape(i) for i in order[start : start + 2]}) == 1
    assert any(order != list(SizeGroupedSampler(dataset, 2, trainer.args.data_seed, lambda e=e: e)) for e in (1, 2))


# ------------------------------------------------------------------ resuming


class Stop(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("method, views, steps", [("sdpt", 2, 3), ("full", 0, 2)])
def test_resuming_continues_bit_for_bit(backbone, data, tmp_path, method, views, steps):
    """2 epochs of 2 steps at once, against a stop within or between epochs and a resumed rest."""
    common = {"method": method, "views": views, "num_train_epochs": 2, "short_sides": [32]}
    whole = train(backbone, data, tmp_path / "whole", **common)
    common |= {"save_strategy": "steps", "save_steps": 1}
    train(backbone, data, tmp_path / "parts", callbacks=[Stop(steps)], **common)
    rest = train(backbone, data, tmp_path / "parts", resume=True, **common)
    assert rest.state.global_step == whole.state.global_step == 4
    for name, value in whole.model.method.state_dict().items():
        assert torch.equal(rest.model.method.state_dict()[name], value), name


def test_checkpoints_hold_the_methods_state_and_know_their_run(backbone, data, tmp_path):
    train(backbone, data, tmp_path, save_strategy="epoch", num_train_epochs=1)
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert (checkpoint / "model.safetensors").stat().st_size < 20_000
    saved = json.loads((checkpoint / "checkpoint.json").read_text())
    assert saved["short_sides"] == [32, 48] and saved["method"] == "sdpt"
    with pytest.raises(ArtifactError, match="flip was 0.5, now 0.0"):
        train(backbone, data, tmp_path, flip=0.0, num_train_epochs=1, resume=True)


# ------------------------------------------------------------------ what is measured


def test_the_best_epoch_by_ap_is_kept(backbone, data, tmp_path, monkeypatch):
    model = attach(backbone, "sdpt", data.class_names, lr=0.1)
    args = arguments(
        tmp_path, num_train_epochs=3, metric_for_best="ap", save_strategy="epoch", views=1, short_sides=[32]
    )
    trainer = PromptTrainer(model, args, data=data)
    values, states = iter([3.0, 9.0, 5.0]), []
    original = trainer.evaluate

    def evaluate(*args, **kwargs):
        metrics = original(*args, **kwargs)
        assert set(metrics) - {"epoch"} == {"eval_ap", "eval_ap50"}
        states.append({k: v.clone() for k, v in model.method.state_dict().items()})
        return {**metrics, "eval_ap": next(values)}

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    trainer.train()
    assert trainer.state.best_metric == 9.0
    assert all(torch.equal(v, states[1][k]) for k, v in model.method.state_dict().items())


def test_validation_is_ap_and_loss(shared_backbone, data, tmp_path):
    from duotune.detection_evaluation import evaluate_detector

    model = attach(shared_backbone, "sdpt", data.class_names)
    trainer = PromptTrainer(model, arguments(tmp_path, score_threshold=0.01, views=1), data=data)
    metrics = trainer.evaluate()
    measured = evaluate_detector(model, data, "val", workers=0, progress=False, score_threshold=0.01)
    assert metrics["eval_ap50"] == pytest.approx(measured.ap50) and metrics["eval_ap"] == pytest.approx(measured.ap)
    by_hand = []
    dataset = trainer.eval_dataset.images
    for i in range(len(dataset)):
        batch = trainer.data_collator([dataset[i]])
        with torch.no_grad():
            by_hand.append(model(**batch)["loss"].item())
    assert metrics["eval_loss"] == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run(backbone, data, tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan at step"):
        model = attach(backbone, "sdpt", data.class_names)
        trainer = PromptTrainer(model, arguments(tmp_path), data=data)
        with torch.no_grad():
            model.method.prototypes.tokens[0].fill_(float("nan"))
        trainer.train()


# ------------------------------------------------------------------ data


def test_broken_pictures_and_sizes_that_do_not_fit_are_skipped_by_name(backbone, folder, tmp_path, caplog):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "train" / "0.png").write_bytes(b"\x89PNG broken")
    Image.new("RGB", (30, 20)).save(copy / "train" / "1.png")
    data = load_detection(copy)
    with pytest.raises(DataError, match="2 of 6 images cannot be read, more than max_broken_share=0.01"):
        train(backbone, data, tmp_path / "a")
    with caplog.at_level(logging.WARNING, "duotune"):
        trainer = train(backbone, data, tmp_path / "a", max_broken_share=0.4, num_train_epochs=1)
    assert len(trainer.train_dataset) == 4 and len(trainer.broken) == 2
    assert "30 x 20 pixels, its annotation says 60 x 80" in " ".join(trainer.broken.values())
    assert caplog.text.count("skipped: ") == 2


def test_shots_are_drawn_as_glip_draws_them(backbone, data, tmp_path):
    trainer = PromptTrainer(
        attach(backbone, "sdpt", data.class_names), arguments(tmp_path, num_shots=1, shots_seed=3), data=data
    )
    expected = [item.image_id for item in data.few_shot(1, 3).train]
    assert [item.image_id for item in trainer.train_dataset.items] == expected and len(expected) < len(data.train)


def test_sizes_of_training_follow_the_backbone(shared_backbone, tmp_path):
    transform = detection_train_transform(shared_backbone, arguments(tmp_path, short_sides=None))
    assert transform.short_sides == (38, 45, 51, 58, 64) and transform.longest == 96  # GLIP's 480 ... 800 for 64
    plain = detection_train_transform(shared_backbone, arguments(tmp_path, augment=False))
    assert plain.short_sides == (64,) and plain.flip == 0


def test_more_classes_than_a_caption_holds_are_sampled(backbone, tmp_path):
    names = [f"{a} {b}" for a in ("cat", "dog", "red", "house") for b in ("square", "boat", "tree", "cell")]
    data = load_detection(write_folder(tmp_path / "many", names=names))
    model = attach(backbone, "sdpt", names)
    assert len(model.method.all_captions) == 2
    choice = training_captions(model, data)
    assert isinstance(choice, SampledClasses)
    for item in data.train:
        caption = choice(item, np.random.default_rng(0))
        assert caption.length <= 32 and set(item.labels.tolist()) <= set(caption.labels)
    trainer = train(backbone, data, tmp_path / "run", num_train_epochs=1)
    assert np.isfinite(losses(trainer)).all() and trainer.evaluate()["eval_ap"] >= 0
    few = attach(backbone, "sdpt", data.class_names[:2])
    assert isinstance(training_captions(few, data), OneCaption)


def test_the_artifact_is_what_was_trained(backbone, data, tmp_path, pictures):
    from duotune import load

    trainer = train(backbone, data, tmp_path / "run", settings={"lr": 0.1}, num_train_epochs=1)
    folder = trainer.save_artifact(tmp_path / "artifact")
    loaded = load(folder, backbone)
    for a, b in zip(trainer.model.detect(pictures), loaded.detect(pictures), strict=True):
        assert same_boxes(b, a) and b["names"] == [data.class_names[label] for label in b["labels"]]
