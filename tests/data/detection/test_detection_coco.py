"""COCO JSON in its layouts, and what is wrong in annotation files."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest

from duotune.data.detection import load_detection
from duotune.data.detection.report import KINDS
from duotune.errors import ClassNamesError, ConfigError, DataError, UnknownNameError

IMAGES = [(7, "b.png", 40, 30), (3, "a.png", 20, 20)]
BOXES = [(1, 7, 5, [1, 2, 10, 20]), (2, 3, 2, [0, 0, 20, 20]), (3, 7, 2, [4, 4, 4.5, 4])]
CATEGORIES = {5: "hair_drier", 2: "cat"}


def test_flat_folder(tmp_path, write_coco):
    write_coco(tmp_path / "train.json", tmp_path / "train", IMAGES, BOXES, CATEGORIES)
    write_coco(tmp_path / "val.json", tmp_path / "val", IMAGES[:1], [], CATEGORIES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pictures without boxes are legal
        data = load_detection(tmp_path)
    assert data.name == tmp_path.name and data.class_names == ("cat", "hair_drier") and data.category_ids == (2, 5)
    assert [i.image_id for i in data.train] == [3, 7] and [len(i) for i in data.train] == [1, 2]
    item = data.train[1]
    assert (item.path, item.width, item.height) == (tmp_path / "train" / "b.png", 40, 30)
    assert item.boxes.dtype == np.float32 and item.boxes.tolist() == [[1, 2, 11, 22], [4, 4, 8.5, 8]]
    assert item.labels.tolist() == [1, 0] and item.ids.tolist() == [1, 3]
    assert item.iscrowd.tolist() == [False, False] and item.area.tolist() == [200, 18]
    assert [len(i) for i in data.val] == [0] and data.val[0].boxes.shape == (0, 4) and data.test == ()
    assert data.report.counts == {"empty_images": 1} and data.report.faults == {}
    assert (data.report.images, data.report.boxes) == (3, 3)
    assert data.boxes_per_class().tolist() == [2, 1]
    assert str(data).splitlines()[1].split() == ["train", "2", "images", "3", "boxes"]


def test_crowds_and_areas_are_kept(tmp_path, write_coco):
    rows = [
        {"id": 9, "image_id": 3, "category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 1, "area": 55.5},
        {"id": 10, "image_id": 3, "category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 0, "area": 0},
    ]
    data = load_detection(write_coco(tmp_path / "x.json", tmp_path, IMAGES, rows, CATEGORIES))
    assert data.name == "x" and data.train == data.val == ()
    item = data.test[0]
    assert item.iscrowd.tolist() == [True, False] and item.area.tolist() == [55.5, 100]
    assert data.boxes_per_class("test").tolist() == [1, 0]
    assert item.keep(~item.iscrowd).ids.tolist() == [10]


def test_roboflow_with_its_dummy_category(tmp_path, write_coco):
    categories = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": "dog", "supercategory": "animals"},
    ]
    for word, rows in {"train": [(1, 3, 1, [0, 0, 5, 5])], "valid": [(1, 3, 2, [0, 0, 5, 5])], "test": []}.items():
        write_coco(tmp_path / word / "_annotations.coco.json", tmp_path / word, IMAGES, rows, categories)
    data = load_detection(tmp_path, name="mine")
    assert data.name == "mine" and data.class_names == ("cat", "dog") and data.category_ids == (1, 2)
    assert data.train[0].labels.tolist() == [0] and data.val[0].labels.tolist() == [1] and len(data.test) == 2
    assert data.report.counts["dummy_categories"] == 1 and data.report.faults == {}
    # a first category that has boxes is a class
    write_coco(
        tmp_path / "test/_annotations.coco.json", tmp_path / "test", IMAGES, [(1, 3, 0, [0, 0, 5, 5])], categories
    )
    assert load_detection(tmp_path).class_names == ("animals", "cat", "dog")


def test_a_dummy_may_be_called_as_its_only_class(tmp_path, write_coco):
    categories = [{"id": i, "name": "raccoon", "supercategory": ["none", "raccoon"][i]} for i in range(2)]
    write_coco(tmp_path / "t.json", tmp_path, IMAGES, [(1, 3, 1, [0, 0, 5, 5])], categories)
    assert load_detection(tmp_path / "t.json").class_names == ("raccoon",)


def test_coco_2017(tmp_path, write_coco):
    root = tmp_path / "coco"
    for split in ("train", "val"):
        write_coco(
            root / f"annotations/instances_{split}2017.json", root / f"{split}2017", IMAGES, BOXES, {2: "cat", 5: "dog"}
        )
    data = load_detection("coco2017", root=tmp_path)
    assert (data.name, data.class_names, len(data.train), len(data.val), data.test) == (
        "coco2017", ("cat", "dog"), 2, 2, ())  # fmt: skip
    assert data.val[0].path == root / "val2017" / "a.png"
    assert load_detection(root).category_ids == (2, 5)
    with pytest.raises(DataError, match="needs root"):
        load_detection("coco2017")
    with pytest.raises(DataError, match="no annotations/instances_train2017.json"):
        load_detection("coco2017", root=root)


def test_annotations_of_which_none_belongs_to_an_image_are_no_data_set(tmp_path, write_coco):
    rows = [(1, "3", 2, [0, 0, 5, 5]), (2, "7", 2, [0, 0, 5, 5])]  # text, where the images have numbers
    write_coco(tmp_path / "x.json", tmp_path, IMAGES, rows, CATEGORIES)
    with pytest.raises(DataError, match="none of the 2 annotations belongs to a listed image, e.g. image_id '3'"):
        load_detection(tmp_path / "x.json")


def test_boxes_that_are_wrong_are_counted_and_named(tmp_path, write_coco):
    images = [*IMAGES, (9, "c.png", 10, 10)]
    rows = [
        (1, 7, 2, [-3, 5, 10, 10]),  # cut at the left
        (2, 7, 2, [35, 25, 10, 10]),  # cut at right and bottom
        (3, 7, 2, [30, 25, 10.004, 5]),  # rounding: cut, but no fault
        (4, 7, 2, [50, 5, 10, 10]),  # beside the picture
        (5, 7, 2, [5, 5, -2, 3]),
        (6, 7, 2, [5, 5, 0, 3]),
        (7, 7, 2, [5, 5, math.nan, 3]),
        (8, 7, 2, [5, 5, math.inf, 3]),
        (9, 7, 2, [5, 5, 3]),
        (10, 7, 2, None),
        (11, 7, 2, ["1", 5, 3, 3]),
        (12, 99, 2, [1, 1, 3, 3]),  # of no picture
        (3, 3, 2, [1, 1, 3, 3]),  # id 3 again
        {"image_id": 3, "category_id": 2, "bbox": [2, 2, 3, 3]},  # without id
    ]
    write_coco(tmp_path / "x.json", tmp_path, images, rows, CATEGORIES)
    with pytest.warns(UserWarning, match="2 boxes reached outside their picture.*image 7, annotation 1") as caught:
        data = load_detection(tmp_path / "x.json")
    assert len(caught) == 1
    expected = {
        "clipped": 2, "outside": 1, "empty": 2, "not_finite": 2, "malformed": 3, "orphaned": 1, "doubled_ids": 1,
        "empty_images": 1,
    }  # fmt: skip
    assert data.report.counts == expected
    assert data.report.boxes == 5 == sum(map(len, data.test))
    dropped = sum(expected[kind] for kind in ("outside", "empty", "not_finite", "malformed", "orphaned"))
    assert data.report.boxes + dropped == len(rows)  # nothing is lost silently
    boxes = data.test[1].boxes
    assert boxes.tolist() == [[0, 5, 7, 15], [35, 25, 40, 30], [30, 25, 40, 30]]
    assert data.test[0].ids.tolist() == [3, -1]
    text = str(data.report)
    assert "annotation 12 of image 99" in text and all(KINDS[kind] in text for kind in expected)
    assert json.loads(data.report.to_json())["examples"]["malformed"][1].endswith("None")


def test_absent_pictures(tmp_path, write_coco):
    images = [*IMAGES, *((i, f"{i}.png", 9, 9) for i in range(10, 15))]
    rows = [*BOXES, (5, 10, 2, [0, 0, 5, 5])]
    write_coco(tmp_path / "x.json", tmp_path, images, rows, CATEGORIES)
    for i in range(10, 15):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(DataError, match=r"names 5 of 7 pictures that are absent: '.*10.png', .* and 2 more"):
        load_detection(tmp_path / "x.json")
    with pytest.warns(UserWarning, match="5 pictures were listed but absent"):
        data = load_detection(tmp_path / "x.json", missing_images="skip")
    assert [i.image_id for i in data.test] == [3, 7] and data.report.counts == {"missing_images": 5}
    with pytest.raises(ConfigError, match="must be 'error' or 'skip', not 'ignore'"):
        load_detection(tmp_path / "x.json", missing_images="ignore")


@pytest.mark.parametrize("images, rows, categories, error, match", [
    (IMAGES, BOXES, {5: " ", 2: "cat"}, ClassNamesError, "1 of 2 categories have no name"),
    (IMAGES, BOXES, [{"id": 2, "name": "cat"}, {"id": 5}], ClassNamesError, "1 of 2 categories have no name"),
    (IMAGES, BOXES, {5: "cat", 2: "cat"}, ClassNamesError, "more than one is 'cat'"),
    (IMAGES, BOXES, [{"id": 2, "name": "a"}, {"id": 5, "name": "b"}, {"id": 5, "name": "c"}], DataError, "'b' and 'c'"),
    (IMAGES, BOXES, {2: "cat"}, DataError, "categories that it does not list: '5'"),
    (IMAGES, [], {}, DataError, "no categories"),
    ([*IMAGES, IMAGES[0]], BOXES, CATEGORIES, DataError, "ids must be different; given twice: '7'"),
    ([(1, "a.png", 0, 5)], [], CATEGORIES, DataError, "image 1: width and height must be pixels"),
    ([{"id": 1, "file_name": "a.png"}], [], CATEGORIES, DataError, "width and height"),
    ([{"id": 1, "width": 5, "height": 5}], [], CATEGORIES, DataError, "image 1 has no file name"),
    ([{"file_name": "a.png"}], [], CATEGORIES, DataError, "1 of its images have no 'id'"),
    ([], [], CATEGORIES, DataError, "no pictures found"),
])  # fmt: skip
def test_files_that_contradict_themselves(images, rows, categories, error, match, tmp_path, write_coco):
    write_coco(tmp_path / "x.json", tmp_path, images, rows, categories, draw=False)
    (tmp_path / "a.png").touch()
    (tmp_path / "b.png").touch()
    with pytest.raises(error, match=match):
        load_detection(tmp_path / "x.json")


def test_splits_must_agree_on_their_classes(tmp_path, write_coco):
    write_coco(tmp_path / "train.json", tmp_path / "train", IMAGES, BOXES, CATEGORIES)
    write_coco(tmp_path / "val.json", tmp_path / "val", IMAGES, [], {2: "dog", 5: "hair_drier"})
    with pytest.raises(DataError, match="category 2 is called both 'cat' and 'dog'"):
        load_detection(tmp_path)


def test_other_class_names(tmp_path, write_coco):
    write_coco(tmp_path / "x.json", tmp_path, IMAGES, BOXES, {5: "n1", 2: "n1"})
    with pytest.raises(ClassNamesError, match="more than one"):
        load_detection(tmp_path / "x.json")
    assert load_detection(tmp_path / "x.json", class_names=["cat", "dog"]).class_names == ("cat", "dog")
    with pytest.raises(ConfigError, match="2 categories, class_names 1"):
        load_detection(tmp_path / "x.json", class_names=["cat"])


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": []}', '{"images": [], "annotations": {}, "categories": []}']
)
def test_what_is_no_coco_file(content, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="x.json"):
        load_detection(tmp_path / "x.json")


def test_names_and_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'coco2017'"):
        load_detection("coco2018")
    with pytest.raises(DataError, match="no such file or folder"):
        load_detection(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no COCO annotations"):
        load_detection(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown options \['shot'\]; this kind of data set takes \['class_names'"):
        load_detection(tmp_path, shot=1)
    with pytest.raises(ConfigError, match=r"coco2017: unknown options \['class_names'\]"):
        load_detection("coco2017", root=tmp_path, class_names=["x"])


@pytest.mark.parametrize("category", [[1], {"id": 1}, None])
def test_a_category_id_that_is_neither_number_nor_text(tmp_path, write_coco, category):
    rows = [{"id": 1, "image_id": 3, "category_id": category, "bbox": [0, 0, 5, 5]}]
    path = write_coco(tmp_path / "x.json", tmp_path, IMAGES, rows, CATEGORIES)
    with pytest.raises(DataError, match="1 of its annotations have no 'category_id' that is a number or a text"):
        load_detection(path)


def test_an_annotation_id_that_is_a_list_is_no_id(tmp_path, write_coco):
    rows = [{"id": [1], "image_id": 3, "category_id": 2, "bbox": [0, 0, 5, 5]}]
    data = load_detection(write_coco(tmp_path / "x.json", tmp_path, IMAGES, rows, CATEGORIES))
    assert data.test[0].ids.tolist() == [-1]


def test_category_ids_of_several_names_are_said(tmp_path, write_coco):
    categories = [{"id": 2, "name": "cat"}, {"id": 2, "name": "hair_drier"}]
    path = write_coco(tmp_path / "x.json", tmp_path, IMAGES, BOXES, categories)
    with pytest.raises(DataError, match="category ids must mean one class each; 2 is both 'cat' and 'hair_drier'"):
        load_detection(path)
