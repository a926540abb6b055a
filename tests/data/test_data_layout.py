"""What names mean: splits, junk, Unicode, entries of zip archives."""

import io
import unicodedata
import zipfile

import pytest

from duotune.data.layout import (
    FileFinder,
    archive_entries,
    find_file,
    has_unknown_letters,
    is_junk,
    same_name,
    split_of,
    unwrap,
)
from duotune.errors import DataError

NFC, NFD = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")


@pytest.mark.parametrize(
    "split, names",
    {
        "train": "train Train TRAIN training TRAINING training_set trainset train2017 seg_train Train-Images train1",
        "val": "val valid Validation VALID dev val2017 valid_data",
        "test": "test Test testing TESTING eval test_set testset evaluation",
        None: "cat trains train_val trainer contest tests_of_cars 2017 images devil evaluate_me set",
    }.items(),
)
def test_split_names(split, names):
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


def test_split_names_with_spaces():
    assert split_of(" Training Set ") == "train" and split_of("") is None and split_of("red fox") is None


def test_junk():
    junk = ["__MACOSX", ".ipynb_checkpoints", ".git", "@eaDir", "Thumbs.db", ".DS_Store", "._cat.jpg", "desktop.ini"]
    assert all(map(is_junk, [*junk, "$RECYCLE.BIN", "System Volume Information", "lost+found", "Icon\r"]))
    assert not any(map(is_junk, ["cat", "cat.jpg", "MACOSX", "icon", "thumbs", "_cat"]))


def test_unwrap_steps_into_a_lone_folder_but_not_into_a_split(tmp_path):
    (tmp_path / "a" / "b" / "train").mkdir(parents=True)
    (tmp_path / "a" / "__MACOSX").mkdir()
    (tmp_path / "a" / "README.txt").write_text("x")
    assert unwrap(tmp_path) == tmp_path / "a" / "b"
    (tmp_path / "a" / "labels.csv").write_text("x")
    assert unwrap(tmp_path) == tmp_path / "a"
    (tmp_path / "c").mkdir()
    assert unwrap(tmp_path) == tmp_path


def test_files_are_found_however_their_accents_are_stored(tmp_path):
    assert NFC != NFD and same_name(NFC, NFD) and not same_name(NFC, "cafe")
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / f"{NFC}.jpg").write_bytes(b"x")
    for name in (f"{NFC}/{NFD}.jpg", f"{NFD}/{NFC}.jpg", f"{NFC}\\{NFC}.jpg", str(tmp_path / NFC / f"{NFC}.jpg")):
        assert find_file(tmp_path, name) == tmp_path / NFD / f"{NFC}.jpg"
    for name in ("absent.jpg", f"{NFC}/absent.jpg", "absent/x.jpg", "a\0b.jpg", ""):
        assert find_file(tmp_path / "deeper" if not name else tmp_path, name) is None
    (tmp_path / NFC).mkdir()  # now both are there, and each means itself
    (tmp_path / NFC / "y.jpg").write_bytes(b"x")
    assert find_file(tmp_path, f"{NFC}/y.jpg") == tmp_path / NFC / "y.jpg"


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    import os

    (tmp_path / "x").mkdir()
    for i in range(5):
        (tmp_path / "x" / f"{i}.jpg").write_bytes(b"x")
    calls, real = [], os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: calls.append(path) or real(path))
    find = FileFinder(tmp_path)
    assert [find(f"x/{i}.jpg") is not None for i in range(7)] == [True] * 5 + [False] * 2
    assert calls == [tmp_path / "x"]


def archive(names, raw=()):
    """A zip in memory; `raw`: names as bytes, without the mark of UTF-8."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, b"x")
        for number, name in enumerate(raw):  # a stand-in of the same length, then its bytes
            made.writestr(f"{number}" * len(name), b"x")
    content = file.getvalue()
    for number, name in enumerate(raw):
        content = content.replace(f"{number}".encode() * len(name), name)
    return zipfile.ZipFile(io.BytesIO(content))


def test_entries_have_slashes_and_no_junk():
    names = ["pics\\cat\\1.png", "./pics/dog//2.png", "pics/fox/", "__MACOSX/pics/cat/._1.png", "pics/.DS_Store"]
    assert list(archive_entries(archive(names))) == ["pics/cat/1.png", "pics/dog/2.png", "pics/fox/"]


def test_names_without_the_mark_of_utf8():
    raw = [f"{NFC}/1.png".encode(), "\u732b/2.png".encode(), f"{NFC}/3.png".encode("latin-1")]
    entries = archive_entries(archive(["m\u00fcll/4.png"], raw))
    names = list(entries)
    assert names[:3] == ["m\u00fcll/4.png", f"{NFC}/1.png", "\u732b/2.png"]
    assert [has_unknown_letters(info) for info in entries.values()] == [False, False, False, True]


@pytest.mark.parametrize("name", ["/etc/x.png", "../x.png", "a/../../x.png", "..\\x.png", "C:\\pics\\x.png"])
def test_names_that_lead_out_are_refused(name):
    with pytest.raises(DataError, match="leads out of the archive; expected relative names"):
        archive_entries(archive(["cat/1.png", name]))


def test_doubled_names_are_refused():
    with pytest.warns(UserWarning, match="Duplicate name"):
        doubled = archive(["cat/1.png", "cat/1.png"])
    with pytest.raises(DataError, match="two entries 'cat/1.png'"):
        archive_entries(doubled)
    with pytest.raises(DataError, match="two entries 'cat/1.png'"):
        archive_entries(archive(["cat/1.png", "cat\\1.png"]))
