"""What names mean: splits, junk, Unicode."""

import unicodedata

import pytest

from duotune.data.layout import (
    FileFinder,
    is_junk,
    plain_name,
    split_of,
)

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


def test_files_are_found_however_their_accents_are_stored(tmp_path):
    assert NFC != NFD and plain_name(NFD) == plain_name(NFC) == NFC
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / f"{NFC}.jpg").write_bytes(b"x")
    for name in (f"{NFC}/{NFD}.jpg", f"{NFD}/{NFC}.jpg", f"{NFC}\\{NFC}.jpg", str(tmp_path / NFC / f"{NFC}.jpg")):
        assert FileFinder(tmp_path)(name) == tmp_path / NFD / f"{NFC}.jpg"
    for name in ("absent.jpg", f"{NFC}/absent.jpg", "absent/x.jpg", "a\0b.jpg", ""):
        assert FileFinder(tmp_path / "deeper" if not name else tmp_path)(name) is None
    (tmp_path / NFC).mkdir()  # now both are there, and each means itself
    (tmp_path / NFC / "y.jpg").write_bytes(b"x")
    assert FileFinder(tmp_path)(f"{NFC}/y.jpg") == tmp_path / NFC / "y.jpg"


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
