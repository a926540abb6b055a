"""Data sets with what no data set should have: pipes, labels without end, names that are no text."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

from duotune.data import load_dataset
from duotune.data.base import ImageItem
from duotune.data.images import content_stamp, image_size, open_image, probe_image, read_bytes
from duotune.data.split_file import read_split_file
from duotune.errors import DataError, DuotuneError


def refused(call, *words: str) -> None:
    with pytest.raises(DuotuneError) as caught:
        call()
    line = str(caught.value)
    assert line.isprintable() and len(line) < 400 and all(word in line for word in words), line


@pytest.mark.parametrize("read", [open_image, probe_image, image_size, content_stamp, read_bytes])
def test_a_pipe_among_pictures_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "a.png")
    refused(lambda: read(ImageItem(tmp_path / "a.png", 0)), "a.png is a named pipe")


@pytest.mark.parametrize("label", [10**6, 10**12, 10**18])
def test_labels_are_not_counted_up_to(tmp_path, label):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    rows = [["a.png", 0, "cat"], ["a.png", label, "dog"]]
    (tmp_path / "split.json").write_text(json.dumps({"train": rows, "val": [], "test": []}))
    refused(lambda: read_split_file(tmp_path / "split.json", tmp_path), "without gaps", "'1'")


def test_a_label_of_thirty_digits(tmp_path):
    (tmp_path / "split.json").write_text('{"train": [["a.png", 100000000000000000000000000000, "cat"]]}')
    refused(lambda: read_split_file(tmp_path / "split.json", tmp_path), "beyond 64 bits")


def test_class_folders_that_are_no_text_are_refused(tmp_path):
    for name in (b"caf\xe9", b"tea"):
        folder = os.fsencode(tmp_path) + b"/train/" + name
        os.makedirs(folder)
        Image.new("RGB", (2, 2)).save(os.fsdecode(folder + b"/a.png"))
    refused(lambda: load_dataset(str(tmp_path)), "caf", "Unicode")


def test_pictures_whose_file_names_are_no_text_are_read(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for stem in (b"\xe9", b"b"):
            Image.new("RGB", (2, 2)).save(os.fsdecode(os.fsencode(tmp_path / "train" / name) + b"/" + stem + b".png"))
    data = load_dataset(str(tmp_path))
    items = [*data.train, *data.val, *data.test]
    assert len(items) == 4 and all(open_image(item).size == (2, 2) for item in items)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_names_that_no_file_can_have(tmp_path, name):
    refused(lambda: load_dataset(name))
    with pytest.raises(DataError):
        open_image(ImageItem(tmp_path / name, 0))
