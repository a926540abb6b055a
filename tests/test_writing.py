"""Files appear whole or not at all, and never elsewhere: full disks, limits of size, symbolic links, two at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from duotune.errors import ArtifactError
from duotune.writing import folder_beside, refuse_links, remove, write_bytes, write_text, write_together


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_link_is_replaced_and_never_followed(tmp_path):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.write_text("mine")
    out.mkdir()
    for name in ("one", "two", "text"):
        (out / name).symlink_to(elsewhere)
    write_together(out, {"one": b"1", "two": b"2"})
    write_text(out / "text", "3")
    assert elsewhere.read_text() == "mine"
    assert [(out / name).read_text() for name in ("one", "two", "text")] == ["1", "2", "3"]
    assert not any(path.is_symlink() for path in out.iterdir()) and names(out) == ["one", "text", "two"]


def test_a_folder_that_is_a_link_goes_as_a_link(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "pictures")
    with folder_beside(tmp_path / "link", overwrite=True) as part:
        (part / "new").write_text("new")
    assert names(tmp_path / "pictures") == ["a.png"] and names(tmp_path / "link") == ["new"]
    assert not (tmp_path / "link").is_symlink()
    (tmp_path / "other").symlink_to(tmp_path / "pictures")
    remove(tmp_path / "other")
    remove(tmp_path / "absent")
    assert names(tmp_path) == ["link", "pictures"] and names(tmp_path / "pictures") == ["a.png"]
    (tmp_path / "link" / "checkpoints").symlink_to(tmp_path / "pictures")
    with pytest.raises(ArtifactError, match="link/checkpoints is a symbolic link to .*pictures; nothing is written"):
        refuse_links(tmp_path / "link", "absent", "new", "checkpoints")


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch, stage):
    write_together(tmp_path, {"a": b"old", "b": b"old"})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, stage, full)
    for write in (
        lambda: write_bytes(tmp_path / "a", b"new"),
        lambda: write_together(tmp_path, {"a": b"new", "b": b"new"}),
    ):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes here")
def test_a_limit_of_file_sizes_is_an_error_and_not_the_end(tmp_path):
    """The kernel's own refusal in the middle of a write, in a process of its own: limits cannot be lifted again."""
    (tmp_path / "a").write_text("old")
    code = (
        "import resource, sys\nfrom duotune.writing import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_bytes(sys.argv[1], bytes(5000))\n"
        "except OSError as error:\n    print(error.errno, error.filename)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{errno.EFBIG} {tmp_path / 'a'}\n"
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_names_that_are_no_text_are_escaped_as_json_does(tmp_path):
    write_text(tmp_path / "x.json", '"a\udcff"')
    assert (tmp_path / "x.json").read_bytes() == b'"a\\udcff"'


def test_a_name_as_long_as_the_disk_takes(tmp_path):
    name = "ä" * 125 + ".json"  # 255 bytes
    write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


def test_a_folder_that_could_not_be_filled_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), folder_beside(tmp_path / "new") as part:
        (part / "half").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == []
