"""Where people's COCO files lie, on disk and zipped; which pictures they name; what is refused."""

from __future__ import annotations

import json
import os
import unicodedata
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from duotune.data.detection import is_detection_data, load_detection
from duotune.data.detection.coco_layout import split_of_file
from duotune.data.detection.torch_dataset import open_detection_image
from duotune.errors import DataError

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def picture(path: Path, size=(20, 16), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def content(names, first: int = 1):
    """COCO of pictures of 20 x 16 with one box each, in turn of both classes."""
    images = [{"id": first + i, "file_name": n, "width": 20, "height": 16} for i, n in enumerate(names)]
    boxes = [
        {"id": first + i, "image_id": first + i, "category_id": 1 + i % 2, "bbox": [i % 5, 1, 10, 8]}
        for i in range(len(names))
    ]
    return {"images": images, "annotations": boxes, "categories": CATEGORIES}


def write(path: Path, what, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what, ensure_ascii=False), encoding=encoding)
    return path


def zipped(folder: Path, path: Path, prefix: str = "", change=lambda name: name) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, change(prefix + file.relative_to(folder).as_posix()))
    return path


def shape(data) -> dict[str, list]:
    """What two readings of one data set must share: the names of pictures and their boxes."""
    name = lambda item: (item.member or item.path.as_posix()).rpartition("/")[2]
    return {
        split: [(name(i), i.image_id, i.boxes.tolist(), i.labels.tolist()) for i in getattr(data, split)]
        for split in ("train", "val", "test")
    }


