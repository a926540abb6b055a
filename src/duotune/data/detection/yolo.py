"""YOLO labels: one text file per picture, "class cx cy w h" in shares of the picture's size, one line per box.

data.yaml     names: [cat, dog] or {0: cat, 1: dog}; train, val, test: folders of pictures or lists of them (.txt),
              relative to `path` or to the yaml; nc, if it is there, must be the number of names
split folders images/{train,val,test}/ with labels/{train,val,test}/, or {train,val,test}/images with .../labels
one folder    images/ with labels/, or labels beside the pictures: no splits
classes.txt   the names without a data.yaml, one per line (also obj.names, _darknet.labels)

A picture's labels stand where its path has "labels" for "images", or beside it. A polygon, "class x y x y x y ...",
becomes the box around it. A picture without a label file is a picture of nothing. Sizes are read from the pictures,
which have to be there; their EXIF orientation is obeyed, as YOLO's own code does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ClassNamesError, ConfigError, DataError
from ...reading import decode_text, parse_yaml, read_yaml, shown
from ..base import first_few
from ..images import is_image_name
from ..layout import split_of
from .base import SPLITS, DetectionData, DetectionItem, make_detection_data
from .boxes import clipped_box, count_doubled, make_item, named_after, picture_size
from .report import DetectionReport
from .sampling import divide
from .tree import Tree
from .values import as_id, as_name

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt")
TOLERANCE = 1e-3  # how far shares may lie outside of 0..1; exporters round
PEEKED = 20  # text files that are looked into; most may be empty
WHAT = "a YOLO data set (yaml)"


@dataclass
class YoloLayout:
    """What a YOLO data set holds.

    Attributes:
        names: class index -> name; empty if they are nowhere.
        splits: split -> pictures; "" for data without splits.
        keypoints: lines go on with keypoints behind their box.
    """

    tree: Tree
    names: dict[int, str]
    splits: dict[str, list[str]]
    keypoints: bool = False
    absent: list[str] = field(default_factory=list)


def is_yolo_yaml(path: Path) -> bool:
    """Whether a yaml file describes a YOLO data set."""
    try:
        return _describes(read_yaml(path, WHAT))
    except DataError:
        return False


def _describes(content: Any) -> bool:
    return isinstance(content, dict) and bool({"names", "nc"} & set(content)) and bool(set(content) & {*SPLITS, "path"})


def find_yolo(tree: Tree) -> str | None:
    """The data set's yaml, or a folder that its labels are in; None if there are no YOLO labels."""
    broken = None
    for name in sorted(tree.listing()[1], key=lambda name: (name not in ("data.yaml", "dataset.yaml"), name)):
        if name.casefold().endswith((".yaml", ".yml")):
            try:
                if _describes(parse_yaml(tree.read(name, WHAT), name)):
                    return name
            except DataError:
                broken = broken or name  # beside labels it is what names them, and reading it says what is wrong
    tops = tree.listing()[0]
    places = [tree.find_folder("labels"), *(tree.find_folder(f"{top}/labels", top) for top in tops if split_of(top))]
    for place in filter(None, places):
        if _has_labels(tree, tree.walk(place)):
            return broken or place
    known = [name for name in tree.listing()[1] if name.casefold() in NAME_FILES]
    near = (f"{top}/{name}".lstrip("/") for top in ("", *tops) for name in tree.listing(top)[1])  # not all of ImageNet
    if known and _has_labels(tree, near):
        return "."
    return None


def _has_labels(tree: Tree, files: Iterable[str]) -> bool:
    """Whether the first text file with content is a label file. Names of classes and lists of files are not."""
    looked = 0
    for name in files:
        base = name.rpartition("/")[2].casefold()
        if not base.endswith(".txt") or base in NAME_FILES or base.startswith("readme"):
            continue
        looked += 1
        if looked > PEEKED:
            break
        try:
            text = decode_text(tree.read(name, "YOLO labels"), name)
        except DataError:
            continue
        if text.strip():
            words = text.splitlines()[0].split()
            if len(words) >= 5 and all(_number(word) is not None for word in words):
                return True
    return False


