"""What ids, marks, sizes, boxes and outlines of annotation files mean, whatever type they were written with."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from duotune.data.detection import load_detection
from duotune.data.detection.values import as_id, as_mark, as_number, outline_box
from duotune.errors import ClassNamesError, DataError

SIDES = 40, 30


def coco():
    """Two pictures of 40 x 30, three boxes, two classes; ids from 1."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "iscrowd": 0, "area": 150},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 5, 8.5, 9], "iscrowd": 0, "area": 70},
            {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 40, 30], "iscrowd": 0, "area": 1000},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("1.png", "2.png"):
        Image.new("RGB", SIDES, "red").save(folder / name)
    return folder


@pytest.fixture
def read(pictures):
    """read(content): the items of the test split, without a warning; read(content, warns=...): with one."""

    def load(content, warns: str | None = None):
        path = pictures / "x.json"
        path.write_text(json.dumps(content))
        if warns is not None:
            with pytest.warns(UserWarning, match=warns):
                return load_detection(path)
        return load_detection(path)

    return load


def same(data, other) -> bool:
    rows = lambda d: [
        (i.image_id, i.width, i.height, i.boxes.tolist(), i.labels.tolist(), i.iscrowd.tolist(), i.area.tolist())
        for i in d.test
    ]
    return rows(data) == rows(other) and data.class_names == other.class_names


def each(content, part, **values):
    for row in content[part]:
        for key, change in values.items():
            row[key] = change(row[key])
    return content


# ------------------------------------------------------------------ ids


def test_whole_numbers_are_ids_in_every_form(read):
    expected = read(coco())
    assert expected.report.faults == {}
    for part, key in (
        ("images", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("categories", "id"),
    ):
        data = read(each(coco(), part, **{key: float}))
        assert same(data, expected) and data.category_ids == (1, 2)
        assert all(type(i.image_id) is int for i in data.test) and all(type(c) is int for c in data.category_ids)
    both = each(each(coco(), "images", id=str), "annotations", image_id=str)
    assert [i.image_id for i in read(both).test] == ["1", "2"]
    both = each(each(coco(), "categories", id=lambda i: f"c{i}"), "annotations", category_id=lambda i: f"c{i}")
    assert read(both).category_ids == ("c1", "c2") and same(read(both), expected)
    assert same(read(each(coco(), "annotations", id=str)), expected)
    assert read(each(coco(), "annotations", id=float)).test[0].ids.tolist() == [1, 2]
    assert read(each(coco(), "annotations", id=lambda i: i * 2**70)).test[0].ids.tolist() == [-1, -1]


def test_text_against_number_is_told_as_that(read):
    one_error = r"{} '1' is text where the {} have the number 1; write both in the same type"
    with pytest.raises(DataError, match=one_error.format("category_id", "categories")):
        read(each(coco(), "annotations", category_id=str))
    with pytest.raises(DataError, match="category_id 1 is a number where the categories have the text '1'"):
        read(each(coco(), "categories", id=str))
    with pytest.raises(DataError, match=r"image_id '1' where images have ids like [12]; .*numbers and text differ"):
        read(each(coco(), "annotations", image_id=str))
    mixed = coco()
    mixed["annotations"][2]["image_id"] = "2"
    with pytest.raises(DataError, match="image_id '2' is text where the images have the number 2"):
        read(mixed)
    mixed = coco()
    mixed["images"].append({**mixed["images"][0], "id": "1"})
    with pytest.raises(DataError, match="'1' is there as a text and as a number"):
        read(mixed)


@pytest.mark.parametrize("value", [None, True, 1.5, math.nan, math.inf, [1], {}])
def test_what_is_no_id_is_told_by_name_and_example(read, value):
    for part, key in (
        ("images", "id"),
        ("annotations", "image_id"),
        ("annotations", "category_id"),
        ("categories", "id"),
    ):
        wrong = coco()
        wrong[part][0][key] = value
        with pytest.raises(DataError, match=f"1 of its {part} have no '{key}' that is a number or a text") as caught:
            read(wrong)
        assert "\n" not in str(caught.value)


def test_single_values():
    assert [as_id(v) for v in (1, 1.0, "1", " 1", True, 1.5, None, math.nan, [1], -0.0)] == (
        [1, 1, "1", " 1", None, None, None, None, None, 0]
    )
    assert [as_number(v) for v in (1, "2.5", " 3 ", True, "x", None, math.inf, 10**400, "nan", "1e999")] == (
        [1.0, 2.5, 3.0, None, None, None, None, None, None, None]
    )
    yes, no = (
        (1, 1.0, True, "1", "1.0", "true", "True", " YES ", "y"),
        (0, 0.0, None, False, "0", "false", "No", "", "null"),
    )
    assert all(as_mark(v) is True for v in yes) and all(as_mark(v) is False for v in no)
    assert all(as_mark(v) is None for v in (2, -1, 0.5, math.nan, "maybe", [], {}, [0]))


# ------------------------------------------------------------------ crowds


@pytest.mark.parametrize("none", [None, 0.0, "0", "false", "no", False, ""])
def test_no_crowd_in_every_form(read, none):
    assert same(read(each(coco(), "annotations", iscrowd=lambda _: none)), read(coco()))


@pytest.mark.parametrize("mark", [1, 1.0, "1", "true", "yes", True])
def test_all_boxes_are_crowds(read, mark):
    data = read(each(coco(), "annotations", iscrowd=lambda _: mark), warns="3 boxes, all of a split, are crowds")
    assert all(i.iscrowd.all() for i in data.test) and data.boxes_per_class("test").tolist() == [0, 0]


def test_a_crowd_that_is_neither_yes_nor_no(read):
    with pytest.raises(DataError, match="annotation 1: iscrowd must be 0 or 1, not 'perhaps'"):
        read(each(coco(), "annotations", iscrowd=lambda _: "perhaps"))


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("change", [
    lambda i: i.pop("width"), lambda i: i.update(width=-1, height=-1), lambda i: i.update(width=None),
    lambda i: i.update(height=0), lambda i: i.update(height="tall"), lambda i: i.update(width=math.nan),
    lambda i: i.update(width=True), lambda i: i.update(width=40.5), lambda i: i.update(width=[40]),
])  # fmt: skip
def test_sizes_that_cannot_be_are_read_from_the_picture(read, change):
    content, expected = coco(), read(coco())
    change(content["images"][0])
    data = read(content, warns="1 pictures had no width and height that can be used")
    assert same(data, expected)


def test_sizes_as_text_and_as_fractions(read):
    expected = read(coco())
    assert same(read(each(coco(), "images", width=str, height=str)), expected)
    assert same(read(each(coco(), "images", width=float, height=float)), expected)


# ------------------------------------------------------------------ class names


def test_names_of_classes(read):
    assert read(each(coco(), "categories", name=lambda n: {"cat": 0, "dog": 1.0}[n])).class_names == ("0", "1")
    assert read(each(coco(), "categories", name=lambda n: f"{n} e\u0301")).class_names == ("cat \u00e9", "dog \u00e9")
    with pytest.raises(ClassNamesError, match="more than one is '\u00e9'"):
        read(each(coco(), "categories", name=lambda n: {"cat": "e\u0301", "dog": "\u00e9"}[n]))
    for blank in ("", "  ", None, True, ["cat"]):
        with pytest.raises(ClassNamesError, match="2 of 2 categories have no name"):
            read(each(coco(), "categories", name=lambda _, blank=blank: blank))
    data = read(
        each(coco(), "categories", name=lambda n: {"cat": "Cat", "dog": "cat "}[n]), warns="differ .* in capitals"
    )
    assert data.class_names == ("Cat", "cat ")
    for absent in ({}, {"categories": None}, {"categories": {"1": "cat"}}):
        content = {**coco(), **absent} if absent else {k: v for k, v in coco().items() if k != "categories"}
        with pytest.raises(DataError, match="'categories' is no list of objects"):
            read(content)


# ------------------------------------------------------------------ boxes


@pytest.mark.parametrize("bbox", [None, [], [1, 2, 3], "1 2 3 4", [1, 2, 10, None], [True, 2, 3, 4], {"x": 1}, 7])
def test_a_box_without_four_numbers_is_counted(read, bbox):
    content = coco()
    content["annotations"][0]["bbox"] = bbox
    data = read(content, warns="1 boxes were not four numbers and were dropped")
    assert data.report.boxes == 2 and data.report.counts["malformed"] == 1


def test_no_box_that_can_be_used_is_refused(read):
    content = coco()
    for row in content["annotations"]:
        del row["bbox"]
    with pytest.raises(DataError, match=r"none of its annotations has a box .*3 boxes were not four.*'bbox': \[x, y"):
        read(content)
    with pytest.raises(DataError, match="3 boxes lay outside their picture"):
        read(each(coco(), "annotations", bbox=lambda _: [100, 100, 5, 5]))
    with pytest.raises(DataError, match="all 3 boxes lie within the first pixel .* shares of its size"):
        read(each(coco(), "annotations", bbox=lambda _: [0.2, 0.3, 0.25, 0.5]))
    with pytest.raises(DataError, match="3 boxes held NaN or infinity"):
        read(each(coco(), "annotations", bbox=lambda _: [0, 0, 10**99 * 1e300, 5]))
    assert len(read({**coco(), "annotations": []}).test) == 2  # pictures of nothing are data


def test_corners_instead_of_sizes_are_suspected(read):
    content = coco()
    for row, box in zip(content["annotations"], ([10, 10, 25, 25], [20, 5, 39, 29], [25, 20, 38, 30])):
        row["bbox"] = box
    data = read(content, warns=r"all would fit as corners \[x1, y1, x2, y2\]")
    assert data.report.counts["clipped"] == data.report.counts["corners"] == 3
    content["annotations"][0]["bbox"] = [10, 10, 5, 5]  # no corners
    assert "corners" not in read(content, warns="were cut at its edge").report.counts


def test_boxes_at_one_place_are_told(read):
    content = coco()
    content["annotations"] += [
        {**content["annotations"][0], "id": 4},
        {**content["annotations"][0], "id": 5, "category_id": 2},
    ]
    data = read(
        content, warns="1 boxes stand twice .* with one class; .*1 boxes stand at one place with different classes"
    )
    assert data.report.boxes == 5


# ------------------------------------------------------------------ outlines


def in_words(box):
    """A box as polygons in every nesting that exporters write."""
    x, y, w, h = box
    flat = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "list of polygons": [flat],
        "two parts": [[x, y, x + w / 2, y, x, y + h], [x + w / 2, y, x + w, y + h, x + w, y]],
        "flat": flat,
        "points": [[x, y], [x + w, y + h], [x, y + h]],
        "list of points": [[[x, y], [x + w, y + h], [x, y + h]]],
        "an empty part": [[], flat],
        "texts": [[str(number) for number in flat]],
    }


@pytest.mark.parametrize("form", in_words([0, 0, 1, 1]))
@pytest.mark.parametrize("bbox", ["absent", None, [], [0, 0, 0, 0]])
def test_polygons_are_boxes(read, form, bbox):
    content = coco()
    for row in content["annotations"]:
        row["segmentation"] = in_words(row["bbox"])[form]
        row.update(bbox=bbox) if bbox != "absent" else row.pop("bbox")
    data = read(content, warns="3 boxes could not be used and were taken from the polygons or masks")
    assert same(data, read(coco()))


def test_outlines_never_replace_a_usable_box(read):
    content = coco()
    for row in content["annotations"]:
        row["segmentation"] = [[0, 0, 3, 0, 3, 3]]
    assert same(read(content), read(coco())) and read(content).report.faults == {}


@pytest.mark.parametrize("outline", [
    [], [[]], [[1, 2, 3]], "x", [[1, "a"]], 5, {"size": [30, 40]}, {"counts": "x"},
    {"size": [40, 30], "counts": [1200]}, {"size": [30, 40], "counts": [5]}, {"size": [30, 40], "counts": [1200]},
    {"size": [30, 40], "counts": "~~~"}, {"size": [30, 40], "counts": [-5, 1205]}, {"size": None, "counts": []},
])  # fmt: skip
def test_outlines_that_are_none(read, outline):
    content = coco()
    content["annotations"][0].update(bbox=None, segmentation=outline)
    data = read(content, warns="1 boxes were not four numbers and were dropped")
    assert data.report.boxes == 2


def test_masks_are_bounded_as_an_independent_library_has_it():
    """COCO's own mask functions, as faster-coco-eval has them in C++, on masks of random shapes."""
    masks = pytest.importorskip("faster_coco_eval.core.mask")
    random = np.random.default_rng(0)
    for number in range(60):
        height, width = (int(side) for side in random.integers(1, 40, 2))
        mask = random.random((height, width)) < (0.02, 0.5, 0.98)[number % 3]
        if number % 4 == 0:  # one rectangle, as most objects are
            mask = np.zeros((height, width), bool)
            y, x = random.integers(0, height), random.integers(0, width)
            mask[y : y + 9, x : x + 7] = True
        packed = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        text = packed["counts"].decode() if isinstance(packed["counts"], bytes) else packed["counts"]
        flat = mask.flatten(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist() + [flat.size]
        runs = np.diff([0, *edges]).tolist()
        x, y, w, h = np.asarray(masks.toBbox(packed), dtype=float).reshape(-1)
        expected = (x, y, x + w, y + h) if mask.any() else None
        for counts in (text, runs):
            assert outline_box({"size": [height, width], "counts": counts}, width, height) == expected
