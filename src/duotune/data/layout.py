"""What file and folder names mean, one answer for class folders, tables and boxes.

- which folder is which split, in every usual spelling;
- which names a system, an editor or an unpacker left behind (`__MACOSX`, `.ipynb_checkpoints`, `Thumbs.db`);
- Unicode: a Mac writes "é" as two characters (NFD), most others as one (NFC); equal names are one name.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

from ..errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "tests": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Word, lower case -> "train", "val" or "test"."""

FILLERS = frozenset("data dataset folder image images img imgs photos pictures seg set split".split())
JUNK = frozenset(
    "__macosx @eadir #recycle $recycle.bin __pycache__ lost+found thumbs.db ehthumbs.db desktop.ini icon\r".split(" ")
) | {"system volume information"}
MAX_WAYS = 100  # in which links may lead to one folder
ABOUT = ("readme", "license", "licence", "citation", "changelog")  # files that say something of a data set


def split_of(name: str) -> str | None:
    """Which split a folder, file or table cell of this name means: "train", "val", "test", or None.

    Case, and words that say nothing, do not matter: "Train", "TRAINING", "training_set", "seg_test", "val2017",
    "Validation Images". A name of two splits ("train_val") or with any other word means none.
    """
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
    words = [re.sub(r"^(\D+)\d+$", r"\1", word) for word in words if not word.isdecimal()]  # COCO's "val2017"
    said = [w for word in words if (w := _without_filler(word))]
    return SPLIT_NAMES.get(said[0]) if len(said) == 1 else None


def _without_filler(word: str) -> str:
    """ "trainset" -> "train"; "images" -> ""."""
    if word in FILLERS:
        return ""
    for filler in FILLERS:
        if word.endswith(filler) and word.removesuffix(filler) in SPLIT_NAMES:
            return word.removesuffix(filler)
    return word


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name (the last part of a path) is none of the user's data: hidden, or left
    behind by a system or an unpacker."""
    return name.startswith(".") or name.casefold() in JUNK


class Ways:
    """Folders as they are reached through links: none inside itself, and none in more than `MAX_WAYS` ways, since links
    from every folder to every other multiply without end."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def into(self, folder: str | Path, around: frozenset[str]) -> frozenset[str] | None:
        """The real paths of a folder and those `around` it; None if it is one of these.

        Raises DataError if it has been reached too often.
        """
        real = os.path.realpath(folder)
        if real in around:
            return None
        self._count[real] += 1
        if self._count[real] > MAX_WAYS:
            raise DataError(f"links lead to the folder {real} in more than {MAX_WAYS} ways; remove some of them")
        return around | {real}


def is_about(name: str) -> bool:
    """Whether a file of this name tells of the data: a README, a licence."""
    return name.casefold().startswith(ABOUT)


# --- Unicode ---------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """The name with every accented letter as one character (NFC)."""
    return unicodedata.normalize("NFC", name)


class FileFinder:
    """Finds files by the names that a table gives them: each folder is listed once.

    A name may be absolute, or relative to `folder`. It is taken as it stands; else with "/" for "\\"; else whatever is
    there under the same name with its accents stored otherwise.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._names: dict[Path, dict[str, str]] = {}  # folder -> names in it, as stored and NFC -> as stored

    def __call__(self, name: str) -> Path | None:
        """The file or folder, or None if there is none."""
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            if (found := self._find(self.folder / spelling)) is not None:
                return found
        return None

    def _find(self, path: Path) -> Path | None:
        names = self._listed(path.parent)
        if path.name in names:
            return path.with_name(names[path.name])
        if path.name in ("", "..") or path.parent == path:
            return path if path.is_dir() else None
        if plain_name(path.name) in names:
            return path.with_name(names[plain_name(path.name)])
        if names or path.parent == self.folder:
            return None
        parent = self._find(path.parent)
        return self._find(parent / path.name) if parent is not None and parent != path.parent else None

    def _listed(self, folder: Path) -> dict[str, str]:
        if folder not in self._names:
            try:
                present = os.listdir(folder)
            except (OSError, ValueError):  # ValueError: a NUL in the name
                present = []
            self._names[folder] = {plain_name(name): name for name in present} | {name: name for name in present}
        return self._names[folder]
