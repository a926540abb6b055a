import json
import zipfile

import pytest

from duotune.data import load_dataset
from duotune.data.images import open_image
from duotune.errors import ClassNamesError, DataError


def counts(data):
    return [len(data.train), len(data.val), len(data.test)]


def zipped(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(class_folders, val):
    class_folders("pets/train", {"red_fox": 4, "cat": 3})
    class_folders(f"pets/{val}", {"red_fox": 1, "cat": 2})
    root = class_folders("pets/test", {"cat": 2}).parent
    (root / "train" / "cat" / "notes.txt").write_text("no picture")
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (root / "README.md").write_text("no picture")
    data = load_dataset(root)
    assert data.name == "pets" and data.class_names == ("cat", "red fox")
    assert counts(data) == [7, 3, 2]
    assert {i.label for i in data.test} == {0}
    assert all(i.path.parent.name == ("cat", "red_fox")[i.label] for i in data.train)


def test_one_folder_is_split_by_seed(class_folders):
    root = class_folders("animals", {"cat": 10, "dog": 20})
    data = load_dataset(root, seed=1)
    assert counts(data) == [15, 6, 9]
    assert load_dataset(root, seed=1) == data
    assert load_dataset(root, seed=2).test != data.test
    assert counts(load_dataset(root, val_share=0, test_share=0.5)) == [15, 0, 15]


def test_class_called_train_is_a_class(class_folders):
    assert load_dataset(class_folders("toys", {"train": 5, "car": 5})).class_names == ("car", "train")


@pytest.mark.parametrize("prefix", ["", "wrapped/"])
def test_archive_equals_folder(class_folders, tmp_path, prefix):
    class_folders("pets/train", {"red_fox": 4, "cat": 3})
    root = class_folders("pets/test", {"red_fox": 1, "cat": 1}).parent
    (root / "dataset.json").write_text(json.dumps({"template": "a drawing of a {}."}))
    folder, archive = load_dataset(root), load_dataset(zipped(root, tmp_path / "pets.zip", prefix))
    assert archive.class_names == folder.class_names and archive.template == folder.template == "a drawing of a {}."
    assert archive.name == "pets"
    for ours, theirs in zip(archive.train + archive.test, folder.train + folder.test, strict=True):
        assert ours.path == tmp_path / "pets.zip" and ours.label == theirs.label
        assert ours.short_key == theirs.short_key
        assert open_image(ours).tobytes() == open_image(theirs).tobytes()


def test_single_class_folders_in_archive(class_folders, tmp_path):
    root = class_folders("x", {"cat": 6, "dog": 6})
    assert load_dataset(zipped(root, tmp_path / "x.zip")).class_names == ("cat", "dog")


def test_archive_ignores_foreign_entries(class_folders, tmp_path):
    path = zipped(class_folders("x", {"cat": 6, "dog": 6}), tmp_path / "x.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/cat/._000.png", b"x")
        archive.writestr("cat/.thumb.png", b"x")
        archive.writestr("cat/info.txt", b"x")
    assert sum(counts(load_dataset(path))) == 12


def test_description_orders_and_names_classes(class_folders):
    root = class_folders("x", {"red_fox": 3, "cat": 3})
    description = root / "dataset.json"
    description.write_text(
        json.dumps(
            {"name": "tiny", "class_names": ["red fox", "cat"], "templates": ["a {}.", "the {}."], "licence": "MIT"}
        )
    )
    data = load_dataset(root)
    assert data.name == "tiny" and data.class_names == ("red fox", "cat") and data.templates == ("a {}.", "the {}.")
    assert all(i.path.parent.name == ("red_fox", "cat")[i.label] for i in data.train)
    assert load_dataset(root, name="mine", template="{}!").template == "{}!"
    description.write_text(json.dumps({"class_names": {"cat": "house cat", "red_fox": "vulpes"}}))
    data = load_dataset(root)
    assert data.class_names == ("house cat", "vulpes")
    assert all(i.path.parent.name == ("cat", "red_fox")[i.label] for i in data.train)


def test_numbered_folders_with_names(class_folders):
    root = class_folders("x", {"0": 3, "1": 3, "10": 3, **{str(i): 3 for i in range(2, 10)}})
    data = load_dataset(root, class_names=[f"kind {chr(65 + i)}" for i in range(11)])
    assert all(int(i.path.parent.name) == i.label for i in data.train)


def test_faulty_descriptions(class_folders):
    root = class_folders("x", {"fox": 3, "cat": 3})
    for text, error, match in (
        ("{", DataError, "dataset.json is not valid JSON"),
        ("[]", DataError, "must hold a JSON object, not a list"),
        ('{"class_names": ["fox", "dog"]}', DataError, "does not name the class folders 'cat'"),
        ('{"class_names": {"fox": "fox"}}', DataError, "does not name the class folders 'cat'"),
        ('{"class_names": 3}', DataError, "must be a list of names"),
        ('{"class_names": ["fox", "cat", "dog"]}', DataError, "1 of 3 classes have no pictures: 'dog'"),
        ('{"template": "a photo"}', ClassNamesError, "one '{}'"),
    ):
        (root / "dataset.json").write_text(text)
        with pytest.raises(error, match=match):
            load_dataset(root)


def test_faulty_folders(class_folders, write_image, tmp_path):
    with pytest.raises(ClassNamesError, match=r"'red fox' from \['red fox', 'red_fox'\]"):
        load_dataset(class_folders("doubled", {"red_fox": 2, "red fox": 2}))
    with pytest.raises(DataError, match="1 of 3 classes have no pictures: 'dog'"):
        load_dataset(class_folders("hole", {"cat": 2, "dog": 0, "fox": 2}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no class folders with pictures \(no pictures\); expected train/CLASS"):
        load_dataset(tmp_path / "empty")
    write_image(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match="1 pictures lie outside class folders"):
        load_dataset(tmp_path / "flat")
    class_folders("mixed/train", {"cat": 2})
    class_folders("mixed/extra", {"cat": 2})
    with pytest.raises(DataError, match=r"has \['train'\] but also pictures in 'extra'"):
        load_dataset(tmp_path / "mixed")
    for val in ("train", "val", "valid"):
        class_folders(f"twice/{val}", {"cat": 2})
    with pytest.raises(DataError, match=r"several validation folders, \['val', 'valid'\]"):
        load_dataset(tmp_path / "twice")


@pytest.mark.parametrize("folders", [("train", "test"), ("train2017", "val2017"), ("train",)])
def test_split_folders_are_no_classes(write_image, tmp_path, folders):
    for folder in folders:
        write_image(tmp_path / folder / "1.png")
    with pytest.raises(DataError, match=f"lie directly in .*'{folders[0]}'.*class folders .*/CLASS/"):
        load_dataset(tmp_path)
    write_image(tmp_path / "boat" / "1.png")  # beside another class, "train" is one
    assert load_dataset(tmp_path).class_names == tuple(sorted({*folders, "boat"}))


@pytest.mark.parametrize(
    "file", ["train/_annotations.coco.json", "annotations/instances_train2017.json", "train.json", "test.json"]
)
def test_pictures_with_boxes_are_no_labelled_pictures(write_image, tmp_path, file):
    write_image(tmp_path / "data" / "train" / "1.png")
    (tmp_path / "data" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "data" / file).write_text("{}")
    with pytest.raises(DataError, match="has COCO annotations.*load_detection reads it"):
        load_dataset(tmp_path / "data")
    if "/" not in file:
        with pytest.raises(DataError, match="has COCO annotations.*load_detection reads it"):
            load_dataset(zipped(tmp_path / "data", tmp_path / "data.zip"))


def test_empty_class_folder_in_one_split_is_fine(class_folders):
    class_folders("x/train", {"cat": 2, "dog": 2})
    assert counts(load_dataset(class_folders("x/test", {"cat": 2, "dog": 0}).parent)) == [4, 0, 2]


def test_nested_pictures_and_link_loops(class_folders):
    root = class_folders("x", {"cat": 3, "cat/kittens": 4, "dog": 3})
    (root / "cat" / "loop").symlink_to(root)
    assert sum(counts(load_dataset(root))) == 10


def test_broken_archive(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK not really")
    with pytest.raises(DataError, match="cannot read the zip archive .*bad.zip"):
        load_dataset(tmp_path / "bad.zip")


def test_test_pictures_stay_whichever_classes_there_are_and_in_whatever_order(class_folders):
    counts = {"ape": 9, "bee": 12, "cat": 10, "dog": 11}
    kept = lambda data: {i.short_key for i in data.test if "ape" not in i.key}
    data = load_dataset(class_folders("a/pics", counts))
    backwards = class_folders("b/pics", counts)
    (backwards / "dataset.json").write_text(json.dumps({"class_names": sorted(counts)[::-1]}))
    fewer = class_folders("c/pics", {name: count for name, count in counts.items() if name != "ape"})
    assert kept(load_dataset(backwards)) == kept(data) == kept(load_dataset(fewer)) and len(kept(data)) == 10
