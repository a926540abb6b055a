"""Resize and flip, views, batches, and pictures that cannot be read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from duotune.data.detection.captions import OneCaption, SampledClasses
from duotune.data.detection.coco import make_item
from duotune.data.detection.torch_dataset import (
    DetectionDataset,
    check_detection_images,
    open_detection_image,
)
from duotune.data.detection.transforms import DetectionTransform, no_augmentation
from duotune.errors import ConfigError, DataError
from duotune.grounding import build_caption, resized_size
from duotune.training.detection_features import DetectionCollator

RED = (255, 0, 0)


def red_box(image):
    """The box of all reddish pixels, xyxy."""
    pixels = np.asarray(image).astype(int)
    y, x = np.nonzero(pixels[:, :, 0] - pixels[:, :, 1] > 127)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def pixels(image):
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255


def pad(pictures):
    height, width = (max(p.shape[axis] for p in pictures) for axis in (1, 2))
    return torch.stack([torch.nn.functional.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures])


@pytest.fixture
def items(tmp_path):
    """Pictures of 60 x 40 with a red box each: class 0, 1, 2, 0, ...; beside it a crowd of class 2."""
    made = []
    for number in range(6):
        image = Image.new("RGB", (60, 40), "white")
        box = (4 + number, 6, 24 + number, 26)
        image.paste(RED, box)
        image.save(tmp_path / f"{number}.png")
        rows = [(box, number % 3, 10 + number, False, 400), ((0, 0, 60, 40), 2, 99, True, 2400)]
        made.append(make_item(tmp_path / f"{number}.png", number, 60, 40, rows))
    return made


@pytest.fixture
def caption(tokenizer):
    return OneCaption(build_caption(["cat", "dog", "red car"], tokenizer))


@pytest.mark.parametrize("seed", range(8))
def test_boxes_stay_on_their_objects(seed):
    image = Image.new("RGB", (200, 100), "white")
    box = (20, 30, 80, 70)
    image.paste(RED, box)
    transform = DetectionTransform((50, 150, 240), longest=400)
    changed, boxes = transform(image, np.array([box]), np.random.default_rng(seed))
    assert boxes.dtype == np.float32 and np.abs(boxes[0] - red_box(changed)).max() <= 1
    assert changed.size[::-1] in {resized_size(100, 200, short, 400) for short in (50, 150, 240)}
    again, same = transform(image, np.array([box]), np.random.default_rng(seed))
    assert again.tobytes() == changed.tobytes() and same.tolist() == boxes.tolist()


def test_all_sizes_and_both_directions_occur():
    image = Image.new("RGB", (200, 100), "white")
    image.paste(RED, (0, 0, 50, 100))
    transform = DetectionTransform((50, 100), longest=400, flip=0.25)
    results = [transform(image, np.zeros((0, 4)), np.random.default_rng(seed)) for seed in range(200)]
    assert np.mean([changed.size[1] == 50 for changed, _ in results]) == pytest.approx(0.5, abs=0.12)
    assert np.mean([red_box(changed)[0] > 0 for changed, _ in results]) == pytest.approx(0.25, abs=0.1)
    assert all(boxes.shape == (0, 4) for _, boxes in results)
    # sizes and flips are drawn apart
    assert {(changed.size[1], red_box(changed)[0] > 0) for changed, _ in results} == {
        (50, False), (50, True), (100, False), (100, True)}  # fmt: skip


def test_evaluation_does_not_change_with_the_generator():
    image = Image.new("RGB", (200, 100), RED)
    results = {no_augmentation(80)(image, np.array([[0, 0, 200, 100]]), seed)[0].tobytes() for seed in range(9)}
    assert len(results) == 1
    changed, boxes = no_augmentation(800, 1333)(image, np.array([[0, 0, 200, 100]]))
    assert changed.size == (1332, 666) or changed.size == (1333, 666)
    assert boxes.tolist() == [[0, 0, *changed.size]]
    same, _ = no_augmentation(100)(image, np.zeros((0, 4)))
    assert same is image  # no resampling where nothing changes


@pytest.mark.parametrize("settings, match", [
    ({"short_sides": ()}, "one or more lengths"), ({"short_sides": (0,)}, "one or more lengths"),
    ({"short_sides": (900,), "longest": 800}, "longest must not be below"), ({"flip": 1.5}, "probability"),
])  # fmt: skip
def test_settings_that_do_not_fit(settings, match):
    with pytest.raises(ConfigError, match=match):
        DetectionTransform(**settings)


def test_keys_tell_transforms_apart():
    kinds = [DetectionTransform(), DetectionTransform((800,)), no_augmentation(), DetectionTransform(longest=1000)]
    assert len({kind.key() for kind in kinds}) == 4


def test_rows(items, caption):
    data = DetectionDataset(items, no_augmentation(80), pixels, caption)
    row = data[1]
    assert row["pixel_values"].shape == (3, 80, 120) and row["pixel_values"].dtype == torch.float32
    assert (row["image_size"], row["original_size"], row["image_id"], row["index"]) == ((80, 120), (40, 60), 1, 1)
    assert row["boxes"].tolist() == [[10, 12, 50, 52]] and row["labels"].tolist() == [1]  # without the crowd
    assert row["positive_map"].nonzero().tolist() == [[0, 3]] and row["num_left_out"] == 0
    assert row["caption"].text == "cat. dog. red car"


def test_views(items, caption):
    transform = DetectionTransform((20, 30, 40, 50), longest=90)
    picture = lambda data, i: (data[i]["image_size"], data[i]["boxes"].tolist(), data[i]["pixel_values"].sum().item())
    fresh = DetectionDataset(items, transform, pixels, caption, seed=1)
    epochs = []
    for epoch in range(6):
        fresh.set_epoch(epoch)
        assert fresh.epoch == fresh.view == epoch
        epochs.append([picture(fresh, i) for i in range(6)])
    assert len({str(e) for e in epochs}) == 6
    fresh.set_epoch(2)
    assert [picture(fresh, i) for i in range(6)] == epochs[2]  # (seed, epoch, index) decides
    assert [picture(DetectionDataset(items, transform, pixels, caption, seed=2), i) for i in range(6)] != epochs[0]
    kept = DetectionDataset(items, transform, pixels, caption, views=2, seed=1)
    shown = []
    for epoch in range(4):
        kept.set_epoch(epoch)
        shown.append([picture(kept, i) for i in range(6)])
    assert shown[0] == shown[2] and shown[1] == shown[3] and shown[0] != shown[1]
    # a view belongs to the picture, not to its place in the list
    turned = DetectionDataset(items[::-1], transform, pixels, caption, views=2, seed=1)
    assert [picture(turned, i) for i in range(6)] == shown[0][::-1]
    assert kept.key() != fresh.key()
    with pytest.raises(ConfigError, match="views and seed must not be negative"):
        DetectionDataset(items, transform, pixels, caption, views=-1)


def test_boxes_that_the_caption_does_not_name_are_left_out_and_counted(items, tokenizer):
    names = ["cat", "dog dog dog dog", "red car"]
    item = make_item(items[0].path, 0, 60, 40, [((0, 0, 9, 9), k, k, False, 81) for k in (0, 1, 2, 1)])
    data = DetectionDataset([item], no_augmentation(40), pixels, SampledClasses(names, tokenizer, max_tokens=8), seed=3)
    counts = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        row = data[0]
        named = set(row["caption"].labels)
        assert row["labels"].tolist() == [k for k in (0, 1, 2, 1) if k in named]
        assert len(row["boxes"]) == len(row["positive_map"]) == 4 - row["num_left_out"]
        assert (row["positive_map"].sum(1) > 0).all()
        counts.add(row["num_left_out"])
    assert counts == {2, 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(items, caption, workers):
    data = DetectionDataset(items, DetectionTransform((20, 40), longest=90), pixels, caption)
    loader = DataLoader(data, batch_size=3, num_workers=workers, collate_fn=DetectionCollator(pad))
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        assert batch["pixel_values"].shape[2:] == tuple(batch["image_sizes"].max(0).values.tolist())
        assert batch["original_sizes"].tolist() == [[40, 60]] * 3
        assert [label["boxes"].shape for label in batch["labels"]] == [(1, 4)] * 3
        assert all(label["positive_map"].shape == (1, caption.caption.length) for label in batch["labels"])
        assert batch["captions"] == [caption.caption] * 3


def test_items_travel_to_workers(items):
    copy = pickle.loads(pickle.dumps(items[0]))
    assert copy.boxes.tolist() == items[0].boxes.tolist() and copy.key == items[0].key


def test_the_annotation_says_how_the_picture_stands(tmp_path):
    image = Image.new("RGB", (60, 40), "white")
    image.paste(RED, (0, 0, 10, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    of = lambda width, height: make_item(tmp_path / "turned.png", 1, width, height, [])
    assert red_box(open_detection_image(of(60, 40))) == [0, 0, 10, 40]
    assert red_box(open_detection_image(of(40, 60))) == [0, 0, 40, 10]
    with pytest.raises(DataError, match="turned.png is 40 x 60 pixels, its annotation says 50 x 50"):
        open_detection_image(of(50, 50))


def test_broken_pictures_leave_by_name(items):
    assert check_detection_images(items)[0] == items
    items[4].path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 6 images cannot be read"):
        check_detection_images(items)
    good, report = check_detection_images(items, max_broken_share=0.5)
    assert list(report.broken) == [items[4].key] and good == [*items[:4], items[5]]
