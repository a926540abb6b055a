"""Pascal VOC folders: corners, difficult objects, lists of splits, XML that is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from duotune.data.detection import is_detection_data, load_detection
from duotune.data.detection.torch_dataset import open_detection_image
from duotune.errors import ConfigError, DataError

# (name, xmin, ymin, xmax, ymax, difficult) in a picture of 40 x 20
OBJECTS = {"a": [("dog", 1, 1, 40, 20, 0), ("cat", 11, 6, 20, 15, 1)], "b": [("cat", 2, 3, 2, 3, 0)], "c": []}
BOXES = {"a": [[0, 0, 40, 20], [10, 5, 20, 15]], "b": [[1, 2, 2, 3]], "c": []}


def xml(
    objects, size="<size><width>40</width><height>20</height><depth>3</depth></size>", name="x.jpg", head=""
) -> str:
    rows = "".join(
        f"<object><name>{n}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{d}</difficult><bndbox>"
        f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for n, x1, y1, x2, y2, d in objects
    )
    return f"{head}<annotation><folder>VOC</folder><filename>{name}</filename>{size}{rows}</annotation>"


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(path)


def write(root: Path, annotations: str, pictures: str, names: str = "abc", **more) -> Path:
    for name in names:
        (root / annotations).mkdir(parents=True, exist_ok=True)
        (root / annotations / f"{name}.xml").write_text(xml(OBJECTS[name], name=f"{name}.jpg", **more))
        picture(root / pictures / f"{name}.jpg")
    return root


def lists(root: Path, **names: str) -> None:
    (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for split, ids in names.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{i}\n" for i in ids))


def stems(data, split: str) -> str:
    return "".join(Path(item.member or item.path).stem for item in getattr(data, split))


def check(data, **names) -> None:
    assert data.class_names == ("cat", "dog") and data.category_ids == (1, 2)
    for split in ("train", "val", "test"):
        assert stems(data, split) == names.get(split, "")
        for stem, item in zip(names.get(split, ""), getattr(data, split)):
            assert item.boxes.tolist() == BOXES[stem] and (item.width, item.height) == (40, 20)
            assert item.labels.tolist() == [("cat", "dog").index(row[0]) for row in OBJECTS[stem]]
            assert item.iscrowd.tolist() == [bool(row[5]) for row in OBJECTS[stem]]
            assert open_detection_image(item).size == (40, 20)


def zipped(folder: Path, prefix: str = "") -> Path:
    path = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def test_voc_as_it_is_published(tmp_path):
    root = write(tmp_path / "VOCdevkit/VOC2007", "Annotations", "JPEGImages")
    lists(root, train="a", val="bc", trainval="abc", test="x", cat_train=("a  1",))
    archive = zipped(root, "VOCdevkit/VOC2007/").rename(tmp_path / "voc.zip")
    for path in (root, root.parent, archive):
        assert is_detection_data(path)
        check(load_detection(path), train="a", val="bc")
    (root / "ImageSets/Main/train.txt").unlink()
    (root / "ImageSets/Main/val.txt").unlink()
    check(load_detection(root), train="abc")
    lists(root, train="ax")
    with pytest.raises(DataError, match="train.txt names 1 of 2 pictures that have no annotation: 'x'"):
        load_detection(root)


@pytest.mark.parametrize(
    "train, train_pictures, val, val_pictures",
    [
        ("train", "train", "valid", "valid"),
        ("Train/Annotations", "Train/JPEGImages", "Val/Annotations", "Val/JPEGImages"),
        ("annotations/train", "images/train", "annotations/val", "images/val"),
    ],
)
def test_folders_of_splits(tmp_path, train, train_pictures, val, val_pictures):
    root = write(write(tmp_path / "d", train, train_pictures, "ab"), val, val_pictures, "c")
    check(load_detection(root), train="ab", val="c")
    check(load_detection(zipped(root, "wrap/")), train="ab", val="c")


@pytest.mark.parametrize(
    "annotations, pictures",
    [(".", "."), ("images", "images"), ("Annotations", "images"), ("annotations", "JPEGImages")],
)
def test_data_without_splits(tmp_path, annotations, pictures):
    root = write(tmp_path / "d", annotations, pictures)
    data = load_detection(root)
    check(data, test="abc")
    assert "brings no splits: all of its 3 pictures" in data.report.lines()[0]
    if pictures == "images":
        divided = load_detection(root, seed=0)
        assert sorted(stems(divided, "train") + stems(divided, "val") + stems(divided, "test")) == ["a", "b", "c"]
    picture(root / pictures / "unlabelled.jpg")
    with pytest.warns(UserWarning, match="1 pictures had no annotation file and were left out .*unlabelled.jpg"):
        check(load_detection(root), test="abc")


def test_boxes_that_are_changed_are_counted(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", "a")
    objects = [
        ("dog", 0, 0, 10, 10, 0),  # counted from 0
        ("dog", 1.5, 2.25, 10.5, 10, 0),
        ("dog", 30, 10, 60, 20, 0),
        ("dog", 20, 10, 10, 20, 0),
        ("dog", "x", 10, 10, 20, 0),
        ("dog", 1, 1, 8, 8, "yes"),
    ]
    (tmp_path / "Annotations/a.xml").write_text(xml(objects))
    with pytest.warns(
        UserWarning, match="1 boxes reached outside.*1 boxes had no width.*1 boxes were not four numbers"
    ):
        data = load_detection(tmp_path)
    assert data.test[0].boxes.tolist() == [[0, 0, 10, 10], [0.5, 1.25, 10.5, 10], [29, 9, 40, 20], [0, 0, 8, 8]]
    assert data.test[0].iscrowd.tolist() == [False, False, False, True]


def test_parts_of_an_object_are_no_objects(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", "a")
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    text = xml([("dog", 5, 5, 20, 20, 0)]).replace("<pose>", f"{part}<pose>")
    (tmp_path / "Annotations/a.xml").write_text(text)
    assert load_detection(tmp_path).test[0].boxes.tolist() == [[4, 4, 20, 20]]


@pytest.mark.parametrize(
    "size", ["", "<size><width>0</width><height>0</height></size>", "<size><width>x</width></size>"]
)
def test_sizes_come_from_the_picture_where_there_are_none(tmp_path, size):
    write(tmp_path, "Annotations", "JPEGImages", size=size)
    with pytest.warns(UserWarning, match="3 pictures had no width and height"):
        check(load_detection(tmp_path), test="abc")


def test_a_picture_is_found_by_its_annotation_or_as_that_names_it(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", "ab")
    (tmp_path / "JPEGImages/b.jpg").rename(tmp_path / "JPEGImages/other.jpg")
    with pytest.raises(DataError, match="1 of 2 annotations have no picture of their name: .*b.xml"):
        load_detection(tmp_path)
    with pytest.warns(UserWarning, match="1 pictures were listed but absent"):
        assert stems(load_detection(tmp_path, missing_images="skip"), "test") == "a"
    (tmp_path / "Annotations/b.xml").write_text(xml(OBJECTS["b"], name="other.jpg"))
    assert [i.path.name for i in load_detection(tmp_path).test] == ["a.jpg", "other.jpg"]
    (tmp_path / "Annotations/b.xml").write_text(xml(OBJECTS["b"], name="../../other.jpg"))
    with pytest.raises(DataError, match="filename .* leads out of"):
        load_detection(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
def test_encodings_of_xml(tmp_path, encoding):
    write(tmp_path, "Annotations", "JPEGImages", "a")
    head = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    (tmp_path / "Annotations/a.xml").write_bytes(xml([("café", 1, 1, 9, 9, 0)], head=head).encode(encoding))
    assert load_detection(tmp_path).class_names == ("café",)


DOCTYPE = "has a document type"
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
HARM = {
    "entities that multiply": (f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]><annotation>&l9;</annotation>', DOCTYPE),
    "entities of other files": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', DOCTYPE
    ),
    "a document type elsewhere": ('<!DOCTYPE annotation SYSTEM "http://example.org/x.dtd"><annotation/>', DOCTYPE),
    "nesting": ("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>", "nests elements more than"),
    "no end": ("<annotation><object>", "is not valid XML"),
    "an entity that is none": ("<annotation>&x;</annotation>", "is not valid XML"),
    "an encoding that is none": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not valid XML"),
    "another document": ("<annotations><annotation/></annotations>", "expected <annotation>, found <'annotations'>"),
    "an object without a name": ("<annotation><object><bndbox/></object></annotation>", "an object has no name"),
    "difficult to say": (xml([("cat", 1, 1, 5, 5, "perhaps")]), "difficult must be 0 or 1, not 'perhaps'"),
    "nothing": ("<annotation></annotation>", "no object in any of its annotations"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_that_is_refused(tmp_path, harm, encoding):
    text, says = HARM[harm]
    write(tmp_path, "Annotations", "JPEGImages", "a")
    (tmp_path / "Annotations/a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=says) as caught:
        load_detection(tmp_path)
    assert len(str(caught.value)) < 500 and "root:" not in str(caught.value)


def test_other_class_names(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages")
    assert load_detection(tmp_path, class_names=["kitten", "puppy"]).class_names == ("kitten", "puppy")
    with pytest.raises(ConfigError, match="2 classes, class_names 1"):
        load_detection(tmp_path, class_names=["x"])


def test_two_folders_of_one_split_are_refused(tmp_path):
    write(write(tmp_path, "valid", "valid", "a"), "val", "val", "b")
    with pytest.raises(DataError, match="several folders of the split 'val'"):
        load_detection(tmp_path)


def test_lists_of_file_names(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages")
    lists(tmp_path, train=["a.jpg"], val=["JPEGImages/b.jpg"], test="c")
    check(load_detection(tmp_path), train="a", val="b", test="c")
    lists(tmp_path, train=["x"], val=["y"], test=["z"])
    with pytest.raises(DataError, match="no list names a picture that has an annotation"):
        load_detection(tmp_path)


def test_annotations_that_would_be_left_out_are_refused(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", "ab")
    write(tmp_path, "Annotations/more", "JPEGImages/more", "c")
    with pytest.raises(DataError, match=r"more.c.xml lies in a folder inside .*Annotations"):
        load_detection(tmp_path)


def test_another_xml_file_comes_first(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages")
    (tmp_path / "Annotations" / "0.xml").write_text("<meta/>")
    with pytest.raises(DataError, match="0.xml is no Pascal VOC file: expected <annotation>, found <'meta'>"):
        load_detection(tmp_path)


def test_boxes_of_which_none_can_be_used(tmp_path):
    write(tmp_path, "Annotations", "JPEGImages", "a")
    (tmp_path / "Annotations" / "a.xml").write_text(xml([("cat", 30, 15, 11, 6, 0)], name="a.jpg"))
    with pytest.raises(DataError, match="none of its boxes can be used: 1 boxes had no width or no height"):
        load_detection(tmp_path)
