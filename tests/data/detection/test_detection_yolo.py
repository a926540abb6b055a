"""YOLO label folders: with and without data.yaml, polygons, what is clipped and what is refused."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from duotune.data.detection import is_detection_data, load_detection
from duotune.data.detection.torch_dataset import open_detection_image
from duotune.errors import ClassNamesError, ConfigError, DataError

LINES = {"a": "0 0.5 0.5 0.5 0.25\n1 0.25 0.25 0.1 0.1\n", "b": "1 0.1 0.1 0.9 0.2 0.5 0.8\n", "c": "0 0.5 0.5 1 1\n"}
BOXES = {  # of pictures of 40 x 20
    "a": [[10, 7.5, 30, 12.5], [8, 4, 12, 6]], "b": [[4, 2, 36, 16]], "c": [[0, 0, 40, 20]], "d": [],
}  # fmt: skip
LABELS = {"a": [0, 1], "b": [1], "c": [0], "d": []}


def picture(path: Path, seed: int = 0, **save) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)


def write(root: Path, pictures: str, labels: str, names: str, lines=LINES) -> None:
    """Pictures of 40 x 20 and label files; a name without lines has no label file."""
    for name in names:
        picture(root / pictures / f"{name}.jpg", seed=ord(name))
        if name in lines:
            file = root / labels / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(lines[name])


def check(data, **names) -> None:
    assert data.class_names == ("cat", "dog")
    for split in ("train", "val", "test"):
        items = getattr(data, split)
        stems = [Path(item.member or item.path).stem for item in items]
        assert stems == list(names.get(split, ""))
        for stem, item in zip(stems, items):
            np.testing.assert_allclose(item.boxes, np.array(BOXES[stem]).reshape(-1, 4), atol=1e-5)
            assert item.labels.tolist() == LABELS[stem] and (item.width, item.height) == (40, 20)
            assert open_detection_image(item).size == (40, 20) and not item.iscrowd.any()


def zipped(folder: Path, prefix: str = "") -> Path:
    path = folder.parent / f"{folder.name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


LAYOUTS = {
    "images first": ("images/train", "labels/train", "images/val", "labels/val"),
    "splits first": ("train/images", "train/labels", "valid/images", "valid/labels"),
    "capitals": ("Images/Train", "Labels/Train", "Images/Val", "Labels/Val"),
    "beside": ("train", "train", "val", "val"),
    "deeper": ("images/train/day/1", "labels/train/day/1", "images/val/day", "labels/val/day"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("described", ["data.yaml", "classes.txt"])
def test_layouts_on_disk_and_zipped(tmp_path, layout, described):
    train, train_labels, val, val_labels = LAYOUTS[layout]
    root = tmp_path / "data"
    write(root, train, train_labels, "ad")
    write(root, val, val_labels, "bc")
    if described == "data.yaml":
        top = lambda path: path.split("/day")[0]
        (root / described).write_text(
            yaml.safe_dump({"train": top(train), "val": top(val), "names": ["cat", "dog"], "nc": 2})
        )
    else:
        (root / described).write_text("cat\ndog\n\n")
    paths = [root, zipped(root), *([root / described] if described == "data.yaml" else [])]
    (tmp_path / "wrapped").mkdir()
    paths.append(zipped(root.rename(tmp_path / "wrapped" / "data"), "export/data/"))
    for path in [paths[1], paths[-1], tmp_path / "wrapped" / "data"]:
        assert is_detection_data(path)
        with pytest.warns(UserWarning, match="1 pictures have no label file; they are kept, as pictures of nothing"):
            check(load_detection(path), train="ad", val="bc")


@pytest.mark.parametrize("names", [["cat", "dog"], {0: "cat", 1: "dog"}, {"0": "cat", "1": "dog"}])
@pytest.mark.parametrize(
    "base, train, val",
    [
        (None, "../train/images", "../valid/images"),  # as Roboflow writes it, for another working directory
        (".", "./train/images", "valid/images/"),
        ("{root}", "train/images", "valid/images"),
        (None, "{root}/train/images", "{root}/valid/images"),
        ("/content/datasets/absent", "train/images", "valid/images"),
        (None, "/content/datasets/absent/train/images", "C:\\data\\valid\\images"),
        ("../data", "train/images", "valid/images"),
        (None, ["train/images"], ["valid/images"]),
        (None, "train", "valid"),
        (None, "train.txt", "val.txt"),
    ],
)
def test_paths_in_a_yaml(tmp_path, names, base, train, val):
    root = tmp_path / "data"
    write(root, "train/images", "train/labels", "ab")
    write(root, "valid/images", "valid/labels", "c")
    (root / "train.txt").write_text("./train/images/a.jpg\r\ntrain/images/b.jpg\n\n")
    (root / "val.txt").write_text(f"{root}/valid/images/c.jpg\n")
    put = lambda value: value.replace("{root}", str(root)) if isinstance(value, str) else value
    content = {"train": put(train), "val": put(val), "names": names, "test": "../test/images"}
    (root / "data.yaml").write_text(yaml.safe_dump(content | ({"path": put(base)} if base else {})))
    for path in (root, root / "data.yaml"):
        check(load_detection(path), train="ab", val="c")


def test_a_yaml_may_point_elsewhere_on_this_machine(tmp_path):
    write(tmp_path / "far", "images/train", "labels/train", "ab")
    write(tmp_path / "far", "images/val", "labels/val", "c")
    (tmp_path / "near").mkdir()
    for base in (str(tmp_path / "far"), "../far"):
        content = {"path": base, "train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
        (tmp_path / "near" / "mine.yaml").write_text(yaml.safe_dump(content))
        check(load_detection(tmp_path / "near" / "mine.yaml"), train="ab", val="c")


@pytest.mark.parametrize("pictures, labels", [("images", "labels"), (".", "."), ("obj_train_data", "obj_train_data")])
def test_data_without_splits(tmp_path, pictures, labels):
    root = tmp_path / "data"
    write(root, pictures, labels, "abc")
    (root / ("obj.names" if pictures == "obj_train_data" else "classes.txt")).write_text("cat\ndog\n")
    data = load_detection(root)
    check(data, test="abc")
    assert "brings no splits: all of its 3 pictures" in data.report.lines()[0]
    divided = [i.path.name for s in ("train", "val", "test") for i in getattr(load_detection(root, seed=0), s)]
    assert sorted(divided) == ["a.jpg", "b.jpg", "c.jpg"]


def test_links_that_lead_back_show_no_picture_twice(tmp_path):
    write(tmp_path, "images/train", "labels/train", "ab")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "images/train/again").symlink_to(tmp_path / "images")
    (tmp_path / "images/train/more").symlink_to(tmp_path / "images/train")
    check(load_detection(tmp_path), train="ab")


def test_a_list_of_pictures_below_a_folder_that_is_not_there(tmp_path):
    write(tmp_path, "obj_train_data", "obj_train_data", "ab")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: {0: cat, 1: dog}\n")
    check(load_detection(tmp_path), train="ab")


def test_encodings_and_line_ends(tmp_path):
    write(tmp_path / "data", "images/train", "labels/train", "a", {"a": "x"})
    (tmp_path / "data" / "labels/train/a.txt").write_bytes(b"\xef\xbb\xbf" + LINES["a"].replace("\n", "\r\n").encode())
    (tmp_path / "data" / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    check(load_detection(tmp_path / "data"), train="a")


def test_an_exif_orientation_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "images/train/a.jpg", exif=exif)
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.25 1 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\n")
    (item,) = load_detection(tmp_path).train
    assert (item.width, item.height) == (20, 40) == open_detection_image(item).size
    assert item.boxes.tolist() == [[0, 0, 20, 20]]


def one(tmp_path, line: str, names=("cat", "dog"), **more) -> Path:
    root = tmp_path / "data"
    shutil.rmtree(root, ignore_errors=True)
    write(root, "images/train", "labels/train", "ac", {"a": line, "c": LINES["c"]})
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", "names": list(names), **more}))
    return root


@pytest.mark.parametrize(
    "line, says",
    [
        ("0 20 10 5 5", "20 is no share in 0..1"),
        ("0 0.5 0.5 1.2 0.5", "1.2 is no share"),
        ("0 -0.1 0.5 0.5 0.5", "-0.1 is no share"),
        ("0 0.5 0.5 nan 0.5", 'expected "class cx cy w h"'),
        ("0 0.5 0.5 0.5", 'expected "class cx cy w h"'),
        ("0 0.5 0.5 0.5 0.5 0.9", "a sixth number, as of predictions with scores, is no label"),
        ("0,0.5,0.5,0.5,0.5", 'expected "class cx cy w h"'),
        ("cat 0.5 0.5 0.5 0.5", 'expected "class cx cy w h"'),
        ("2 0.5 0.5 0.5 0.5", "line 1: class 2 has no name; the data set names 2 classes"),
        ("-1 0.5 0.5 0.5 0.5", "class '-1' is no whole number"),
        ("0.5 0.5 0.5 0.5 0.5", "class '0.5' is no whole number"),
        ("0 0.1 0.1 0.9 0.2 0.5 1.8", "1.8 is no share"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, says):
    with pytest.raises(DataError, match=r"labels/train/a.txt, line 1.*") as caught:
        load_detection(one(tmp_path, line))
    assert says in str(caught.value)


def test_lines_that_are_changed_are_counted(tmp_path):
    with pytest.warns(UserWarning, match="1 boxes reached outside.*1 boxes had no width"):
        data = load_detection(one(tmp_path, "0 0.9 0.5 0.4 0.5\n0 0.5 0.5 0 0.5\n0.0 0.5 0.5 1.0004 1\n"))
    np.testing.assert_allclose(data.train[0].boxes, [[28, 5, 40, 15], [0, 0, 40, 20]], atol=1e-5)
    with pytest.warns(UserWarning, match="1 boxes stand twice"):
        load_detection(one(tmp_path, "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5"))


def test_keypoints_follow_their_box(tmp_path):
    data = load_detection(one(tmp_path, "1 0.5 0.5 0.5 0.5 0.1 0.1 2 9 9 0", kpt_shape=[2, 3]))
    assert data.train[0].boxes.tolist() == [[10, 5, 30, 15]] and data.train[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "content, error, says",
    [
        ({"names": ["cat"], "nc": 2}, ClassNamesError, "nc says 2 classes, names has 1"),
        ({"nc": 2}, ClassNamesError, "does not say what its classes are called"),
        ({"names": ["cat", "cat"]}, ClassNamesError, "more than one is 'cat'"),
        ({"names": ["cat", ""]}, ClassNamesError, "1 of 2 categories have no name"),
        ({"names": ["cat", True]}, ClassNamesError, "write it in quotes"),
        ({"names": "cat"}, ClassNamesError, "names must be a list"),
        ({"names": {-1: "cat"}}, ClassNamesError, "whole numbers from 0"),
        ({"names": ["cat", "dog"], "train": "pictures"}, DataError, "no folder 'pictures' of its train pictures"),
        ({"names": ["cat", "dog"], "train": 5}, DataError, "train, val and test must be folders"),
    ],
)
def test_yamls_that_are_refused(tmp_path, content, error, says):
    root = one(tmp_path, LINES["a"])
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "images/train", **content}))
    with pytest.raises(error, match=says):
        load_detection(root)


def test_numbers_are_names_too(tmp_path):
    assert load_detection(one(tmp_path, LINES["a"], names=(7, 8))).class_names == ("7", "8")
    assert load_detection(one(tmp_path, LINES["a"]), class_names=["kitten", "puppy"]).class_names == ("kitten", "puppy")
    with pytest.raises(ConfigError, match="2 classes, class_names 1"):
        load_detection(one(tmp_path, LINES["a"]), class_names=["x"])


def test_labels_that_are_absent_or_alone(tmp_path):
    root = one(tmp_path, LINES["a"])
    (root / "labels/train/z.txt").write_text(LINES["a"])
    with pytest.warns(UserWarning, match="1 label files have no picture of their name .*z.txt"):
        load_detection(root)
    write(root, "images/test", "labels/test", "b", {})
    (root / "data.yaml").write_text(
        yaml.safe_dump({"train": "images/train", "test": "images/test", "names": ["cat", "dog"]})
    )
    (root / "labels/train/z.txt").unlink()
    data = load_detection(root)
    assert data.test == () and "the 1 pictures of 'test' have no label files and were left out" in data.report.lines()
    shutil.rmtree(root / "labels")
    with pytest.raises(DataError, match="none of its 2 train pictures has a label file, such as labels/train/a.txt"):
        load_detection(root)
    (root / "data.yaml").write_text(yaml.safe_dump({"train": "list.txt", "names": ["cat", "dog"]}))
    (root / "list.txt").write_text("images/train/a.jpg\nimages/train/gone.jpg\n")
    with pytest.raises(DataError, match="names 1 pictures that are absent: 'images/train/gone.jpg'"):
        load_detection(root)


def test_a_picture_that_cannot_be_read_is_left_to_the_check_of_pictures(tmp_path):
    from duotune.data.detection.torch_dataset import check_detection_images

    root = one(tmp_path, LINES["a"])
    (root / "images/train/a.jpg").write_bytes(b"no picture")
    data = load_detection(root)
    good, report = check_detection_images(data.train, max_broken_share=0.5)
    assert [i.path.name for i in good] == ["c.jpg"] and "a.jpg" in next(iter(report.broken))


def test_a_broken_yaml_is_told(tmp_path):
    write(tmp_path, "images/train", "labels/train", "ab")
    (tmp_path / "data.yaml").write_text("names: [cat, dog\ntrain: images/train\n")
    with pytest.raises(DataError, match="data.yaml is not valid YAML"):
        load_detection(tmp_path)


def test_names_that_do_not_count_from_0(tmp_path):
    write(tmp_path, "images/train", "labels/train", "a")
    (tmp_path / "data.yaml").write_text("names: {1: cat, 2: dog}\ntrain: images/train\n")
    with pytest.raises(DataError, match="class 0 has no name; the data set names 2 classes, with numbers from 1 to 2"):
        load_detection(tmp_path)