def read_yolo(
    path: Path,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    missing_images: str = "error",
    seed: int | None = None,
) -> DetectionData:
    """A folder, zip archive or data.yaml of YOLO labels. Arguments as for `coco.read_coco`.

    Raises:
        DataError: pictures or labels absent, a label line of another form, shares outside of 0..1, an index without
            a class.
        ClassNamesError: names absent, blank or doubled, or of another number than `nc`.
    """
    if missing_images not in ("error", "skip"):
        raise ConfigError(f"missing_images must be 'error' or 'skip', not {missing_images!r}")
    path = Path(path)
    layout = _layout(path)
    tree = layout.tree
    report = DetectionReport()
    if layout.absent and missing_images == "error":
        raise DataError(
            f"{path} names {len(layout.absent)} pictures that are absent: {first_few(layout.absent, 3)}; unpack the "
            "data set completely, or leave them out: load_detection(..., missing_images='skip')"
        )
    for absent in layout.absent:
        report.add("missing_images", absent)
    if not layout.names:
        raise ClassNamesError(
            f"{path} does not say what its classes are called; expected names in data.yaml, or classes.txt with one "
            "name per line"
        )
    numbers = sorted(layout.names)
    names = [layout.names[number] for number in numbers]
    if class_names is not None and len(class_names) != len(names):
        raise ConfigError(f"{path}: the data set has {len(names)} classes, class_names {len(class_names)}")
    labels = {number: label for label, number in enumerate(numbers)}
    items: dict[str, list[DetectionItem]] = {}
    paired: set[str] = set()
    for split, pictures in layout.splits.items():
        files = {picture: _label_file(tree, picture) for picture in pictures}
        paired.update(filter(None, files.values()))
        if pictures and not any(files.values()):
            if len(layout.splits) == 1 or split == "train":
                example = _label_names(pictures[0])[0]
                raise DataError(
                    f"{path}: none of its {len(pictures)} {split} pictures has a label file, such as {example}"
                )
            report.notes.append(f"the {len(pictures)} pictures of {split!r} have no label files and were left out")
            continue
        items[split or "test"] = _items(layout, files, labels, report)
    _count_unpaired(tree, paired, report)
    data = make_detection_data(name or named_after(path), class_names or names, numbers, items, report)
    return divide(data, seed, tree) if "" in layout.splits else data


def _layout(path: Path) -> YoloLayout:
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(Tree(path.parent, unwrap=False), path.name)
    tree = Tree(path)
    found = find_yolo(tree)
    if found and found.casefold().endswith((".yaml", ".yml")):
        return _from_yaml(tree, found)
    splits: dict[str, list[str]] = {}
    images = tree.find_folder("images")
    for above in filter(lambda folder: folder is not None, (images, "")):
        for folder in tree.listing(above)[0]:
            if split := split_of(folder):
                inner = f"{above}/{folder}".lstrip("/")
                if split in splits:
                    raise DataError(f"{path} has several folders of the split {split!r}; keep one of them")
                splits[split] = tree.pictures(tree.find_folder(f"{inner}/images") or inner)
        if any(splits.values()):
            break
        splits = {}
    if not splits:
        splits[""] = tree.pictures(images or "")
    return YoloLayout(tree, _names_beside(tree), splits)


def _names_beside(tree: Tree) -> dict[int, str]:
    """Class names from a file of `NAME_FILES`, at the top, in labels/ or in a split's folder."""
    folders = ["", "labels", *(folder for folder in tree.listing()[0] if split_of(folder))]
    for folder in folders:
        for file in tree.listing(folder)[1]:
            if file.casefold() in NAME_FILES:
                name = f"{folder}/{file}".lstrip("/")
                lines = decode_text(tree.read(name, "class names"), str(tree.where(name))).splitlines()
                while lines and not lines[-1].strip():
                    lines.pop()
                return {number: line.strip() for number, line in enumerate(lines)}
    return {}


# --- data.yaml


