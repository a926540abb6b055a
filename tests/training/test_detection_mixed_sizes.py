"""Kept feature maps against pixels, batch by batch, where pictures are of several sizes, resized and flipped."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from duotune import DetectionTrainingArguments, PromptTrainer, attach, load_backbone, load_detection
from duotune.backbones.grounding_dino import GroundingDinoBackbone
from duotune.errors import DataError
from duotune.models.grounding_dino import Pictures
from duotune.training.detection_features import MapsDataset, with_maps

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402
from tiny_grounding_dino import make_model, make_tokenizer  # noqa: E402


# float64: another order of the same sums moves these gradients in float32
@pytest.fixture(scope="module", params=["glip", "grounding_dino"])
def backbone(request, tmp_path_factory):
    if request.param == "glip":
        folder = save_tiny_glip(tmp_path_factory.mktemp("backbones") / "glip")
        return load_backbone(str(folder), device="cpu").double()
    pictures = Pictures(short_side=80, long_side=112)
    return GroundingDinoBackbone("tiny", make_model(request.param), make_tokenizer(), pictures).double()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine pictures of three shapes."""
    return load_detection(write_folder(tmp_path_factory.mktemp("coco") / "things", splits={"train": 9, "val": 3}))


def make_trainer(backbone, data, folder, **changes):
    sides = {64: [32, 64], 80: [80, 112]}[backbone.short_side]
    values = {"per_device_train_batch_size": 2, "views": 2, "short_sides": sides, "dataloader_num_workers": 0}
    args = DetectionTrainingArguments(output_dir=str(folder), disable_tqdm=True, **{**values, **changes})
    return PromptTrainer(attach(backbone, "sdpt", data.class_names), args, data=data)


def loss_and_gradient(model, batch):
    model.zero_grad()
    loss = model(**batch)["loss"]
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_batch_of_an_epoch_gives_the_loss_and_gradient_of_its_pixels(backbone, data, tmp_path):
    trainer = make_trainer(backbone, data, tmp_path)
    dataset, seen, flipped = trainer.train_dataset, {"maps": 0, "pixels": 0}, set()
    assert isinstance(dataset, MapsDataset)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        order = list(trainer._get_train_sampler())
        parts = [order[start : start + 2] for start in range(0, len(order), 2)]
        batches = list(torch.utils.data.DataLoader(dataset, 2, sampler=order, collate_fn=trainer.data_collator))
        for part, batch in zip(parts, batches, strict=True):
            one_size = len({dataset.shape(i) for i in part}) == 1
            assert ("pictures" in batch, "pixel_values" in batch) == (one_size, not one_size)
            seen["maps" if one_size else "pixels"] += 1
            flipped |= {dataset.images.transform.draw((60, 80), dataset.images.rng(i))[1] for i in part}
            plain = trainer.data_collator([dataset.images[i] for i in part])
            expected = loss_and_gradient(trainer.model, plain)
            found = loss_and_gradient(trainer.model, trainer._prepare_inputs(batch))
            assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
            assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6 * expected[1].abs().max().item())
    assert seen["maps"] >= 2 and seen["pixels"] >= 2 and flipped == {True, False}


def test_maps_of_several_sizes_are_never_joined(backbone, data, tmp_path):
    """Filled up with zeros they would be other maps than those of the padded batch."""
    trainer = make_trainer(backbone, data, tmp_path, augment=False)
    dataset = trainer.train_dataset
    batch = trainer.data_collator([dataset[0], dataset[1]])
    assert dataset.shape(0) != dataset.shape(1)
    with pytest.raises(DataError, match="of different sizes make no batch"):
        with_maps(backbone, batch)


def test_validation_in_batches_of_several_sizes_equals_pixels(backbone, data, tmp_path):
    kept = make_trainer(backbone, data, tmp_path, per_device_eval_batch_size=3)
    found = kept.evaluate()
    plain = kept.evaluate(kept.eval_dataset.images)
    assert found == pytest.approx(plain, rel=1e-5)


def test_mostly_mixed_batches_are_told_once(backbone, data, tmp_path, caplog):
    trainer = make_trainer(backbone, data, tmp_path, per_device_train_batch_size=8)
    sampler = trainer._get_train_sampler()
    with caplog.at_level(logging.WARNING, "duotune"):
        assert sorted(sampler) == sorted(sampler) == list(range(9))
        list(make_trainer(backbone, data, tmp_path, per_device_train_batch_size=1)._get_train_sampler())
    assert caplog.text.count("9 of 9 pictures are in batches of several sizes") == 1
