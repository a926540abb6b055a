"""`predict` and `evaluate` on folders and file names as people have them, printed on terminals of any encoding."""

import io
import json
import os
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from duotune import attach
from duotune.cli import main
from duotune.data import ImageItem, load_dataset
from duotune.data.listing import list_images
from duotune.errors import DataError
from duotune.training import PromptTrainer, PromptTrainingArguments


@pytest.fixture
def few(tmp_path, picture_folder):
    """A folder of a.png, b.jpg (which is no picture) and c.png."""
    folder = tmp_path / "few"
    folder.mkdir()
    shutil.copy(picture_folder / "test" / "red" / "0.png", folder / "a.png")
    shutil.copy(picture_folder / "test" / "blue" / "0.png", folder / "c.png")
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    return folder


def sources(ran):
    return [Path(row["source"]).name for row in json.loads(ran.out)]


def test_one_broken_image_among_named_ones_costs_no_other(duotune, trained, few):
    named = duotune("predict", trained("coop"), *sorted(few.iterdir()))
    assert [line.split()[0] for line in named.out.splitlines()[2:]] == [str(few / "a.png"), str(few / "c.png")]
    for words in ("1 of 3 images cannot be read", "b.jpg", "the other 2 images are classified above"):
        assert words in named.error
    whole = duotune("predict", trained("coop"), few)
    assert (whole.out, whole.error) == (named.out, named.error)
    rows = json.loads(duotune("predict", trained("coop"), *sorted(few.iterdir()), "--json").out)
    assert [bool(row["names"]) for row in rows] == [True, False, True]
    assert [row["error"] is None for row in rows] == [True, False, True] and "b.jpg" in rows[1]["error"]


def test_a_link_that_leads_nowhere_costs_no_other(duotune, trained, few):
    (few / "b.jpg").unlink()
    (few / "b.png").symlink_to("nowhere")
    ran = duotune("predict", trained("coop"), *sorted(few.iterdir()))
    assert "1 of 3 images cannot be read" in ran.error and "b.png: no such file" in ran.error
    assert len(ran.out.splitlines()) == 4


def test_an_empty_folder_costs_no_other(duotune, trained, few, tmp_path):
    (few / "b.jpg").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    ran = duotune("predict", trained("coop"), tmp_path / "empty", few)
    assert (
        "empty holds no picture; the other 2 images are classified above" in ran.error
        and len(ran.out.splitlines()) == 4
    )


def test_predict_looks_at_the_pictures_that_training_looks_at(duotune, trained, few, tmp_path):
    (few / "b.jpg").unlink()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(few / "a.png", tmp_path / "elsewhere" / "linked.png")
    (few / "link").symlink_to(tmp_path / "elsewhere")
    (few / "loop").symlink_to(few)
    for junk in (".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/._a.png", "@eaDir/a.png", ".hidden.png"):
        (few / junk).parent.mkdir(exist_ok=True)
        shutil.copy(few / "a.png", few / junk)
    Image.open(few / "a.png").save(few / "d.avif")
    Image.open(few / "a.png").convert("RGB").save(few / "E.WEBP")
    ran = duotune("predict", trained("coop"), few, "--json")
    assert ran.status == 0 and sources(ran) == ["E.WEBP", "a.png", "c.png", "d.avif", "linked.png"]
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "cat").symlink_to(few)
    data = load_dataset(tmp_path / "classes")
    learnt = sorted(item.path.name for part in (data.train, data.val, data.test) for item in part)
    assert learnt == sorted(item.path.name for item in list_images(few)) == sorted(sources(ran))


def test_formats_that_are_not_read_are_told_and_not_ignored(duotune, trained, few):
    (few / "b.jpg").unlink()
    shutil.copy(few / "a.png", few / "phone.HEIC")
    for argv in ([few], sorted(few.iterdir())):
        ran = duotune("predict", trained("coop"), *argv)
        assert "phone.HEIC: HEIC is a format that Pillow does not read; convert it to JPEG" in ran.error
        assert "the other 2 images" in ran.error


def test_a_zip_archive_is_read_like_its_folder(duotune, trained, few, tmp_path):
    with zipfile.ZipFile(tmp_path / "pics.zip", "w") as archive:
        for file in few.iterdir():
            archive.write(file, f"deep/{file.name}")
        archive.write(few / "a.png", "__MACOSX/deep/._a.png")
    ran = duotune("predict", trained("coop"), tmp_path / "pics.zip", "--json")
    folder = duotune("predict", trained("coop"), few, "--json")
    assert ran.status == folder.status == 2 and "1 of 3 images cannot be read" in ran.error
    ours, theirs = json.loads(ran.out), json.loads(folder.out)
    assert [row["names"] for row in ours] == [row["names"] for row in theirs]
    assert ours[0]["source"] == f"{tmp_path / 'pics.zip'}::deep/a.png"
    (tmp_path / "bad.zip").write_bytes(b"PK")
    assert "cannot read the zip archive" in duotune("predict", trained("coop"), tmp_path / "bad.zip").error


def test_a_class_without_training_pictures_is_refused_by_name(picture_data, tiny_clip, tmp_path):
    data = replace(picture_data, train=tuple(item for item in picture_data.train if item.label != 1))
    model = attach(tiny_clip, "linear_probe", data.class_names)
    arguments = PromptTrainingArguments(output_dir=str(tmp_path), disable_tqdm=True, max_broken_share=1.0)
    with pytest.raises(DataError, match="1 of 4 classes have no training pictures that can be read: 'green square'"):
        PromptTrainer(model, arguments, data)
    broken = tmp_path / "torn.png"
    broken.write_bytes(b"\x89PNG")
    data = replace(data, train=(*data.train, ImageItem(broken, 1)))
    with pytest.raises(DataError, match="1 of 4 classes have no training pictures that can be read: 'green square'"):
        PromptTrainer(model, arguments, data)


