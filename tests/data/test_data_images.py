import io
import multiprocessing
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from duotune.data import ImageItem
from duotune.data.images import close_containers, image_size, is_image_name, open_image, probe_image, read_bytes, to_rgb
from duotune.errors import DataError


@pytest.fixture(autouse=True)
def closed():
    yield
    close_containers()


def pixel(image, xy=(0, 0)):
    return open_image(image).getpixel(xy)


def test_modes_become_rgb(tmp_path):
    def save(image, name, **options):
        image.save(tmp_path / name, **options)
        result = open_image(ImageItem(tmp_path / name, 0))
        assert result.mode == "RGB" and result.size == image.size
        return result.getpixel((0, 0))

    assert save(Image.new("L", (4, 3), 77), "grey.png") == (77, 77, 77)
    assert save(Image.new("1", (4, 3), 1), "bit.png") == (255, 255, 255)
    # Transparency lies over white: fully, by half, and as a palette entry.
    assert save(Image.new("RGBA", (4, 3), (10, 20, 30, 0)), "clear.png") == (255, 255, 255)
    assert save(Image.new("RGBA", (4, 3), (0, 100, 200, 128)), "half.png") == pytest.approx((127, 177, 227), abs=1)
    assert save(Image.new("LA", (4, 3), (50, 0)), "la.png") == (255, 255, 255)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    assert save(palette, "palette.png") == (200, 100, 50)
    assert save(palette, "clear-palette.png", transparency=1) == (255, 255, 255)
    assert save(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), "cmyk.tif") == (255, 0, 0)
    # 16-bit grey keeps its shades: Pillow's own conversion would give 255 for all three.
    for value, expected in ((65535, 255), (32896, 128), (257, 1)):
        grey16 = Image.fromarray(np.full((3, 4), value, dtype=np.uint16))
        assert save(grey16, "16.png") == (expected,) * 3
    for value, expected in ((0.5, 128), (200.0, 200), (900.0, 255)):
        assert to_rgb(Image.new("F", (2, 2), value)).getpixel((0, 0)) == (expected,) * 3


