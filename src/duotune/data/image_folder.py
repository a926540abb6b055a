"""Pictures sorted into one folder per class, on disk or inside a zip archive.

    NAME/train/CLASS/*.jpg          NAME/CLASS/*.jpg
    NAME/val/CLASS/*.jpg      or    (split by seed)
    NAME/test/CLASS/*.jpg

A split has any usual name ("Train", "training_set", "valid", "dev", "testing"; `layout.split_of`); `val` and `test`
may be absent. Labels follow the class folders' names, in all splits alike. A class folder may hold further folders.
Folders that wrap all of it do not count. Files that are no pictures by extension, hidden ones, and what systems leave
behind (`__MACOSX`, `Thumbs.db`) are ignored.

A folder in Hugging Face's layout, with `metadata.csv` or `metadata.jsonl`, is read by `metadata`. Whatever leaves
open which folders are the classes is refused.

An optional `dataset.json` beside them, or beside a folder that wraps them, may say

    {"name": "tiny-mammals",
     "class_names": ["red fox", "cat"],           # in label order; or {"folder": "class name", ...}
     "template": "a drawing of a {}.",
     "templates": ["a drawing of a {}.", "a picture of a {}."]}

Listed class names belong to folders of the same name ("red_fox" reads "red fox"), or to folders that are numbered
from 0. Without it, classes are the folder names in sorted order. Other keys are left to the reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..reading import parse_json
from .base import ClassificationData, clean_class_name, clean_class_names, first_few, make_data
from .layout import plain_name, split_of
from .listing import Listing, list_archive, list_folder
from .metadata import METADATA, read_metadata
from .sampling import split

SPLITS = ("train", "val", "test")
DESCRIPTION = "dataset.json"
EXPECTED = "expected train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg or CLASS/*.jpg"
CONTAINERS = frozenset("images imgs img jpegimages annotations labels".split())
"""Folder names that say what is inside, and so are no classes."""
NO_CLASSES = CONTAINERS | set(
    "all data files image inputs mask masks photos pictures pred predict raw samples unlabeled unlabelled".split()
)
"""Folder names that may be classes beside others, and are none where nothing else is there."""


class Entry(NamedTuple):
    """One picture: its split ("" if undecided), its class folder (NFC) and its name in the listing."""

    split: str
    folder: str
    image: str


def _read_description(listing: Listing, prefix: str) -> dict[str, Any]:
    """The description beside the data, or beside one of the folders that wrap them; {} if there is none."""
    levels = prefix.split("/")[:-1]
    for depth in range(len(levels), -1, -1):
        file = "/".join([*levels[:depth], DESCRIPTION])
        if file in listing.files:
            description = parse_json(listing.read(file), listing.where(file))
            if not isinstance(description, dict):
                raise DataError(f"{listing.where(file)} must hold a JSON object, not a {type(description).__name__}")
            return description
    return {}


def _label_folders(folders: Sequence[str], named: Any, where: str) -> tuple[dict[str, int], list[str]]:
    """(folder -> label, class names) from the folder names and the description's "class_names"."""
    if named is None:
        return {folder: label for label, folder in enumerate(folders)}, list(folders)
    if isinstance(named, dict):
        labels, names = {plain_name(folder): label for label, folder in enumerate(named)}, list(named.values())
    elif isinstance(named, (list, tuple)) and all(isinstance(name, str) for name in named):
        names = list(named)
        by_name = {name: label for label, name in enumerate(clean_class_names(names))}
        labels = {f: by_name[clean] for f, clean in zip(folders, map(clean_class_name, folders)) if clean in by_name}
        if not labels and all(f.isdecimal() and int(f) < len(names) for f in folders):
            labels = {f: int(f) for f in folders}
    else:
        raise DataError(f"{where}: class_names must be a list of names or an object folder -> name")
    if unknown := [folder for folder in folders if folder not in labels]:
        raise DataError(f"{where}: class_names does not name the class folders {first_few(unknown)}")
    return labels, names


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
        DataError: path absent, no class folders, folders that leave open what the classes are, a class without
            pictures, a faulty `dataset.json`, or pictures with boxes.
        ClassNamesError: two folders read the same.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}; expected train/, val/, test/ or one folder per class in it")
    whole = list_folder(path) if path.is_dir() else list_archive(path)
    listing = whole.unwrapped(lambda top: split_of(top) is None, stops=METADATA)
    description = _read_description(whole, listing.prefix)
    say = lambda key, given, default: given if given is not None else description.get(key, default)
    named = say("class_names", class_names, None)

    told = read_metadata(listing, named)
    if told is not None:
        names, parts = told
    else:
        entries, folders = find_classes(path, listing, known=named is not None)
        labels, names = _label_folders(folders, named, str(path))
        parts = {kind: [listing.item(im, labels[f]) for s, f, im in entries if s == kind] for kind in ("", *SPLITS)}
    if undecided := parts.pop(""):
        parts = dict(zip(SPLITS, split(undecided, names, val_share, test_share, seed)))
    return make_data(
        say("name", name, path.stem if path.is_file() else path.resolve().name),
        names,
        **parts,
        template=say("template", template, "a photo of a {}."),
        templates=say("templates", templates, ()),
    )


