"""Grounding DINO through the same trainer: kept maps, checkpoints of shared weights, the best epoch, many classes."""

from __future__ import annotations

import pytest
import torch
from coco_folder import write_folder
from PIL import Image
from tiny_grounding_dino import make_model, make_tokenizer

from duotune import DetectionTrainingArguments, PromptTrainer, attach, evaluate_detector, load_detection
from duotune.backbones.grounding_dino import GroundingDinoBackbone
from duotune.models.grounding_dino import Pictures
from duotune.training.detection_features import MapsDataset


@pytest.fixture(scope="module")
def dino():
    return GroundingDinoBackbone("tiny-dino", make_model(), make_tokenizer(), Pictures(short_side=128, long_side=192))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    splits = {"train": 4, "val": 2, "test": 2}
    return load_detection(write_folder(tmp_path_factory.mktemp("coco") / "things", splits=splits))


@pytest.mark.parametrize("method", ["sdpt", "full"])
def test_it_trains_is_measured_and_goes_back_to_the_best_epoch(dino, data, tmp_path, method):
    model = attach(dino, method, data.class_names)
    args = DetectionTrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=2,
        views=1,
        short_sides=[128],
        metric_for_best="ap",
        dataloader_num_workers=0,
        disable_tqdm=True,
    )
    trainer = PromptTrainer(model, args, data)
    assert isinstance(trainer.train_dataset, MapsDataset) == (method == "sdpt")
    values, states = iter([5.0, 1.0]), []
    original = trainer.evaluate

    def evaluate(*args, **kwargs):
        states.append({name: p.detach().clone() for name, p in model.method.named_parameters()})
        return {**original(*args, **kwargs), "eval_ap": next(values)}

    trainer.evaluate = evaluate
    trainer.train()
    ended = dict(model.method.named_parameters())
    assert all(torch.equal(ended[name], value) for name, value in states[0].items())
    assert any(not torch.equal(states[1][name], value) for name, value in states[0].items())
    result = evaluate_detector(model, data, workers=0, progress=False)
    assert 0 <= result.ap <= 100 and result.metrics.num_detections > 0


def test_classes_in_several_captions(dino, data, monkeypatch):
    names = ["cat", "dog", "red cell", "tree", "hat", "boat"]
    pictures = [Image.open(item.path).convert("RGB") for item in data.test]
    monkeypatch.setattr(dino, "max_text_tokens", 8)
    model = attach(dino, "sdpt", names)
    captions = model.method.all_captions
    assert len(captions) > 1 and all(c.length <= 8 and c.text.endswith(".") for c in captions)
    for row in model.detect(pictures):
        assert {names[k] for k in row["labels"].tolist()} == set(names)
        assert row["scores"].tolist() == sorted(row["scores"].tolist(), reverse=True)
