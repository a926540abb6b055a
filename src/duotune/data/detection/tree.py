"""A folder or a zip archive, seen the same way: names below it with "/", and the pictures that annotations name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ...errors import DataError
from ...reading import MAX_TEXT_BYTES, read_bytes, shown
from ...reading.archives import Archive
from ..images import is_image_name
from ..layout import Ways, is_about, is_junk, plain_name, split_of
from .base import DetectionItem

MAX_DEPTH = 32  # folders in each other; a link to a folder above would lead on for ever


class Tree:
    """What lies below a folder, or in an archive without the folders that wrap all of it.

    Attributes:
        path: the folder or archive. is_archive: which of both.
        top: "wrap/" if the archive, or the folder, wraps everything in one folder; else "".

    Args:
        unwrap: step into a folder that is alone.

    Folders are listed when they are asked for, once each. Raises DataError for an archive that cannot be read.
    """

    def __init__(self, path: str | Path, unwrap: bool = True):
        self.path, self.top = Path(path), ""
        self.is_archive = self.path.is_file()
        self._listed: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {}
        self._looked_up: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {}
        if self.is_archive:
            try:
                with Archive(self.path) as archive:
                    self._index(archive.names)
            except DataError as error:
                raise DataError(
                    f"cannot read the COCO annotations (or other labels) in {self.path}: {error}"
                ) from error
        while unwrap:
            folders, files = self.listing()
            if len(folders) != 1 or any(not is_about(name) for name in files) or split_of(next(iter(folders))):
                break
            inner = next(iter(folders))
            if inner.casefold() in ("images", "labels", "annotations"):
                break
            self.top = f"{self.top}{inner}/"
            if self.top.count("/") > MAX_DEPTH:
                raise DataError(f"{self.path} holds nothing but folders in each other; expected annotations in it")

    def _index(self, names: tuple[str, ...]) -> None:
        self._listed[""] = ({}, {})
        for name in names:
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if not parts or any(map(is_junk, parts)):
                continue
            for depth in range(len(parts)):
                inside = "/".join(parts[:depth])
                folders, files = self._listed.setdefault(inside, ({}, {}))
                (files if depth == len(parts) - 1 else folders)[parts[depth]] = False

    def listing(self, folder: str = "") -> tuple[list[str], list[str]]:
        """(folders, files) directly in a folder, both sorted, without what systems and unpackers leave behind."""
        folders, files = self._list(self._real(folder))
        return sorted(folders), sorted(files)

    def _real(self, folder: str) -> str:
        return (self.top + folder).strip("/")

    def _list(self, real: str) -> tuple[dict[str, bool], dict[str, bool]]:
        """({folder: whether it is a link}, {file: ...}); empty for what does not exist."""
        if real not in self._listed:
            folders: dict[str, bool] = {}
            files: dict[str, bool] = {}
            if not self.is_archive:
                try:
                    with os.scandir(self.path / real) as entries:
                        for entry in entries:
                            if not is_junk(entry.name):
                                (folders if entry.is_dir() else files)[entry.name] = entry.is_symlink()
                except (OSError, ValueError):  # ValueError: a NUL in the name
                    pass
            self._listed[real] = folders, files
        return self._listed[real]

    def walk(self, folder: str = "") -> Iterator[str]:
        """Every file below a folder, in order of the names; links to folders are followed, but not to those above.

        Raises DataError if links lead to one folder in very many ways.
        """
        yield from self._walk(folder, frozenset(), Ways())

    def _walk(self, folder: str, above: frozenset[str], ways: Ways) -> Iterator[str]:
        around = ways.into(self.path / self._real(folder), above)
        if around is None or len(above) > MAX_DEPTH:
            return
        folders, files = self.listing(folder)
        prefix = f"{folder}/" if folder else ""
        yield from (prefix + name for name in files)
        for name in folders:
            yield from self._walk(prefix + name, around, ways)

    def pictures(self, folder: str = "") -> list[str]:
        """Every picture below a folder, by extension."""
        return [name for name in self.walk(folder) if is_image_name(name)]

    def has(self, name: str) -> bool:
        """Whether there is a file of exactly this name."""
        folder, _, base = name.rpartition("/")
        return base in self._list(self._real(folder))[1]

    def find_folder(self, *names: str) -> str | None:
        """The first of these folders that exists, in whatever capitals, as it is spelt there."""
        for name in names:
            found = ""
            for part in name.split("/"):
                inside = self.listing(found)[0]
                same = [f for f in inside if f == part] or [f for f in inside if f.casefold() == part.casefold()]
                if not same:
                    break
                found = f"{found}/{same[0]}" if found else same[0]
            else:
                return found
        return None

    def read(self, name: str, what: str) -> bytes:
        """A file's content. Raises DataError if it cannot be read; `what` was expected there."""
        if not self.is_archive:
            return read_bytes(self.path / self._real(name), what)
        with Archive(self.path, what) as archive:
            return archive.read(self._real(name), MAX_TEXT_BYTES)

    def read_many(self, names: list[str], what: str) -> Iterator[bytes]:
        """The contents of many small files, the archive opened once."""
        if not self.is_archive:
            yield from (self.read(name, what) for name in names)
            return
        with Archive(self.path, what) as archive:
            for name in names:
                yield archive.read(self._real(name))

    def where(self, name: str) -> Path:
        """A path for messages, and of annotation files: below the folder, or as if the archive were one."""
        return self.path / self._real(name)

    def place(self, name: str) -> dict[str, Any]:
        """`path` and, in an archive, `member` of an item whose picture this is."""
        if self.is_archive:
            return {"path": self.path, "member": self._real(name)}
        return {"path": self.path / self._real(name)}

    def name_of(self, item: DetectionItem) -> str:
        """The name of an item's picture below the tree, its accents in one form."""
        name = item.member if item.member is not None else item.path.relative_to(self.path).as_posix()
        return plain_name(name.removeprefix(self.top))

    # --- pictures that annotations name

    def find(self, name: str, folder: str = "", what: str = "file_name", strict: bool = True) -> str | None:
        """The picture that an annotation calls `name`, as it is spelt below the tree; None if there is none.

        A name is relative to `folder` or, where that finds nothing, to the tree. "\\" stands for "/" and "%20" for a
        blank if that is what finds the picture; accents may be stored in either form, capitals differ.

        Raises:
            DataError: with `strict`, the name, which `what` gives, leads out of the tree: absolute, through "..", or by
                a link.
        """
        if "\0" in name:
            raise DataError(f"the name {shown(name)} cannot be a file's")
        for spelling in dict.fromkeys((name, name.replace("\\", "/"), unquote(name.replace("\\", "/")))):
            places = [self.inside(folder, spelling), self.inside("", spelling)]
            if strict and places[0] is None:
                raise DataError(
                    f"{what} {shown(name)} leads out of {self.path}; expected names relative to the folder of the "
                    "pictures, without '..' and drives"
                )
            for place in dict.fromkeys(filter(None, places)):
                if (found := self.spelt(place)) is not None:
                    if strict:
                        self._refuse_links(found, folder)
                    return found
        return None

    def inside(self, folder: str, name: str) -> str | None:
        """`name` in `folder`, "." and ".." resolved; None if it leaves the tree, or is absolute and not in it."""
        if is_absolute(name):
            roots = (self.path / self.top, self.path.resolve() / self.top)
            if (root := next((root for root in roots if Path(name).is_relative_to(root)), None)) is None:
                return None
            folder, name = "", Path(name).relative_to(root).as_posix()
        parts = folder.split("/") if folder else []
        for part in name.split("/"):
            if part == "..":
                if not parts:
                    return None
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return "/".join(parts)

    def spelt(self, name: str) -> str | None:
        """The file as it is spelt there: the same name, the same but for the form of accents, or for capitals."""
        folder, _, base = name.rpartition("/")
        if base in self._list(self._real(folder))[1]:
            return name
        if folder:
            above = self._spelt_folder(folder)
            if above is None:
                return None
            folder = above
        real = self._real(folder)
        if real not in self._looked_up:
            folded: dict[str, str | None] = {}
            files = sorted(self._list(real)[1])
            for file in files:  # two files of one folded name are told apart by their exact names alone
                folded[_folded(file)] = None if _folded(file) in folded else file
            self._looked_up[real] = {plain_name(file): file for file in files}, folded
        plain, folded = self._looked_up[real]
        same = plain.get(plain_name(base)) or folded.get(_folded(base))
        return f"{folder}/{same}".lstrip("/") if same else None

    def _spelt_folder(self, folder: str) -> str | None:
        found = ""
        for part in folder.split("/"):
            inside = self._list(self._real(found))[0]
            same = part if part in inside else None
            same = same or next((f for f in inside if plain_name(f) == plain_name(part)), None)
            same = same or next((f for f in inside if _folded(f) == _folded(part)), None)
            if same is None:
                return None
            found = f"{found}/{same}" if found else same
        return found

    def _refuse_links(self, name: str, folder: str) -> None:
        """Raises DataError if the file is a link to somewhere else, or lies in a folder that is."""
        if self.is_archive:
            return
        inside, _, base = name.rpartition("/")
        linked = self._list(self._real(inside))[1].get(base, False)
        parts = inside.split("/") if inside and inside != folder else []
        linked = linked or any(
            self._list(self._real("/".join(parts[:i])))[0].get(part, False) for i, part in enumerate(parts)
        )
        if not linked:
            return
        target = Path(os.path.realpath(self.path / self._real(name)))
        roots = {Path(os.path.realpath(self.path / self._real(inner))) for inner in ("", folder)}
        if not any(target.is_relative_to(root) for root in roots):
            raise DataError(
                f"{self.path / self._real(name)} is a link that leads out of the data folder, to {target}; expected a "
                "picture there: copy it, or link the whole folder of pictures"
            )


def is_absolute(name: str) -> bool:
    """Whether a name is absolute on any system, or a URL."""
    return name.startswith(("/", "\\")) or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:([/\\]|$)", name) is not None


def _folded(name: str) -> str:
    return plain_name(name).casefold()