def _from_yaml(tree: Tree, file: str) -> YoloLayout:
    where = tree.where(file)
    content = parse_yaml(tree.read(file, WHAT), str(where))
    if not isinstance(content, dict):
        raise DataError(f"{where} is no YOLO data set: expected names, train and val")
    names = _names(content, where)
    entries = {split: content.get(split) for split in SPLITS}
    if entries["val"] is None and content.get("valid") is not None:
        entries["val"] = content["valid"]
    lists = {split: entry if isinstance(entry, list) else [entry] for split, entry in entries.items() if entry}
    if bad := [entry for listed in lists.values() for entry in listed if not isinstance(entry, str)]:
        raise DataError(f"{where}: train, val and test must be folders or lists of them; got {shown(bad[0], 60)}")
    base = content.get("path")
    if base is not None and not isinstance(base, str):
        raise DataError(f"{where}: path must be a folder; got {shown(base, 60)}")
    found = {split: [_inside(tree, base, entry) for entry in listed] for split, listed in lists.items()}
    absent = {split: [e for e, f in zip(lists[split], found[split]) if f is None] for split in lists}
    if any(absent.values()) and not tree.is_archive:
        whole = {split: [_outside(where.parent, base, entry) for entry in listed] for split, listed in lists.items()}
        known = {s: [f if f is not None else o for f, o in zip(found[s], whole[s])] for s in lists}
        if any(o is not None and f is None for s in lists for f, o in zip(found[s], whole[s])):
            # Some of it lies elsewhere on this machine: names then count from the root of all files.
            home = tree.where("").resolve()
            tree = Tree(home.anchor, unwrap=False)
            shift = lambda f: f if f is None or f.startswith(home.anchor) else (home / f).as_posix()
            found = {s: [None if f is None else shift(f).removeprefix(home.anchor) for f in known[s]] for s in lists}
            absent = {s: [e for e, f in zip(lists[s], found[s]) if f is None] for s in lists}
    splits: dict[str, list[str]] = {}
    missing: list[str] = []
    for split, places in found.items():
        if absent[split]:
            if split == "test" and len(lists) > 1:  # exporters name a test split that they did not write
                continue
            raise DataError(f"{where}: no folder {shown(absent[split][0], 80)} of its {split} pictures; {EXPECTED}")
        splits[split] = sorted({picture for place in places for picture in _pictures(tree, place or "", missing)})
    if not any(splits.values()) and not missing:
        raise DataError(f"{where} names no folder that holds pictures; {EXPECTED}")
    return YoloLayout(tree, names, splits, content.get("kpt_shape") is not None, missing)


EXPECTED = (
    "expected train: images/train and val: images/val, relative to `path` or to the yaml, with labels/ beside images/"
)


def _names(content: dict[str, Any], where: Path) -> dict[int, str]:
    given = content.get("names")
    if isinstance(given, dict):
        keys = [as_id(int(key) if isinstance(key, str) and key.strip().isdecimal() else key) for key in given]
        names = dict(zip(keys, given.values()))
        if not all(isinstance(key, int) and key >= 0 for key in names) or len(names) < len(given):
            raise ClassNamesError(f"{where}: names must have whole numbers from 0 as keys, each once")
    elif isinstance(given, list):
        names = dict(enumerate(given))
    elif given is None:
        names = {}
    else:
        raise ClassNamesError(f"{where}: names must be a list or numbers with names; got {shown(given, 60)}")
    names = {number: as_name(name) for number, name in names.items()}
    if bad := [name for name in names.values() if not isinstance(name, str)]:
        raise ClassNamesError(f"{where}: class names must be texts; got {shown(bad[0], 60)} (write it in quotes)")
    count = content.get("nc")
    if names and count is not None and as_id(count) != len(names):
        raise ClassNamesError(f"{where}: nc says {shown(count, 40)} classes, names has {len(names)}")
    return names


def _inside(tree: Tree, base: str | None, entry: str) -> str | None:
    """The folder or list in the tree that a yaml's entry means; None if it is not there."""
    bases = ["" if base is None else tree.inside("", base), ""]
    plain = entry.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    texts = [plain, re.sub(r"^(\.\.?/)+", "", plain)]
    if tree.inside("", plain) is None:  # absolute, on another machine: its end may be here
        texts += ["/".join(parts[start:]) for start in range(len(parts) - 1)]
    for text in texts:
        for folder in dict.fromkeys(base for base in bases if base is not None):
            place = tree.inside(folder, text)
            if place == "":
                return ""
            if place is not None and (found := tree.find_folder(place) or (place if tree.has(place) else None)):
                return found
    return None


def _outside(home: Path, base: str | None, entry: str) -> str | None:
    """The same anywhere on this machine, as an absolute path: the yaml is the user's own word."""
    for folder in (home / base if base else home, home):
        place = (folder / entry).resolve()
        if place.exists():
            return place.as_posix()
    return None


def _pictures(tree: Tree, place: str, missing: list[str]) -> list[str]:
    """Pictures of a folder, or of a list of names; names that lead nowhere are added to `missing`."""
    if not tree.has(place):
        return tree.pictures(place)
    above = place.rpartition("/")[0]
    lines = decode_text(tree.read(place, "a list of pictures"), str(tree.where(place))).splitlines()
    found = []
    for line in filter(None, map(str.strip, lines)):
        picture = tree.find(line, above, strict=False)
        if picture is None:  # as CVAT writes it, below a folder that is not there
            picture = tree.find(line.replace("\\", "/").partition("/")[2] or line, above, strict=False)
        (found if picture else missing).append(picture or line)
    return [name for name in found if is_image_name(name)]