def find_classes(path: Path, listing: Listing, known: bool = False) -> tuple[list[Entry], list[str]]:
    """Which folder is each picture's class, and which its split.

    Args:
        path: for messages.
        known: the class folders' names are given, so that folders inside them are no question.

    Returns:
        (the pictures, sorted names of all class folders, empty ones among them: a mistake to be told).

    Raises:
        DataError: the folders leave open what the classes are.
    """
    tops = {image.split("/")[0] for image in listing.images if "/" in image}
    deep = {image.split("/")[0] for image in listing.images if image.count("/") >= 2}
    in_splits = {top: kind for top in sorted(deep) if (kind := split_of(top))}
    if in_splits:
        _refuse_mixed_splits(path, tops, in_splits)
        wraps = lambda top, kind: split_of(top) == kind or top.casefold() in CONTAINERS  # train/train/CLASS
        parts = [
            (kind, listing.inside(f"{top}/").unwrapped(lambda inner, kind=kind: wraps(inner, kind)))
            for top, kind in in_splits.items()
        ]
    else:
        _refuse_boxes(path)
        if not tops:
            outside = f"{len(listing.images)} pictures lie outside class folders" if listing.images else "no pictures"
            raise DataError(f"{path} has no class folders with pictures ({outside}); {EXPECTED}{_tables_hint(listing)}")
        parts = [("", listing)]

    entries: list[Entry] = []
    stored: dict[tuple[str, str], set[str]] = {}  # (split, class) -> its folder as the disk has it
    for kind, part in parts:
        shift = part.prefix.removeprefix(listing.prefix)
        if outside := [shift + image for image in part.images if "/" not in image]:
            raise DataError(
                f"{path}: {len(outside)} pictures lie outside class folders: {first_few(outside, 3)}; {EXPECTED}; move "
                "them into class folders, or away"
            )
        for image in part.images:
            folder = image.split("/")[0]
            entries.append(Entry(kind, plain_name(folder), shift + image))
            stored.setdefault((kind, plain_name(folder)), set()).add(folder)
        for folder in {name.split("/")[0] for name in part.folders}:
            stored.setdefault((kind, plain_name(folder)), set()).add(folder)
        if not known:
            _refuse_no_classes(path, listing, part)
            _refuse_folders_of_classes(path, part)
    _refuse_equal_names(path, stored)
    if not known:
        _refuse_like_names(path, stored)
        _refuse_unsorted_tests(path, stored)
    return entries, sorted({folder for _, folder in stored})


def _refuse_boxes(path: Path) -> None:
    from .detection.formats import format_of

    if format := format_of(path):
        raise DataError(f"{path} has {format.title}, so it is pictures with boxes; load_detection reads it")


def _tables_hint(listing: Listing) -> str:
    tables = [file for file in listing.files if file.lower().endswith((".csv", ".tsv")) and file.count("/") < 2]
    if not tables:
        return ""
    give = "unpack the archive and give that file" if listing.is_archive else "give that file"
    return f" (if {listing.where(tables[0])} has columns path,label, {give})"


