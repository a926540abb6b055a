"""What a folder or a zip archive holds: pictures, other files and folders, by relative names with "/".

Training, evaluation and prediction look at the same pictures: hidden files and what systems leave behind are no data
(`layout.is_junk`), symbolic links are followed, loops of them are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import DataError
from ..reading import because
from ..reading.archives import Archive
from .base import ImageItem
from .images import is_image_name, read_bytes
from .layout import Ways, is_junk, plain_name


@dataclass
class Listing:
    """What a folder or archive holds, junk left out. Names are relative to `prefix`, sorted as if NFC.

    Attributes:
        source: the folder or the archive.
        images: pictures by their names' endings.
        files: other files.
        folders: all folders, empty ones too.
        prefix: what stands before all names: the folders that wrap the data, with "/" at the end; else "".
        is_archive: whether the source is a zip archive.
    """

    source: Path
    images: list[str]
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    prefix: str = ""
    is_archive: bool = False

    def item(self, image: str, label: int = 0) -> ImageItem:
        if self.is_archive:
            return ImageItem(self.source, label, self.prefix + image)
        return ImageItem(self.source / (self.prefix + image), label)

    def where(self, name: str) -> str:
        """A file's name for messages."""
        return self.item(name).key

    def read(self, name: str) -> bytes:
        """Content of a file. Raises DataError if it cannot be read."""
        return read_bytes(self.item(name))

    def inside(self, prefix: str) -> Listing:
        """What lies below `prefix` ("folder/"), by names relative to it."""
        cut = lambda names: [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        return replace(
            self,
            images=cut(self.images),
            files=cut(self.files),
            folders=cut(self.folders),
            prefix=self.prefix + prefix,
        )

    def unwrapped(self, wraps: Callable[[str], bool], stops: Iterable[str] = ()) -> Listing:
        """The same without folders that only wrap the data: "dataset/images/" before "train/cat/1.jpg".

        A folder wraps if all pictures lie in folders of it, `wraps` says so of its name, no other folder is empty
        (which would be a class without pictures), and none of the files `stops` (in lower case) lies beside it.
        """
        listing, stops = self, set(stops)
        beside = lambda: {name.casefold() for name in listing.files if "/" not in name}
        while (top := listing._lone_folder()) is not None and wraps(top) and not stops & beside():
            listing = listing.inside(f"{top}/")
        return listing

    def _lone_folder(self) -> str | None:
        """The folder that all pictures lie in folders of."""
        tops = {image.split("/")[0] for image in self.images}
        if len(tops) != 1 or any(image.count("/") < 2 for image in self.images):
            return None
        filled = {name.split("/")[0] for name in (*self.images, *self.files) if "/" in name}
        return tops.pop() if {name.split("/")[0] for name in self.folders} <= filled else None


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, or a link to one; a link that leads nowhere, or to itself, is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def list_folder(folder: Path) -> Listing:
    """Raises DataError if a folder cannot be listed, or links lead to one in very many ways."""
    images: list[str] = []
    others: list[str] = []
    folders: list[str] = []
    ways = Ways()
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset())]  # folder, real paths of those around it
    while waiting:
        inside, around = waiting.pop()
        within = ways.into(folder / inside, around)
        if within is None:
            continue  # a link to a folder around it
        try:
            with os.scandir(folder / inside) as entries:
                found = [entry for entry in entries if not is_junk(entry.name)]
        except OSError as error:
            raise DataError(f"cannot list the folder {folder / inside}: {because(error)}") from error
        for entry in found:
            name = inside + entry.name
            if is_folder(entry):
                waiting.append((f"{name}/", within))
                folders.append(name)
            elif is_image_name(entry.name):
                images.append(name)
            else:
                others.append(name)
    return Listing(folder, *(sorted(names, key=plain_name) for names in (images, others, folders)))


def list_archive(path: Path) -> Listing:
    """Raises DataError if `path` is no zip archive, or one whose names cannot be told."""
    with Archive(path, "class folders in a zip") as archive:
        names = [name for name in archive.names if not _has_junk(name)]
        own = [name for name in archive.folders if not _has_junk(name)]
        for name in (*names, *own):
            if name in archive.unclear and not name.rpartition("/")[0].isascii():
                raise DataError(
                    f"{path}: the folder of {name!r} is named in an encoding that the archive does not tell, so its "
                    "letters are not known; pack it anew with UTF-8 names, or give the unpacked folder"
                )
    folders = set()
    for name in (*names, *own):
        parts = name.split("/")[:-1]
        folders.update("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    names.sort(key=plain_name)
    images = [name for name in names if is_image_name(name)]
    others = [name for name in names if not is_image_name(name)]
    return Listing(path, images, others, sorted(folders), is_archive=True)


def _has_junk(name: str) -> bool:
    return any(map(is_junk, name.rstrip("/").split("/")))


def list_images(path: Path) -> list[ImageItem]:
    """All pictures in a folder, or in a zip archive, as items without labels (all 0), in order of their names."""
    listing = list_folder(path) if path.is_dir() else list_archive(path)
    return [listing.item(image) for image in listing.images]
