"""Files that say which pictures belong to which split: the JSON files of CoOp's community, and word lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..reading import because, parse_json, read_text, shown
from .base import ImageItem, first_few
from .images import is_image_name
from .layout import FileFinder, is_junk


@dataclass
class Splits:
    """Class names in label order and the items of each split."""

    class_names: list[str]
    train: list[ImageItem] = field(default_factory=list)
    val: list[ImageItem] = field(default_factory=list)
    test: list[ImageItem] = field(default_factory=list)


def check_present(paths: Sequence[Path], listed_in: str) -> None:
    """Raises DataError with the first few absent files and their number. Lists each folder once."""
    content: dict[Path, set[str]] = {}
    absent = []
    for path in paths:
        parent = path.parent
        if parent not in content:
            try:
                content[parent] = set(os.listdir(parent))
            except OSError:
                content[parent] = set()
        if path.name not in content[parent]:
            absent.append(path)
    if absent:
        raise DataError(
            f"{listed_in} names {len(absent)} of {len(paths)} pictures that are absent: {first_few(absent, 3)}; "
            "unpack the data set completely, or check its folder"
        )


def read_lines(path: Path, what: str) -> list[str]:
    """Non-empty lines, stripped. Raises DataError if there are none."""
    lines = [line.strip() for line in read_text(path, what).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; expected {what}")
    return lines


def parse_lines(path: Path, what: str, parse: Callable[[str], object]) -> list:
    """`parse` of every line. Raises DataError with the line that `parse` could not read (ValueError, KeyError)."""
    parsed = []
    for line in read_lines(path, what):
        try:
            parsed.append(parse(line))
        except (ValueError, KeyError, IndexError) as error:
            raise DataError(f"{path}: cannot read the line {shown(line)}; expected {what}") from error
    return parsed


def names_of_labels(pairs: Iterable[tuple[int, str]], where: str) -> list[str]:
    """Class names in label order from (label, name) pairs.

    Raises DataError if labels have gaps or a label has two names.
    """
    names: dict[int, str] = {}
    for label, name in pairs:
        if names.setdefault(label, name) != name:
            raise DataError(f"{where}: label {label} is called both {names[label]!r} and {name!r}")
    if sorted(names) != list(range(len(names))):
        # labels may be as large as they like: no more of them are looked at than it takes to name the first few
        gaps = [str(label) for label in range(min(max(names, default=0), 2 * len(names)) + 1) if label not in names]
        raise DataError(f"{where}: labels must count from 0 without gaps; absent: {first_few(gaps)}")
    return [names[label] for label in range(len(names))]


def read_split_file(path: Path, images: Path) -> Splits:
    """Read `split_zhou_*.json`: {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    Args:
        path: the JSON file.
        images: folder that its paths are relative to.

    Raises:
        DataError: another format, labels with gaps, or absent pictures (the first few and their number).
    """
    format = '{"train": [[path, label, class name], ...], "val": ..., "test": ...}'
    text = read_text(path, format)
    try:
        content = parse_json(text, path.name)
        rows = {kind: [(str(p), int(y), str(c)) for p, y, c in content[kind]] for kind in ("train", "val", "test")}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no split file: expected {format}, found {because(error)}") from error
    names = names_of_labels(((label, name) for part in rows.values() for _, label, name in part), str(path))
    find = FileFinder(images)
    parts = {
        kind: [ImageItem(find(image) or images / image, label) for image, label, _ in part]
        for kind, part in rows.items()
    }
    check_present([item.path for part in parts.values() for item in part], str(path))
    return Splits(names, **parts)


def read_class_folders(folder: Path, ignored: Sequence[str] = ()) -> Splits:
    """One folder per class, labels in the folders' sorted order; everything goes to `train`, to be split.

    Raises DataError if the folder is absent or holds no class folders.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}; expected one folder of pictures per class in it")
    classes = sorted(f.name for f in os.scandir(folder) if f.is_dir() and not is_junk(f.name) and f.name not in ignored)
    if not classes:
        raise DataError(f"{folder} is empty; expected one folder of pictures per class in it")
    splits = Splits(classes)
    for label, name in enumerate(classes):
        inside = folder / name
        splits.train += [
            ImageItem(inside / image, label) for image in sorted(os.listdir(inside)) if is_image_name(image)
        ]
    return splits


def load_mat(path: Path) -> dict:
    """A MATLAB file as SciPy reads it. Raises DataError if it is absent, broken, or SciPy is not installed."""
    if not path.is_file():
        raise DataError(f"no such file: {path}; expected the data set's original annotations")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(
            f"{path} needs SciPy; install it (pip install scipy), or add the data set's split file"
        ) from error
    try:
        return loadmat(str(path), squeeze_me=True)
    except Exception as error:
        raise DataError(f"cannot read the MATLAB file {path}: {error}") from error
