"""Embedded detection tasks, and the archives that they are."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from duotune.data.detection import EMBEDDED_DETECTION_TASKS, list_detection_datasets, load_detection
from duotune.data.detection.torch_dataset import open_detection_image
from duotune.errors import ConfigError, DataError, UnknownNameError


def coco_content(images, annotations, categories):
    """Rows (id, file, width, height), (id, image, category, [x, y, w, h]), {id: name} -> COCO's objects."""
    return {
        "images": [dict(zip(("id", "file_name", "width", "height"), row)) for row in images],
        "annotations": [dict(zip(("id", "image_id", "category_id", "bbox"), row)) for row in annotations],
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
    }


def archive(path, splits, pictures):
    """{split: (images, annotations, categories)}, {member: (width, height)} -> a zip."""
    with zipfile.ZipFile(path, "w") as file:
        for split, rows in splits.items():
            file.writestr(f"{split}.json", json.dumps(coco_content(*rows)))
        for name, size in pictures.items():
            data = io.BytesIO()
            Image.new("RGB", size, (10, 20, 30)).save(data, "PNG")
            file.writestr(name, data.getvalue())
    return path


CLASSES = {1: "cat", 2: "dog"}


@pytest.fixture
def small(tmp_path):
    rows = {
        "train": ([(1, "a.png", 40, 30)], [(1, 1, 2, [5, 6, 10, 12])], CLASSES),
        "test": ([(1, "b.png", 20, 20), (2, "c.png", 16, 8)], [(1, 2, 1, [0, 0, 4, 4])], CLASSES),
    }
    pictures = {"train/a.png": (40, 30), "test/b.png": (20, 20), "test/c.png": (16, 8)}
    return archive(tmp_path / "small.zip", rows, pictures)


def test_an_archive_is_read_without_unpacking(small):
    data = load_detection(small)
    assert (data.name, data.class_names, len(data.train), len(data.val), len(data.test)) == (
        "small",
        ("cat", "dog"),
        1,
        0,
        2,
    )
    (item,) = data.train
    assert (item.path, item.member) == (small, "train/a.png")
    assert item.boxes.tolist() == [[5, 6, 15, 18]] and item.labels.tolist() == [1]
    assert open_detection_image(item).size == (40, 30)
    assert item.key == f"{small}::train/a.png" and item.short_key == "train/a.png/1"
    assert len(data.test[0]) == 0 and open_detection_image(data.test[1]).size == (16, 8)
    assert load_detection(small, name="mine", class_names=["kitten", "puppy"]).class_names == ("kitten", "puppy")


def test_absent_members_are_told_or_counted(tmp_path):
    rows = {"test": ([(1, "b.png", 20, 20), (2, "gone.png", 16, 8)], [(1, 1, 1, [0, 0, 4, 4])], CLASSES)}
    path = archive(tmp_path / "holes.zip", rows, {"test/b.png": (20, 20)})
    with pytest.raises(DataError, match=r"names 1 of 2 pictures that are absent.*gone\.png"):
        load_detection(path)
    with pytest.warns(UserWarning):
        data = load_detection(path, missing_images="skip")
    assert len(data.test) == 1 and data.report.counts["missing_images"] == 1


@pytest.mark.parametrize("content", [b"no archive", None, b'{"images": '])
def test_bad_archives(tmp_path, content):
    path = tmp_path / "bad.zip"
    if content == b"no archive":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("test.json" if content else "readme.txt", content or b"")
    with pytest.raises(DataError, match="cannot read the COCO annotations|holds no COCO annotations"):
        load_detection(path)


def test_embedded_names_come_first_and_take_no_root():
    names = list_detection_datasets()
    assert names[: len(EMBEDDED_DETECTION_TASKS)] == list(EMBEDDED_DETECTION_TASKS)
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-scenes'"):
        load_detection("tiny-scens")
    with pytest.raises(ConfigError, match="unknown options"):
        load_detection("tiny-scenes", shots=(1, 3))


@pytest.mark.parametrize("name", list(EMBEDDED_DETECTION_TASKS))
def test_every_embedded_task_is_whole(name):
    data = load_detection(name)
    assert data.name == name and not data.report.counts
    splits = [data.test] if name == "tiny-scenes" else [data.train, data.val, data.test]
    for items in splits:
        shown = np.unique(np.concatenate([item.labels for item in items]))
        assert shown.tolist() == list(range(len(data.class_names)))  # every class in every split
        for item in items:
            assert open_detection_image(item).size == (item.width, item.height) and len(item) >= 1
    keys = [item.short_key for items in splits for item in items]
    assert len(set(keys)) == len(keys)
