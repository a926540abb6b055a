"""Pictures sorted into one folder per class, on disk or inside a zip archive.

    NAME/train/CLASS/*.jpg          NAME/CLASS/*.jpg
    NAME/val/CLASS/*.jpg      or    (split by seed)
    NAME/test/CLASS/*.jpg

`val` may be called `valid` or `validation`; `val` and `test` may be absent. A class folder may hold further folders.
Files that are no pictures by extension, and hidden ones, are ignored. An archive may wrap all of it in one folder.

An optional `dataset.json` at the top may say

    {"name": "tiny-mammals",
     "class_names": ["red fox", "cat"],           # in label order; or {"folder": "class name", ...}
     "template": "a drawing of a {}.",
     "templates": ["a drawing of a {}.", "a picture of a {}."]}

Listed class names belong to folders of the same name ("red_fox" reads "red fox"), or to folders that are numbered
from 0. Without it, classes are the folder names in sorted order. Other keys are left to the reader.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .base import ClassificationData, ImageItem, clean_class_names, first_few, make_data
from .images import is_image_name
from .sampling import split

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DESCRIPTION = "dataset.json"


@dataclass
class Listing:
    """What a folder or archive holds.

    Attributes:
        source: the folder or the archive.
        images: paths of all pictures below it, with "/", sorted.
        description: the parsed `dataset.json`, {} without one.
        prefix: name of the one folder that an archive wraps everything in, with "/"; else "".
    """

    source: Path
    images: list[str]
    description: dict[str, Any]
    prefix: str = ""

    def item(self, image: str, label: int) -> ImageItem:
        if self.source.is_dir():
            return ImageItem(self.source / image, label)
        return ImageItem(self.source, label, self.prefix + image)


def walk_images(folder: Path) -> list[str]:
    """Sorted relative paths of all pictures below a folder; links are followed, loops are not."""
    found: list[str] = []
    visited: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(root).relative_to(folder).as_posix()
        found += [name if inside == "." else f"{inside}/{name}" for name in files if is_image_name(name)]
    return sorted(found)


def _parse_description(text: bytes | str, where: str) -> dict[str, Any]:
    try:
        description = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(description, dict):
        raise DataError(f"{where} must hold a JSON object, not a {type(description).__name__}")
    return description


def list_folder(folder: Path) -> Listing:
    file = folder / DESCRIPTION
    description = _parse_description(file.read_bytes(), str(file)) if file.is_file() else {}
    return Listing(folder, walk_images(folder), description)


def list_archive(path: Path) -> Listing:
    """Raises DataError if `path` is no zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if not n.endswith("/") and not n.startswith("__MACOSX/")]
            images = sorted(n for n in names if is_image_name(n) and not any(p.startswith(".") for p in n.split("/")))
            tops = {n.split("/")[0] for n in images}
            prefix = ""
            if len(tops) == 1 and not tops & SPLIT_FOLDERS.keys() and all(n.count("/") >= 2 for n in images):
                prefix = f"{tops.pop()}/"
            inner = prefix + DESCRIPTION
            if inner not in names and DESCRIPTION in names:
                inner, prefix = DESCRIPTION, ""
            text = archive.read(inner) if inner in names else b"{}"
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: encrypted
        raise DataError(f"cannot read the zip archive {path}: {error}; expected class folders in a zip") from error
    return Listing(path, [n.removeprefix(prefix) for n in images], _parse_description(text, f"{path}::{inner}"), prefix)


def _label_folders(folders: Sequence[str], named: Any, where: str) -> tuple[dict[str, int], list[str]]:
    """(folder -> label, class names) from the folder names and the description's "class_names"."""
    if named is None:
        return {folder: label for label, folder in enumerate(folders)}, list(folders)
    if isinstance(named, dict):
        labels, names = {folder: label for label, folder in enumerate(named)}, list(named.values())
    elif isinstance(named, (list, tuple)) and all(isinstance(name, str) for name in named):
        names = list(named)
        by_name = {name: label for label, name in enumerate(clean_class_names(names))}
        labels = {f: by_name[clean] for f, clean in zip(folders, map(_clean, folders)) if clean in by_name}
        if not labels and all(f.isdecimal() and int(f) < len(names) for f in folders):
            labels = {f: int(f) for f in folders}
    else:
        raise DataError(f"{where}: class_names must be a list of names or an object folder -> name")
    if unknown := [folder for folder in folders if folder not in labels]:
        raise DataError(f"{where}: class_names does not name the class folders {first_few(unknown)}")
    return labels, names