LAYOUTS = {
    "roboflow": ("train/_annotations.coco.json", "train/{}", "valid/_annotations.coco.json", "valid/{}"),
    "roboflow in capitals": ("Train/_annotations.coco.json", "Train/{}", "VALID/_annotations.coco.json", "VALID/{}"),
    "coco 2017": (
        "annotations/instances_train2017.json", "train2017/{}", "annotations/instances_val2017.json", "val2017/{}"
    ),
    "coco below images": (
        "annotations/instances_train.json", "images/train/{}", "annotations/instances_val.json", "images/val/{}"
    ),
    "one folder of pictures": ("annotations/train.json", "images/{}", "annotations/val.json", "images/{}"),
    "cvat": (
        "annotations/instances_Train.json", "images/Train/{}", "annotations/instances_Validation.json",
        "images/Validation/{}"
    ),
    "flat": ("train.json", "train/{}", "val.json", "val/{}"),
    "flat with words": ("train_annotations.json", "Training/{}", "valid_coco.json", "Validation/{}"),
    "flat, one folder": ("train.json", "images/{}", "val.json", "images/{}"),
    "flat, beside": ("instances_train.json", "{}", "instances_val.json", "{}"),
    "any name per split": ("training/labels.json", "training/images/{}", "dev/coco.json", "dev/images/{}"),
    "a folder of annotations per split": (
        "train/annotations/instances_default.json", "train/images/{}", "val/annotations/instances_default.json",
        "val/images/{}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_on_disk_and_zipped(name, tmp_path):
    train, train_pictures, val, val_pictures = LAYOUTS[name]
    folder = tmp_path / "data"
    for file, where, names, first in (
        (train, train_pictures, ("a.png", "b.png"), 1),
        (val, val_pictures, ("c.png",), 7),
    ):
        write(folder / file, content(names, first))
        for position, base in enumerate(names):
            picture(folder / where.format(base), seed=first + position)
    (folder / "README.dataset.txt").write_text("about")
    expected = {
        "train": [("a.png", 1, [[0, 1, 10, 9]], [0]), ("b.png", 2, [[1, 1, 11, 9]], [1])],
        "val": [("c.png", 7, [[0, 1, 10, 9]], [0])],
        "test": [],
    }
    (folder / "__MACOSX").mkdir()
    write(folder / "__MACOSX" / "._train.json", "rubbish")
    (folder / ".DS_Store").write_bytes(b"x")
    wrapped = tmp_path / "wrapped" / "inner"
    wrapped.parent.mkdir()
    archives = {
        "plain": zipped(folder, tmp_path / "a.zip"),
        "wrapped": zipped(folder, tmp_path / "b.zip", "my_boxes/"),
        "twice": zipped(folder, tmp_path / "c.zip", "export/my_boxes/"),
        "backslashes": zipped(folder, tmp_path / "d.zip", "my_boxes/", lambda n: n.replace("/", "\\")),
    }
    folder.rename(wrapped)
    for path in (wrapped, wrapped.parent, *archives.values()):
        assert is_detection_data(path), path
        data = load_detection(path)
        assert shape(data) == expected, path
        assert data.class_names == ("cat", "dog") and data.report.faults == {} and not data.report.notes
        for item in (*data.train, *data.val):
            assert open_detection_image(item).size == (20, 16)


def test_what_a_file_name_says():
    says = {
        "instances_train2017.json": "train", "val.json": "val", "_annotations.coco.json": None, "result.json": None,
        "Validation_Set.json": "val", "instances_default.json": None, "test-annotations.json": "test",
        "captions_train2017.json": None, "person_keypoints_val2017.json": None, "image_info_test2017.json": None,
        "trainval.json": None, "train_val.json": None, "TRAIN.JSON": "train", "labels_test.json": "test",
    }  # fmt: skip
    assert {name: split_of_file(name) for name in says} == says


def test_captions_beside_boxes_are_left_alone(tmp_path):
    for word in ("train", "val"):
        write(tmp_path / f"annotations/instances_{word}2017.json", content(["a.png"]))
        write(tmp_path / f"annotations/captions_{word}2017.json", {**content(["a.png"]), "categories": []})
        write(tmp_path / f"annotations/person_keypoints_{word}2017.json", content(["absent.png"]))
        picture(tmp_path / f"{word}2017/a.png")
    data = load_detection(tmp_path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1, 1, 0]


# ------------------------------------------------------------------ one file of all pictures


@pytest.fixture
def label_studio(tmp_path) -> Path:
    """result.json beside images/, 40 pictures."""
    root = tmp_path / "project"
    names = [f"images/{i:04d}.png" for i in range(40)]
    write(root / "result.json", content(names))
    for name in names:
        picture(root / name)
    return root


@pytest.mark.parametrize(
    "place", ["result.json", "annotations/instances_default.json", "images/result.json", "coco.json"]
)
def test_one_file_is_the_test_split_until_it_is_divided(label_studio, place):
    (label_studio / place).parent.mkdir(exist_ok=True)
    (label_studio / "result.json").rename(label_studio / place)
    for path in (label_studio, label_studio / place):
        data = load_detection(path)
        assert [len(part) for part in (data.train, data.val, data.test)] == [0, 0, 40]
        assert "brings no splits: all of its 40 pictures are the test split" in data.report.lines()[0]


def test_dividing_depends_on_seed_and_name_alone(label_studio, tmp_path):
    whole = load_detection(label_studio, seed=0)
    names = {s: {i.path.name for i in getattr(whole, s)} for s in ("train", "val", "test")}
    assert sum(map(len, names.values())) == 40 and all(names.values())
    assert 14 <= len(names["train"]) <= 26 and 6 <= len(names["test"]) <= 18  # about 50, 20 and 30 %
    assert "divided by their names (seed 0): " in whole.report.lines()[0]
    archive = zipped(label_studio, tmp_path / "project.zip", "project/")
    assert (
        shape(load_detection(archive, seed=0))
        == shape(whole)
        == shape(load_detection(label_studio / "result.json", seed=0))
    )
    assert shape(load_detection(label_studio, seed=1)) != shape(whole)
    # Half of the pictures, in another order, under other ids: each stays where it was.
    few = [f"images/{i:04d}.png" for i in range(38, -1, -2)]
    write(label_studio / "result.json", content(few, first=500))
    half = load_detection(label_studio, seed=0)
    for split, before in names.items():
        assert {i.path.name for i in getattr(half, split)} == {n for n in before if int(n[:4]) % 2 == 0}


def test_dividing_what_is_too_small_is_refused(tmp_path):
    lonely = next(
        name for name in (f"{i}.png" for i in range(99)) if not _divided(tmp_path / name.removesuffix(".png"), name)
    )
    with pytest.raises(DataError, match="dividing its 1 pictures leaves none for training; sort them into train"):
        load_detection(tmp_path / lonely.removesuffix(".png"), seed=0)


def _divided(folder: Path, name: str) -> bool:
    write(folder / "one.json", content([name]))
    picture(folder / name)
    try:
        return bool(load_detection(folder, seed=0).train)
    except DataError:
        return False


def test_a_file_whose_name_says_a_split_becomes_it(label_studio):
    path = (label_studio / "result.json").rename(label_studio / "train.json")
    assert len(load_detection(path, seed=0).train) == 40 and len(load_detection(path).test) == 40
    assert len(load_detection(label_studio, seed=0).train) == 40


def test_data_with_splits_do_not_change_with_the_seed(tmp_path):
    write(tmp_path / "train.json", content(["a.png", "b.png"]))
    picture(tmp_path / "train/a.png"), picture(tmp_path / "train/b.png")
    assert shape(load_detection(tmp_path, seed=3)) == shape(load_detection(tmp_path))


def test_layouts_that_cannot_be_known_are_refused(tmp_path):
    write(tmp_path / "first.json", content(["a.png"]))
    write(tmp_path / "second.json", content(["b.png"]))
    with pytest.raises(
        DataError, match="several COCO files.*say no split: 'first.json', 'second.json'; expected train/"
    ):
        load_detection(tmp_path)
    assert is_detection_data(tmp_path)
    write(tmp_path / "more" / "valid" / "_annotations.coco.json", content(["a.png"]))
    write(tmp_path / "more" / "val" / "_annotations.coco.json", content(["a.png"]))
    with pytest.raises(DataError, match="several COCO files of the split 'val'"):
        load_detection(tmp_path / "more")
    (tmp_path / "none").mkdir()
    write(tmp_path / "none" / "via_project.json", {"_via_settings": {}, "_via_img_metadata": {}})
    write(tmp_path / "none" / "0001.json", {"version": "5", "shapes": [], "imagePath": "0001.jpg"})
    assert not is_detection_data(tmp_path / "none")
    with pytest.raises(DataError, match="holds no COCO annotations; expected .*YOLO.*Pascal VOC"):
        load_detection(tmp_path / "none")


# ------------------------------------------------------------------ encodings and names of pictures


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-8"])
def test_encodings_of_json(tmp_path, encoding):
    text = json.dumps(content(["café.png"]), ensure_ascii=False)
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "test.json").write_text(mark + text, encoding=encoding)
    picture(tmp_path / "test" / "café.png")
    for path in (tmp_path, zipped(tmp_path, tmp_path.with_suffix(".zip"))):
        assert len(load_detection(path).test) == 1
    with pytest.raises(DataError, match="no UTF-8 text.*save it as UTF-8"):
        (tmp_path / "test.json").write_bytes(b"\xff" + text.encode("latin-1"))
        load_detection(tmp_path)


NAMES = {
    "plain": ("a.png", "a.png"),
    "composed on disk": (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.png")),
    "decomposed on disk": (unicodedata.normalize("NFC", "é/café.png"), unicodedata.normalize("NFD", "é/café.png")),
    "folders": ("day/1/a.png", "day/1/a.png"),
    "backslashes": ("day\\1\\a.png", "day/1/a.png"),
    "dots": ("./day/./a.png", "day/a.png"),
    "up and down": ("day/../a.png", "a.png"),
    "percent": ("my%20cat%20%C3%A9.png", "my cat é.png"),
    "percent that is meant": ("100%25.png", "100%25.png"),
    "capitals": ("IMG_1.JPG.png", "img_1.jpg.PNG"),
    "the split's folder": ("test/a.png", "a.png"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_names_of_pictures(tmp_path, kind):
    said, stored = NAMES[kind]
    write(tmp_path / "test.json", content([said]))
    picture(tmp_path / "test" / stored)
    for path in (tmp_path, zipped(tmp_path, tmp_path.with_suffix(".zip"))):
        (item,) = load_detection(path).test
        assert open_detection_image(item).size == (20, 16)


def test_an_absolute_name_inside_the_data_is_read(tmp_path):
    write(tmp_path / "d" / "test.json", content([str(tmp_path / "d" / "test" / "a.png")]))
    picture(tmp_path / "d" / "test" / "a.png")
    assert load_detection(tmp_path / "d").test[0].path == tmp_path / "d" / "test" / "a.png"


@pytest.mark.parametrize(
    "name",
    ["../../secret.png", "test/../../../secret.png", "..\\..\\secret.png", "/etc/secret.png", "C:\\x\\secret.png",
     "c:/secret.png", "\\\\server\\secret.png", "file:///etc/secret.png", "https://example.org/secret.png",
     "%2e%2e/%2e%2e/secret.png", "{outside}"],
)  # fmt: skip
def test_names_that_leave_the_data_are_refused(tmp_path, name):
    outside = picture(tmp_path / "secret.png")
    folder = tmp_path / "data" / "inner"
    write(folder / "test.json", content([name.replace("{outside}", str(outside))]))
    picture(folder / "test" / "a.png")
    for path in (folder, folder / "test.json", zipped(folder, tmp_path / "z.zip")):
        for missing in ("error", "skip"):
            with pytest.raises(DataError, match="file_name .* leads out of .*expected names relative"):
                load_detection(path, missing_images=missing)


def test_links_that_leave_the_data_are_refused(tmp_path):
    outside = picture(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "data"
    write(folder / "test.json", content(["a.png"]))
    (folder / "test").mkdir()
    os.symlink(outside, folder / "test" / "a.png")
    with pytest.raises(DataError, match="is a link that leads out of the data folder, to .*elsewhere"):
        load_detection(folder)
    write(folder / "test.json", content(["more/a.png"]))
    (folder / "test" / "a.png").unlink()
    os.symlink(outside.parent, folder / "test" / "more")
    with pytest.raises(DataError, match="is a link that leads out of the data folder"):
        load_detection(folder)
    # What the user links as a whole is the data: the folder of pictures, or the data set itself.
    write(folder / "test.json", content(["a.png"]))
    (folder / "test" / "more").unlink()
    (folder / "test").rmdir()
    os.symlink(outside.parent, folder / "test")
    os.symlink(folder, tmp_path / "linked")
    assert len(load_detection(folder).test) == len(load_detection(tmp_path / "linked").test) == 1
    os.symlink("a.png", outside.parent / "b.png")  # inside
    write(folder / "test.json", content(["b.png"]))
    assert len(load_detection(folder).test) == 1


def test_two_pictures_that_differ_in_capitals_are_two(tmp_path):
    write(tmp_path / "test.json", content(["a.png", "A.png"]))
    picture(tmp_path / "test" / "a.png"), picture(tmp_path / "test" / "A.png", seed=1)
    assert [i.path.name for i in load_detection(tmp_path).test] == ["a.png", "A.png"]
    write(tmp_path / "test.json", content(["a.PNG"]))
    with pytest.raises(DataError, match="names 1 of 1 pictures that are absent"):
        load_detection(tmp_path)


def test_one_picture_under_two_ids_and_in_two_splits_is_said(tmp_path):
    write(tmp_path / "train.json", content(["a.png", "b.png", "./a.png"]))
    write(tmp_path / "test.json", content(["b.png"]))
    picture(tmp_path / "images" / "a.png"), picture(tmp_path / "images" / "b.png")
    with pytest.warns(
        UserWarning, match="1 pictures are listed under more than one id.*1 pictures of the training split"
    ):
        data = load_detection(tmp_path)
    assert len(data.train) == 3


def test_a_class_folder_set_with_json_of_its_own_stays_one(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / "train" / name / "1.png")
    write(tmp_path / "dataset.json", {"class_names": ["cat", "dog"], "template": "a {}."})
    write(tmp_path / "dataset_info.json", {"features": {"image": {}, "label": {}}})
    assert not is_detection_data(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from duotune import load_dataset

        assert load_dataset(tmp_path).class_names == ("cat", "dog")


def test_training_and_validation_in_one_file(tmp_path):
    for name in ("trainval", "test"):
        write(tmp_path / "annotations" / f"instances_{name}.json", content([f"{name}.png"]))
        picture(tmp_path / "images" / f"{name}.png")
    data = load_detection(tmp_path)
    assert [i.path.stem for i in data.train] == ["trainval"] and [i.path.stem for i in data.test] == ["test"]
    write(tmp_path / "annotations" / "instances_train.json", content(["train.png"]))
    picture(tmp_path / "images" / "train.png")
    assert [i.path.stem for i in load_detection(tmp_path).train] == ["train"]
    for name in ("train", "test"):
        (tmp_path / "annotations" / f"instances_{name}.json").unlink()
    alone = load_detection(tmp_path)  # one file of all pictures, which training divides
    assert [i.path.stem for i in alone.test] == ["trainval"] and "brings no splits" in alone.report.notes[0]


def test_annotations_in_capitals_and_pictures_in_data(tmp_path):
    for name in ("TRAIN", "VAL"):
        write(tmp_path / "a" / "Annotations" / f"{name}.JSON", content(["1.png"]))
        picture(tmp_path / "a" / "Images" / name / "1.png")
    data = load_detection(tmp_path / "a")
    assert [len(data.train), len(data.val)] == [1, 1] and data.report.faults == {}
    write(tmp_path / "b" / "labels.json", content(["1.png"]))
    picture(tmp_path / "b" / "data" / "1.png")
    assert len(load_detection(tmp_path / "b").test) == 1