def _refuse_no_classes(path: Path, listing: Listing, part: Listing) -> None:
    """Raises DataError where the folders at the top of `part` that hold pictures are clearly no classes."""
    tops = {image.split("/")[0] for image in part.images if "/" in image}
    plain = {top: top.casefold() for top in tops}
    containers = [top for top in sorted(tops) if plain[top] in CONTAINERS]
    if not containers and not (tops and all(split_of(top) or plain[top] in NO_CLASSES for top in tops)):
        return
    _refuse_boxes(path)
    shift = part.prefix.removeprefix(listing.prefix)
    found = [shift + top for top in containers or sorted(tops)]
    raise DataError(
        f"{path}: pictures lie directly in {first_few(found)}, so their classes are not known; sort them into class "
        f"folders ({found[0]}/CLASS/*.jpg), or name them in a CSV file{_tables_hint(listing)}"
    )


def _refuse_mixed_splits(path: Path, tops: set[str], in_splits: dict[str, str]) -> None:
    """Raises DataError for pictures beside the splits' folders, and for two folders of one split."""
    if beside := sorted(tops - set(in_splits)):
        raise DataError(
            f"{path} has {sorted(in_splits)} but also pictures in {first_few(beside)}, whose split or classes are not "
            f"known; {EXPECTED}; move them away, or sort them so"
        )
    for kind, what in {"train": "training", "val": "validation", "test": "test"}.items():
        if len(same := [top for top, k in in_splits.items() if k == kind]) > 1:
            raise DataError(f"{path} has several {what} folders, {same}; keep one")


def _refuse_folders_of_classes(path: Path, part: Listing) -> None:
    """Raises DataError if folders inside `part`'s folders may be the classes, or splits."""
    inside: dict[str, set[str]] = {}
    for image in part.images:
        top, *others = image.split("/")
        inside.setdefault(top, set()).add(others[0] if len(others) > 1 else "")
    for top, names in inside.items():
        if splits := sorted(name for name in names if split_of(name)):
            raise DataError(
                f"{path}: the folder {top!r} holds pictures in {first_few(splits)}, so splits lie inside classes; "
                f"{EXPECTED}; turn them round"
            )
    if inside and not any("" in names for names in inside.values()):
        for top, names in inside.items():
            if len(names) > 1:
                raise DataError(
                    f"{path}: {top!r} holds no pictures itself, but folders of them ({first_few(sorted(names), 3)}), "
                    f"so either may be the class; {EXPECTED}; move the inner folders up, or list the outer ones as "
                    f"class_names in {DESCRIPTION}"
                )


def _refuse_unsorted_tests(path: Path, stored: dict[tuple[str, str], set[str]]) -> None:
    """Raises DataError for one folder of test pictures that is no class of training: `test/unknown`."""
    classes = {which: {folder for kind, folder in stored if kind == which} for which in SPLITS}
    for which in ("val", "test"):
        if len(classes[which]) == 1 and len(classes["train"]) > 1 and not classes[which] & classes["train"]:
            raise DataError(
                f"{path}: all {which} pictures lie in {min(classes[which])!r}, which is none of the "
                f"{len(classes['train'])} classes of train/, so their classes are not known; {EXPECTED}"
            )


def _refuse_equal_names(path: Path, stored: dict[tuple[str, str], set[str]]) -> None:
    """Raises DataError for two folders of one split whose names are the same text."""
    for (kind, folder), names in stored.items():
        if len(names) > 1:
            raise DataError(
                f"{path} has two folders {folder!r}{f' in {kind}' if kind else ''}, which differ in how their accents "
                f"are stored alone ({' and '.join(map(ascii, sorted(names)))}); keep one"
            )


def _refuse_like_names(path: Path, stored: dict[tuple[str, str], set[str]]) -> None:
    """Raises DataError for folders that are called almost alike and never lie in one split: one class, by all odds."""
    kinds: dict[str, dict[str, set[str]]] = {}  # letters and digits -> folder -> its splits
    for kind, folder in stored:
        kinds.setdefault(re.sub(r"[\s_.-]+", "", folder.casefold()), {}).setdefault(folder, set()).add(kind)
    for spellings in kinds.values():
        if len(spellings) > 1 and len(set().union(*spellings.values())) == sum(map(len, spellings.values())):
            told = " and ".join(f"{'/'.join([min(k), f])}" for f, k in sorted(spellings.items()))
            raise DataError(f"{path}: the class folders {told} differ in capitals or signs alone; give them one name")