def _clean(folder: str) -> str:
    return " ".join(folder.replace("_", " ").split())


def read_image_folder(
    path: str | Path,
    *,
    seed: int = 0,
    val_share: float = 0.2,
    test_share: float = 0.3,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    template: str | None = None,
    templates: Sequence[str] | None = None,
) -> ClassificationData:
    """Read class folders from a folder or a zip archive; see the module's docstring.

    Args:
        path: folder or `.zip`.
        seed, val_share, test_share: how class folders without `train/` are split.
        name, class_names, template, templates: instead of what `dataset.json` says.

    Raises:
        DataError: path absent, no class folders, a class without pictures, a faulty `dataset.json`, or pictures with
            COCO annotations.
        ClassNamesError: two folders read the same.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}; expected train/, val/, test/ or one folder per class in it")
    listing = list_folder(path) if path.is_dir() else list_archive(path)
    say = lambda key, given, default: given if given is not None else listing.description.get(key, default)
    expected = "expected train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg or CLASS/*.jpg"

    tops = {image.split("/")[0] for image in listing.images if "/" in image}
    deep = {image.split("/")[0] for image in listing.images if image.count("/") >= 2}
    in_splits = {top for top in deep if top in SPLIT_FOLDERS}
    if not in_splits:
        _refuse_other_layouts(path, tops)
    if not tops:
        loose = f"{len(listing.images)} pictures lie outside class folders" if listing.images else "no pictures"
        raise DataError(f"{path} has no class folders with pictures ({loose}); {expected}")

    entries: list[tuple[str, str, str]] = []  # split ("" if undecided), class folder, image
    if in_splits:
        if beside := sorted(tops - in_splits):
            raise DataError(f"{path} has {sorted(in_splits)} but also pictures in {first_few(beside)}; {expected}")
        if len(vals := sorted(top for top in in_splits if SPLIT_FOLDERS[top] == "val")) > 1:
            raise DataError(f"{path} has several validation folders, {vals}; keep one")
        for image in listing.images:
            parts = image.split("/")
            if len(parts) >= 3:
                entries.append((SPLIT_FOLDERS[parts[0]], parts[1], image))
        folders = _class_folders(listing, in_splits)
    else:
        entries = [("", image.split("/")[0], image) for image in listing.images if "/" in image]
        folders = _class_folders(listing, {""})

    labels, names = _label_folders(folders, say("class_names", class_names, None), str(path))
    parts = {
        kind: [listing.item(im, labels[f]) for s, f, im in entries if s == kind] for kind in ("train", "val", "test")
    }
    if not in_splits:
        undecided = [listing.item(image, labels[folder]) for _, folder, image in entries]
        parts = dict(zip(("train", "val", "test"), split(undecided, val_share, test_share, seed)))
    return make_data(
        say("name", name, path.stem if path.is_file() else path.resolve().name),
        names,
        **parts,
        template=say("template", template, "a photo of a {}."),
        templates=say("templates", templates, ()),
    )


def _refuse_other_layouts(path: Path, tops: set[str]) -> None:
    """Raises DataError where the folders `tops`, which hold pictures directly, are clearly no classes."""
    from .detection import is_detection_data

    if is_detection_data(path):
        raise DataError(f"{path} has COCO annotations, so it is pictures with boxes; load_detection reads it")
    if tops and all(
        top.rstrip("0123456789") in SPLIT_FOLDERS for top in tops
    ):  # COCO's folders are train2017 and the like
        one = min(tops)
        raise DataError(
            f"{path}: pictures lie directly in {first_few(sorted(tops))}, so their classes are not known; sort them "
            f"into class folders ({one}/CLASS/*.jpg), or name them in a CSV file"
        )


def _class_folders(listing: Listing, splits: set[str]) -> list[str]:
    """Sorted names of the class folders, empty ones included: an empty class is a mistake to be told."""
    found = set()
    for top in splits:
        prefix, depth = (f"{top}/", 1) if top else ("", 0)
        inside = (image.split("/") for image in listing.images if image.startswith(prefix))
        found |= {parts[depth] for parts in inside if len(parts) > depth + 1}
        if listing.source.is_dir():
            found |= {f.name for f in (listing.source / top).iterdir() if f.is_dir() and not f.name.startswith(".")}
    return sorted(found)