def test_first_frame_of_animations(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixel(ImageItem(tmp_path / "x.gif", 0)) == (255, 0, 0)


def test_orientation_tag(tmp_path):
    image = Image.new("RGB", (6, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "x.png", exif=exif)
    item = ImageItem(tmp_path / "x.png", 0)
    upright = open_image(item)
    assert upright.size == (2, 6) and upright.getpixel((1, 0)) == (255, 255, 255)
    assert open_image(item, orientation=False).size == (6, 2)
    assert image_size(item) == ((6, 2), (2, 6))


def test_the_size_of_a_png_is_read_without_unpacking_it(tmp_path):
    path = next(path for path in bad_files(tmp_path) if path.name == "truncated.png")
    assert image_size(ImageItem(path, 0)) == ((64, 64), (64, 64))


def bad_files(tmp_path):
    good = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(good, "JPEG")
    png = io.BytesIO()
    Image.open(good).save(png, "PNG")
    contents = {
        "truncated.jpg": good.getvalue()[: len(good.getvalue()) // 2],
        "truncated.png": png.getvalue()[: len(png.getvalue()) // 2],
        "text.jpg": b"<html>not found</html>",
        "empty.png": b"",
        "flipped.png": png.getvalue()[:60] + bytes(b ^ 255 for b in png.getvalue()[60:90]) + png.getvalue()[90:],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]


@pytest.mark.parametrize("read", [open_image, probe_image])
def test_broken_files_are_named(tmp_path, read):
    for path in bad_files(tmp_path):
        with pytest.raises(DataError, match=f"cannot read the image .*{path.name}: .*; repair or remove it") as caught:
            read(ImageItem(path, 0))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="absent.jpg: no such file"):
        read(ImageItem(tmp_path / "absent.jpg", 0))
    with pytest.raises(DataError, match="absent.zip::a.jpg: no such file"):
        read(ImageItem(tmp_path / "absent.zip", 0, "a.jpg"))


def bomb(width, height):
    """A PNG of a few hundred bytes that claims to be enormous."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(9460, 9460), (50_000, 50_000)])
def test_enormous_images_are_refused_before_decoding(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    for read in (open_image, probe_image):
        with pytest.raises(DataError, match="cannot read the image .*bomb.png: .*(limit|exceeds)"):
            read(ImageItem(tmp_path / "bomb.png", 0))


def test_archive_members(tmp_path, write_image, monkeypatch):
    source = write_image(tmp_path / "a.png", seed=3)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(source, "cat/a.png")
        archive.writestr("cat/bad.png", b"broken")
    item = ImageItem(tmp_path / "x.zip", 0, "cat/a.png")
    assert open_image(item).tobytes() == Image.open(source).tobytes()
    assert read_bytes(item) == read_bytes(ImageItem(source, 0)) == source.read_bytes()
    for member, match in (("cat/bad.png", "x.zip::cat/bad.png: not a picture"), ("cat/no.png", "no.png")):
        with pytest.raises(DataError, match=match):
            open_image(ImageItem(tmp_path / "x.zip", 0, member))
    monkeypatch.setattr("duotune.reading.archives.MAX_MEMBER_BYTES", 10)
    with pytest.raises(DataError, match="bytes unpacked; the limit is 10"):
        open_image(item)


def open_descriptors(path):
    found = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{entry}") == str(path)
        except OSError:
            pass
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files the Linux way")
def test_archive_is_opened_once_and_closed(tmp_path, write_image):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(write_image(tmp_path / "a.png"), "a.png")
    item = ImageItem(tmp_path / "x.zip", 0, "a.png")
    for _ in range(3):
        open_image(item)
        assert open_descriptors(tmp_path / "x.zip") == 1
    close_containers()
    assert open_descriptors(tmp_path / "x.zip") == 0
    assert open_image(item).mode == "RGB"


def _read_many(items, expected, queue):
    queue.put(sum(open_image(item).tobytes() == data for item, data in zip(items, expected)))


def test_forked_processes_do_not_share_file_positions(tmp_path, write_image):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(60):
            archive.write(write_image(tmp_path / f"{i}.png", seed=i, size=(40, 40)), f"{i}.png")
    items = [ImageItem(tmp_path / "x.zip", 0, f"{i}.png") for i in range(60)]
    expected = [open_image(item).tobytes() for item in items]  # the parent holds the archive open
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_read_many, args=(items, expected, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    right = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert right == [60, 60, 60]
    assert [open_image(item).tobytes() for item in items] == expected  # and the parent's is still open


def test_image_names():
    assert all(map(is_image_name, ["a.JPG", "x/y/b.jpeg", "c.webp", "d.JPEG"]))
    assert not any(map(is_image_name, ["a.txt", ".a.png", "x/._b.jpg", "png", "a.npy"]))


def test_an_archive_member_whose_compression_is_broken(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.ppm", b"P6 99 99 255 " + bytes(range(99)) * 297)
        start = archive.getinfo("a.ppm").header_offset + 30 + len("a.ppm")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[start : start + 40] = b"\xff" * 40
    (tmp_path / "a.zip").write_bytes(content)
    for read in (read_bytes, open_image):
        with pytest.raises(DataError, match="a.zip::a.ppm"):
            read(ImageItem(tmp_path / "a.zip", 0, "a.ppm"))


@pytest.mark.parametrize("name", ["x.HEIC", "x.heif", "x.jxl", "x.dng", "x.NEF"])
def test_photos_in_formats_that_are_not_read_are_pictures_that_cannot_be_read(tmp_path, name):
    """Never ignored; and a raw photo, which is a TIFF around a thumbnail, is never taken for its thumbnail."""
    Image.new("RGB", (4, 3)).save(tmp_path / name, format="TIFF")
    assert is_image_name(name)
    for read in (open_image, probe_image):
        with pytest.raises(
            DataError, match=f"{name}: {name[2:].upper()} is a format that Pillow does not read; convert"
        ):
            read(ImageItem(tmp_path / name, 0))
