"""From an item to an RGB picture: files, members of zip archives, rows of saved Hugging Face data sets.

What "RGB" means here, decided once:
- orientation: the EXIF tag is obeyed, as every viewer does. (Most CLIP code ignores it; few benchmark pictures have
  one. `orientation=False` ignores it too.)
- transparency (alpha channel or a transparent palette entry): laid over white.
- palettes, grey, CMYK and the like: Pillow's own conversion; colour profiles are ignored.
- 16-bit grey: 0..65535 maps onto 0..255 (Pillow alone would clip everything above 255).
- floating-point grey: 0..1 maps onto 0..255 if no value is above 1; else values are clipped to 0..255.
- animations: the first frame.
"""

from __future__ import annotations

import atexit
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from .. import reading
from ..errors import DataError
from ..reading import because, check_file
from ..reading.archives import Archive
from .base import ImageItem

FOREIGN_SUFFIXES = frozenset(".heic .heif .jxl .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf".split())
"""Photos that Pillow does not read (HEIC: without a plugin), or of which it would show a thumbnail: never ignored, but
told as pictures that cannot be read."""
IMAGE_SUFFIXES = FOREIGN_SUFFIXES | set(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .dib .gif .webp .avif .jp2 .tif .tiff .ppm .pgm .pbm .pnm".split()
)
"""Lower case; other files beside pictures are ignored."""

MAX_PIXELS = 89_478_485  # 9,459 x 9,459: where Pillow starts to warn of decompression bombs; we refuse
STAMPED_BYTES = 2**16  # at each end of a file


class Picture(Protocol):
    """What is asked of an item to read its picture: an `ImageItem` or a `DetectionItem`."""

    @property
    def path(self) -> Path: ...

    @property
    def member(self) -> str | None: ...

    @property
    def key(self) -> str: ...


def is_image_name(name: str) -> bool:
    """By extension; hidden files are no pictures."""
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and os.path.splitext(base)[1].lower() in IMAGE_SUFFIXES


class _SavedRows:
    """The image column of a Hugging Face data set saved on disk."""

    def __init__(self, path: Path):
        from .hf_saved import ImageRows

        self._rows = ImageRows(path)

    def close(self) -> None:
        self._rows = None

    def read(self, member: str) -> bytes:
        value = self._rows[int(member)]
        return value["bytes"] if value["bytes"] is not None else reading.read_bytes(value["path"], "a picture")


# Containers this process holds open. A forked worker must not share the parent's file positions, so
# the table belongs to one process id and a child starts its own.
_containers: dict[Path, Any] = {}
_owner = os.getpid()


def _container(path: Path) -> Any:
    global _owner
    if _owner != os.getpid():
        _containers.clear()  # drops the inherited handles; closing them here leaves the parent's open
        _owner = os.getpid()
    if path not in _containers:
        if not path.exists():
            raise FileNotFoundError("no such file or folder")
        _containers[path] = _SavedRows(path) if path.is_dir() else Archive(path)
    return _containers[path]


@atexit.register
def close_containers() -> None:
    """Close all archives this process has open; they reopen when needed."""
    while _containers:
        _containers.popitem()[1].close()


def to_rgb(image: Image.Image, orientation: bool = True) -> Image.Image:
    """`image` as an RGB picture; the rules are in the module's docstring."""
    if orientation:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        if image.mode == "F":
            values = values * 255 if values.max() <= 1 else values
        else:
            values = values / 257  # 65535 -> 255
        image = Image.fromarray(np.nan_to_num(values).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _regular(path: Path) -> Path:
    """The path; what is there, but no file, is refused: reading a pipe may never end."""
    return check_file(path, "a picture") if path.exists() else path


def _check_format(name: str) -> None:
    """Raises ValueError for a photo in a format that would not be read as what it is."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in FOREIGN_SUFFIXES and suffix not in Image.registered_extensions():
        raise ValueError(f"{suffix[1:].upper()} is a format that Pillow does not read; convert it to JPEG")


def _decode(item: ImageItem, finish: Callable[[Image.Image], Any]) -> Any:
    """Open, measure, and hand the picture to `finish`. Raises DataError naming the file."""
    try:
        _check_format(item.member or item.path.name)
        source = _regular(item.path) if item.member is None else io.BytesIO(_container(item.path).read(item.member))
        with Image.open(source) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(
                    f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}; make it smaller"
                )
            return finish(image)
    except DataError:
        raise
    # Decoders meet broken bytes with whatever exception is at hand: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, EOFError, IndexError, KeyError, MemoryError, ...
    except Exception as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else because(error)
        if isinstance(error, (Image.UnidentifiedImageError, IsADirectoryError)):
            reason = "not a picture in a format that Pillow knows"
        raise DataError(f"cannot read the image {item.key}: {reason}; repair or remove it") from error


def open_image(item: ImageItem, orientation: bool = True) -> Image.Image:
    """Decode one picture completely.

    Args:
        orientation: obey the EXIF orientation tag.

    Returns:
        An RGB picture, at most `MAX_PIXELS` pixels large.

    Raises:
        DataError: the file is absent, truncated, corrupt, no picture, or larger than the limit; names the file.
    """

    def finish(image: Image.Image) -> Image.Image:
        image.load()
        return to_rgb(image, orientation)

    return _decode(item, finish)


def probe_image(item: ImageItem) -> None:
    """Read one picture to its last byte, for errors only. Raises DataError as `open_image` does.

    JPEG is decoded at an eighth of its size: all compressed data is read, most arithmetic is saved. Of PNG the
    checksums that its format has are compared: nothing is unpacked.
    """

    def finish(image: Image.Image) -> None:
        if image.format == "PNG":
            image.verify()
            return
        if image.format == "JPEG":
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()

    _decode(item, finish)


def image_size(item: ImageItem) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) as stored, and as the EXIF orientation tag has it. Raises DataError as `open_image` does."""

    def finish(image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
        width, height = image.size
        if image.format == "PNG" and not {"exif", "Raw profile type exif"} & set(image.info):
            return (width, height), (width, height)  # Pillow would unpack all of it to look behind the pixels
        sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (width, height), (height, width) if sideways else (width, height)

    return _decode(item, finish)


def content_stamp(item: Picture) -> str:
    """Length and checksum of the undecoded picture: another picture under the same name has another one.

    Of a file the first and the last 64 kB alone are read, so that a large data set is stamped in seconds. Raises
    DataError naming it if it cannot be read.
    """
    if item.member is not None:
        content = read_bytes(item)
        return f"{len(content)}-{zlib.crc32(content):08x}"
    try:
        with _regular(item.path).open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            checksum = zlib.crc32(file.read(STAMPED_BYTES))
            file.seek(max(0, length - STAMPED_BYTES))
            return f"{length}-{zlib.crc32(file.read(STAMPED_BYTES), checksum):08x}"
    except OSError as error:
        raise DataError(f"cannot read {item.key}: {because(error)}; repair or remove it") from error


def read_bytes(item: Picture) -> bytes:
    """The undecoded file, archive member or row. Raises DataError naming it if it cannot be read."""
    try:
        if item.member is None:
            return reading.read_bytes(item.path, "a picture")
        return _container(item.path).read(item.member)
    except DataError:
        raise
    except Exception as error:  # zlib.error, RuntimeError (encrypted), NotImplementedError (packed in a newer way), ...
        raise DataError(f"cannot read {item.key}: {because(error)}; repair or remove it") from error
