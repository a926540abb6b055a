"""Folders and archives as people have them: read rightly, or refused with the layout that was expected."""

import json
import unicodedata
import zipfile

import pytest

from duotune.data import load_dataset
from duotune.data.detection.tree import Tree
from duotune.data.images import close_containers, open_image
from duotune.errors import ClassNamesError, DataError

NFC, NFD = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")


@pytest.fixture(autouse=True)
def closed():
    yield
    close_containers()


@pytest.fixture
def tree(tmp_path, write_image):
    """tree("data", "train/cat/1.png", ...): pictures and, for other endings, files with the name as text."""

    def make(folder, *names):
        for number, name in enumerate(names):
            path = tmp_path / folder / name
            if name.endswith("/"):
                path.mkdir(parents=True, exist_ok=True)
            elif path.suffix.lower() in (".png", ".jpg", ".bmp", ".webp"):
                write_image(path, seed=number)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(name)
        return tmp_path / folder

    return make


def pack(folder, path, rename=lambda name: name):
    """A zip of a folder, its folders' own entries included."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            name = rename(file.relative_to(folder).as_posix() + ("/" if file.is_dir() else ""))
            archive.writestr(name, b"" if file.is_dir() else file.read_bytes())
    return path


def told(data):
    """Split -> {class name: file names}."""
    parts = {}
    for split in ("train", "val", "test"):
        for item in getattr(data, split):
            names = parts.setdefault(split, {}).setdefault(data.class_names[item.label], [])
            names.append(item.short_key.split("/")[-1])
    return parts


CATS = {"train": {"cat": ["1.png"], "dog": ["2.png"]}, "test": {"cat": ["3.png"], "dog": ["4.png"]}}


@pytest.mark.parametrize(
    "train, test",
    [
        ("Train", "Test"),
        ("TRAINING", "TESTING"),
        ("training_set", "test_set"),
        ("train/train", "test/test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train/images", "test/images"),
        ("wrap/deeper/train", "wrap/deeper/test"),
        ("images/train", "images/test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
    ],
)
def test_splits_in_every_spelling_and_depth(tree, tmp_path, train, test):
    names = [f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/cat/3.png", f"{test}/dog/4.png"]
    root = tree("pets", *names, "README.md", "__MACOSX/._x.png", ".git/x.png", "Thumbs.db")
    data = load_dataset(root)
    assert told(data) == CATS and data.name == "pets"
    for archive in (pack(root, tmp_path / "a.zip"), pack(root.parent, tmp_path.parent / f"{tmp_path.name}-b.zip")):
        assert told(load_dataset(archive)) == CATS
        archive.unlink()


def test_validation_folders_and_wrapped_class_folders(tree):
    root = tree("x", "out/train/cat/1.png", "out/Dev/cat/2.png", "out/labels.txt", "out/train/cat/notes.txt")
    assert told(load_dataset(root)) == {"train": {"cat": ["1.png"]}, "val": {"cat": ["2.png"]}}
    root = tree("y", *[f"wrap/in/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)])
    assert load_dataset(root).class_names == ("cat", "dog")


def test_junk_is_no_class_and_no_picture(tree):
    junk = ["__MACOSX/cat/._1.png", ".ipynb_checkpoints/1.png", ".git/a.png", "@eaDir/cat/1.png", "cat/@eaDir/1.png"]
    junk += ["cat/.1.png", "cat/Thumbs.db", ".DS_Store", "desktop.ini", "cat/.ipynb_checkpoints/1.png", "cat/._1.png"]
    root = tree("x", *[f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)], *junk)
    data = load_dataset(root)
    assert data.class_names == ("cat", "dog") and len(data.train + data.val + data.test) == 6


@pytest.mark.parametrize(
    "names, says",
    [
        (["train/cat/1.png", "test/1.png"], r"has \['train'\] but also pictures in 'test', whose split or classes"),
        (["train/cat/1.png", "extra/cat/1.png"], r"also pictures in 'extra'.*expected train/CLASS"),
        (["seg_train/cat/1.png", "seg_pred/seg_pred/1.png"], "also pictures in 'seg_pred'"),
        (["train/cat/1.png", "training/cat/1.png"], r"several training folders, \['train', 'training'\]; keep one"),
        (["train/cat/1.png", "test/cat/1.png", "eval/cat/1.png"], r"several test folders, \['eval', 'test'\]"),
        (["train/cat/1.png", "val/cat/1.png", "dev/cat/1.png"], "several validation folders"),
        (["cat/1.png", "dog/1.png", "stray.png"], "1 pictures lie outside class folders: 'stray.png'.*expected train"),
        (["train/cat/1.png", "train/stray.png"], "1 pictures lie outside class folders: 'train/stray.png'"),
        (["Train/1.png", "TEST/1.png"], "lie directly in 'TEST', 'Train', so their classes are not known"),
        (["train/1.png", "test/1.png", "unlabeled/1.png"], "lie directly in 'test', 'train', 'unlabeled'"),
        (
            ["images/1.png", "labels.csv"],
            "lie directly in 'images'.*if .*labels.csv has columns path,label, (give|unpack)",
        ),
        (["images/1.png", "masks/1.png"], "lie directly in 'images'.*classes are not known"),
        (["train/images/1.png", "test/images/2.png"], "lie directly in 'test/images', so their classes are not known"),
        (["train/images/1.png", "train/labels/1.png"], "lie directly in 'train/images', 'train/labels'"),
        (["train/images/1.png", "train/cat/1.png"], "lie directly in 'train/images'"),
        (["train/train/1.png", "test/test/1.png"], "lie directly in 'test/test', so"),
        (["train/cat/1.png", "train/dog/1.png", "test/unknown/1.png"], "all test pictures lie in 'unknown', which is"),
        (["1.png", "2.png", "labels.csv"], r"2 pictures lie outside class folders\); expected.*labels.csv has columns"),
        (
            ["animals/cat/1.png", "animals/dog/1.png", "tools/saw/1.png"],
            "'animals' holds no pictures itself.*'cat', 'd",
        ),
        (["train/animals/cat/1.png", "train/animals/dog/1.png"], "'animals' holds no pictures itself.*either may be"),
        (
            ["cat/train/1.png", "cat/test/2.png", "dog/train/1.png"],
            "'cat' holds pictures in 'test', 'train', so splits",
        ),
        (["cat/train/1.png", "dog/train/1.png"], "splits lie inside classes; expected train/CLASS"),
        (["train/Cat/1.png", "test/cat/1.png"], "class folders train/Cat and test/cat differ in capitals or s"),
        (
            ["train/red_fox/1.png", "train/ape/1.png", "test/red-fox/1.png", "test/ape/1.png"],
            "differ in capitals or signs",
        ),
        (["all/1.png"], "lie directly in 'all', so their classes are not known"),
        (["cat/1.png", "dog/"], "1 of 2 classes have no pictures: 'dog'"),
        (["wrap/cat/a/1.png", "dog/"], "'wrap'|have no pictures: 'dog'"),
        (["notes/a.txt"], r"no class folders with pictures \(no pictures\); expected"),
        ([f"{NFC}/1.png", f"{NFD}/2.png"], r"two folders 'caf.', which differ in how their accents are stored alone"),
        (["train/red_fox/1.png", "test/red fox/1.png"], "test/red fox and train/red_fox differ in capitals or signs"),
        (["red_fox/1.png", "red fox/1.png"], "'red fox' from"),
    ],
)
def test_what_cannot_be_known_is_refused(tree, tmp_path, names, says):
    root = tree("data", *names)
    for path in (root, pack(root, tmp_path / "data.zip")):
        with pytest.raises((DataError, ClassNamesError), match=says) as caught:
            load_dataset(path)
        assert "\n" not in str(caught.value)


def test_classes_in_folders_of_classes_are_read_once_they_are_named(tree):
    root = tree("x", *[f"{top}/{name}/{i}.png" for top in "ab" for name in "cd" for i in range(2)])
    (root / "dataset.json").write_text(json.dumps({"class_names": ["a", "b"]}))
    data = load_dataset(root)
    assert data.class_names == ("a", "b") and len(data.train + data.val + data.test) == 8


@pytest.mark.parametrize("place", ["dataset.json", "wrap/dataset.json", "wrap/in/dataset.json"])
def test_the_description_lies_at_any_depth_of_wrapping(tree, tmp_path, place):
    root = tree("x", *[f"wrap/in/{name}/{i}.png" for name in ("ape", "bee") for i in range(3)])
    (root / place).write_text(json.dumps({"class_names": ["bee", "ape"], "name": "zoo"}))
    for path in (root, pack(root, tmp_path / "x.zip")):
        data = load_dataset(path)
        assert data.class_names == ("bee", "ape") and data.name == "zoo"


def test_folders_that_the_description_gives_one_name_are_one_class(tree):
    root = tree("x", "train/red_fox/1.png", "test/red fox/2.png", "train/ape/3.png")
    (root / "dataset.json").write_text(json.dumps({"class_names": ["red fox", "ape"]}))
    assert told(load_dataset(root)) == {
        "train": {"red fox": ["1.png"], "ape": ["3.png"]},
        "test": {"red fox": ["2.png"]},
    }


def test_cases_of_one_letter_are_two_classes_if_both_are_everywhere(tree):
    root = tree("letters", *[f"{split}/{name}/1.png" for split in ("train", "test") for name in "aA"])
    assert load_dataset(root).class_names == ("A", "a")


def test_labels_are_names_whichever_classes_a_split_has(tree):
    root = tree("x", *[f"train/{name}/1.png" for name in "abcd"], "test/b/1.png", "test/d/2.png", "test/c/")
    data = load_dataset(root)
    assert told(data)["test"] == {"b": ["1.png"], "d": ["2.png"]} and data.class_names == tuple("abcd")


def test_accents_are_one_name_however_they_are_stored(tree, tmp_path):
    root = tree("x", f"train/{NFD}/1.png", f"test/{NFC}/2.png", "train/the/3.png")
    (root / "dataset.json").write_text(json.dumps({"class_names": {NFC: "coffee", "the": "tea"}}))
    assert load_dataset(root).class_names == ("coffee", "tea")
    (root / "dataset.json").unlink()
    for path in (root, pack(root, tmp_path / "x.zip")):
        data = load_dataset(path)
        assert told(data) == {"train": {NFC: ["1.png"], "the": ["3.png"]}, "test": {NFC: ["2.png"]}}
        for item in data.train + data.test:
            open_image(item)


def test_an_archive_with_backslashes_equals_the_folder(tree, tmp_path):
    root = tree("pics", *[f"{name}/{i}.png" for name in ("cat", "dog") for i in range(5)])
    path = pack(root, tmp_path / "win.zip", lambda name: ("pics/" + name).replace("/", "\\"))
    ours, theirs = load_dataset(path), load_dataset(root)
    assert told(ours) == told(theirs)
    for a, b in zip(ours.train + ours.test, theirs.train + theirs.test, strict=True):
        assert a.short_key == b.short_key and open_image(a).tobytes() == open_image(b).tobytes()


def archive_without_mark(path, content, **names):
    """A zip whose entries have names as raw bytes, without the mark of UTF-8."""
    with zipfile.ZipFile(path, "w") as archive:
        for stand_in in names:
            archive.writestr(stand_in, content)
    raw = path.read_bytes()
    for stand_in, name in names.items():
        assert len(stand_in) == len(name)
        raw = raw.replace(stand_in.encode(), name)
    path.write_bytes(raw)
    return path


def test_names_without_the_mark_of_utf8(tree, tmp_path):
    content = (tree("src", "1.png") / "1.png").read_bytes()
    utf8 = {"AAAAAAAAAAA": f"{NFC}/1.png".encode(), "BBBBBBBBBBB": f"{NFC}/2.png".encode()}
    data = load_dataset(archive_without_mark(tmp_path / "utf8.zip", content, **utf8))
    assert data.class_names == (NFC,) and open_image(data.train[0]).size == (12, 10)
    latin = {"AAAAAAAAAA": f"{NFC}/1.png".encode("latin-1")}
    with pytest.raises(DataError, match="named in an encoding that the archive does not tell.*UTF-8 names"):
        load_dataset(archive_without_mark(tmp_path / "latin.zip", content, **latin))
    file_alone = {"AAAAAAAAAA": "cat/é.png".encode("latin-1") + b"", "BBBBBBBBB": b"cat/2.png"}
    file_alone = {key[: len(name)]: name for key, name in file_alone.items()}
    data = load_dataset(archive_without_mark(tmp_path / "file.zip", content, **file_alone))
    assert data.class_names == ("cat",) and open_image((data.train + data.test)[0]).size == (12, 10)


@pytest.mark.parametrize("name", ["/etc/cat/1.png", "../cat/1.png", "cat\\..\\..\\1.png", "C:\\cat\\1.png"])
def test_archives_that_lead_out_are_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(DataError, match="leaves the archive"):
        load_dataset(tmp_path / "x.zip")


def test_linked_class_folders_are_followed(tree, tmp_path):
    root = tree("x", "cat/1.png", "cat/2.png", "cat/3.png")
    (root / "dog").symlink_to(tree("elsewhere", "1.png", "2.png", "3.png"))
    (root / "kitten").symlink_to(root / "cat")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "itself").symlink_to("itself")
    data = load_dataset(root)
    assert data.class_names == ("cat", "dog", "kitten") and len(data.train + data.val + data.test) == 9


def test_links_from_every_folder_to_every_other_end(tmp_path, write_image):
    """Without a limit ten folders are reached in millions of ways."""
    folders = [tmp_path / f"class{i}" for i in range(10)]
    for i, folder in enumerate(folders):
        write_image(folder / "0.png", seed=i)
    for folder in folders:
        for other in folders:
            if other != folder:
                (folder / other.name).symlink_to(other)
    with pytest.raises(DataError, match="links lead to the folder .* in more than 100 ways"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="links lead to the folder .* in more than 100 ways"):
        list(Tree(tmp_path).walk())