def test_class_names_in_a_file_are_read_or_refused_never_garbled(tmp_path):
    from duotune.cli.import_checkpoint import read_names

    names = ["caf\u00e9", "\u732b"]
    file = tmp_path / "names.txt"
    for content in ("caf\u00e9\n\u732b\n", "cafe\u0301\r\n\r\n\u732b"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            file.write_bytes(content.encode(encoding))
            assert read_names(file) == names
    file.write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(DataError, match="names.txt is no UTF-8 text: byte 0xe9 at position 3"):
        read_names(file)


# --- what is printed where not every character can be ----------------------------------------------------------------

NAMES = ("\u732b", "\u0441\u043e\u0431\u0430\u043a\u0430", "caf\u00e9", "\U0001f431", "apple")


@pytest.fixture
def many_scripts(tmp_path, picture_folder):
    for number, name in enumerate(NAMES):
        (tmp_path / "pics" / "test" / name).mkdir(parents=True)
        (tmp_path / "pics" / "train" / name).mkdir(parents=True)
        for split in ("train", "test"):
            shutil.copy(picture_folder / "test" / "red" / f"{number}.png", tmp_path / "pics" / split / name)
    return tmp_path / "pics"


def printed(monkeypatch, encoding, *argv):
    """(exit status, bytes on standard output, on standard error) where both have an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        status = main([str(word) for word in argv])
    for stream in streams:
        stream.flush()
    return status, *(stream.buffer.getvalue() for stream in streams)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_names_that_the_terminal_cannot_show_lose_no_result(monkeypatch, many_scripts, tiny_clip_folder, encoding):
    argv = ["evaluate", "--method", "zero_shot", "--backbone", tiny_clip_folder, "--data", many_scripts, "--workers", 0]
    status, out, _ = printed(monkeypatch, encoding, *argv, "--per-class")
    text = out.decode(encoding)
    rows = [line.split()[0] for line in text.splitlines()]  # a heading, the classes, all of them, and the time
    assert status == 0 and "apple" in rows and len(rows) == len(NAMES) + 3
    assert ("\\u732b" in rows) == (encoding != "utf-8") and ("\u732b" in rows) == (encoding == "utf-8")
    status, out, _ = printed(monkeypatch, encoding, *argv, "--json")
    told = json.loads(out)  # bytes: JSON is UTF-8 by definition
    assert status == 0 and set(told["class_names"]) == set(NAMES) and told["num_images"] == len(NAMES)
    wrong = ["evaluate", "--method", "zero_shot", "--backbone", tiny_clip_folder, "--data", many_scripts / "\u732b"]
    status, _, err = printed(monkeypatch, encoding, *wrong)
    assert status == 2 and err.decode(encoding).startswith("duotune: error: ") and err.count(b"\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text exist on Linux")
def test_file_names_that_are_no_text(monkeypatch, trained, few_steps, few, tmp_path):
    (few / "b.jpg").unlink()
    odd = os.path.join(os.fsencode(few), b"caf\xe9\n.png")
    shutil.copy(few / "a.png", odd)
    for encoding in ("utf-8", "ascii"):
        status, out, _ = printed(monkeypatch, encoding, "predict", trained("coop"), few)
        assert status == 0 and "caf\\udce9\\u000a.png" in out.decode(encoding) and out.count(b"\n") == 2 + 3
        status, out, _ = printed(monkeypatch, encoding, "predict", trained("coop"), few, "--json")
        assert status == 0 and os.fsencode(json.loads(out)[2]["source"]) == odd
    folder = tmp_path / "odd"
    for number, name in enumerate((b"train/red", b"train/blue", b"test/red", b"test/blue")):
        os.makedirs(os.path.join(os.fsencode(folder), name))
        shutil.copy(odd, os.path.join(os.fsencode(folder), name, b"\xff%d.png" % number))
    argv = [
        "train",
        "--method",
        "vpt",
        *few_steps,
        "--data",
        folder,
        "--shots",
        1,
        "--epochs",
        1,
        "--out",
        tmp_path / "run",
    ]
    assert printed(monkeypatch, "utf-8", *argv, "--views", 1, "--cache-dir", tmp_path / "cache")[0] == 0
    written = tmp_path / "told.json"
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "red").symlink_to(few)
    argv = ["--method", "zero_shot", "--backbone", "tiny", "--data", tmp_path / "pics", "--split", "train"]
    status, _, err = printed(monkeypatch, "utf-8", "evaluate", *argv, "--workers", 0, "--out", written)
    assert status == 0, err
    assert json.loads(written.read_bytes())["num_images"] >= 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text exist on Linux")
def test_class_folders_whose_names_are_no_text_are_refused(duotune, few, tmp_path):
    os.makedirs(os.path.join(os.fsencode(tmp_path), b"pics", b"caf\xe9"))
    shutil.copy(few / "a.png", os.path.join(os.fsencode(tmp_path), b"pics", b"caf\xe9", b"a.png"))
    ran = duotune("evaluate", "--method", "zero_shot", "--backbone", "tiny", "--data", tmp_path / "pics")
    assert "class names must be Unicode, and 'caf\\udce9' is not; rename it" in ran.error