# --- labels


def _label_names(picture: str) -> list[str]:
    """Where the labels of a picture may be, the likeliest first."""
    folder, _, base = picture.rpartition("/")
    stem, parts = base.rpartition(".")[0], folder.split("/") if folder else []
    names = []
    if at := [i for i, part in enumerate(parts) if part.casefold() == "images"]:
        names.append("/".join([*parts[: at[-1]], "labels", *parts[at[-1] + 1 :], f"{stem}.txt"]))
    else:
        names.append("/".join(["labels", *parts, f"{stem}.txt"]))
    return [*names, "/".join([*parts, f"{stem}.txt"])]


def _label_file(tree: Tree, picture: str) -> str | None:
    return next((found for name in _label_names(picture) if (found := tree.spelt(name))), None)


def _count_unpaired(tree: Tree, paired: set[str], report: DetectionReport) -> None:
    for folder in sorted({name.rpartition("/")[0] for name in paired}):
        for file in tree.listing(folder)[1]:
            name = f"{folder}/{file}".lstrip("/")
            is_list = split_of(file.rpartition(".")[0]) is not None
            if file.casefold().endswith(".txt") and name not in paired and file.casefold() not in NAME_FILES:
                if not is_list and not file.casefold().startswith("readme"):
                    report.add("unpaired", name)


def _items(
    layout: YoloLayout, files: dict[str, str | None], labels: dict[int, int], report: DetectionReport
) -> list[DetectionItem]:
    tree = layout.tree
    texts = tree.read_many([name for name in files.values() if name], "YOLO labels")
    items = []
    for number, (picture, file) in enumerate(files.items(), start=1):
        lines = decode_text(next(texts), str(tree.where(file))).splitlines() if file else []
        if file is None:
            report.add("no_labels", picture)
        elif not any(map(str.strip, lines)):
            report.add("empty_images", picture)
        place = tree.place(picture)
        try:
            width, height = picture_size(place)
        except DataError:
            # Reading its pixels later names it and counts it as broken; its boxes have no size to be shares of.
            items.append(make_item(image_id=number, width=1, height=1, rows=[], **place))
            continue
        rows: list[tuple] = []
        for row, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{tree.where(file or '')}, line {row}"
            index, corners = _parse(line, where, layout.keypoints)
            if index not in labels:
                raise DataError(f"{where}: class {index} has no name; {_named(labels)}")
            x1, y1, x2, y2 = corners
            box, fault = clipped_box(x1 * width, y1 * height, x2 * width, y2 * height, width, height)
            if fault:
                report.add(fault, where)
            if box is not None:
                area = (box[2] - box[0]) * (box[3] - box[1])
                rows.append((box, labels[index], row, False, area))
        count_doubled(rows, picture, report)
        report.images += 1
        report.boxes += len(rows)
        items.append(make_item(image_id=number, width=width, height=height, rows=rows, **place))
    return items


def _named(labels: Sequence[int] | dict[int, int]) -> str:
    """Which numbers have a name."""
    return f"the data set names {len(labels)} classes, with numbers from {min(labels)} to {max(labels)}"


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _parse(line: str, where: str, keypoints: bool) -> tuple[int, tuple[float, float, float, float]]:
    """(class, corners as shares of the picture) of a label line. Raises DataError for another form."""
    words = line.split()
    numbers = [_number(word) for word in words]
    expected = 'expected "class cx cy w h", or "class x y x y x y ..." of a polygon, in shares of 0..1'
    if len(words) < 5 or None in numbers or (len(words) > 5 and len(words) % 2 == 0 and not keypoints):
        extra = " (a sixth number, as of predictions with scores, is no label)" if len(words) == 6 else ""
        raise DataError(f"{where}: {shown(line, 80)}: {expected}{extra}")
    index, *shares = numbers
    if not index.is_integer() or index < 0:
        raise DataError(f"{where}: class {shown(words[0], 40)} is no whole number from 0; {expected}")
    is_box = len(shares) == 4 or keypoints
    shares = shares[:4] if is_box else shares
    if bad := [share for share in shares if not -TOLERANCE <= share <= 1 + TOLERANCE]:
        raise DataError(f"{where}: {bad[0]:g} is no share in 0..1 of the picture's size; {expected}")
    if is_box:
        cx, cy, w, h = shares
        return int(index), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    xs, ys = shares[::2], shares[1::2]
    return int(index), (min(xs), min(ys), max(xs), max(ys))
