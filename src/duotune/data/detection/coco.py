"""COCO JSON: one file with "images", "annotations" and "categories", and the folder layouts it comes in.

Roboflow:   FOLDER/{train,valid,test}/_annotations.coco.json, pictures beside it
COCO 2017:  FOLDER/annotations/instances_{train,val}2017.json, FOLDER/{train,val}2017/
flat:       FOLDER/{train,val,test}.json, FOLDER/{train,val,test}/
ODinW:      FOLDER/{train,valid,test}/annotations_without_background.json
one file:   FILE.json, its pictures beside it, or in a folder of its name
archive:    FILE.zip with {train,val,test}.json and pictures in {train,val,test}/; read without unpacking
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ... import reading
from ...errors import ConfigError, DataError
from ..base import first_few
from ..images import MAX_PIXELS
from .base import SPLITS, DetectionData, DetectionItem, check_class_names, make_detection_data
from .report import DetectionReport

EDGE_TOLERANCE = 0.01  # pixels; boxes that reach farther out are counted as clipped, not only clipped
SPLIT_WORDS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
FILE_NAMES = ("_annotations.coco.json", "annotations_without_background.json")


@dataclass
class CocoFile:
    """A read annotation file, not yet matched with labels."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)  # category ids that have annotations


def read_json(path: Path) -> Any:
    """A JSON file's content. Raises DataError if it is absent or broken."""
    return reading.read_json(path, "COCO annotations (JSON)", nonfinite=True)  # such boxes are counted and named


def read_coco_file(path: Path, content: Any = None) -> CocoFile:
    """Read a file and check its form.

    Args:
        content: of the file where it has been parsed already; `path` then is a name for messages.

    Raises:
        DataError: no COCO JSON, an image id that is given twice, or a category id with several names.
    """
    content = read_json(path) if content is None else content
    expected = '{"images": [...], "annotations": [...], "categories": [...]}'
    if not isinstance(content, dict):
        raise DataError(f"{path} is no COCO file: expected {expected}, found a {type(content).__name__}")
    parts = []
    for name in ("images", "annotations", "categories"):
        rows = content.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} is no COCO file: expected {expected}; {name!r} is no list of objects")
        parts.append(rows)
    file = CocoFile(path, *parts)
    for name, key in (("images", "id"), ("categories", "id"), ("annotations", "image_id")):
        if bad := sum(not isinstance(row.get(key), int | str) for row in getattr(file, name)):
            raise DataError(f"{path}: {bad} of its {name} have no {key!r}")
    if bad := sum(not isinstance(row.get("category_id"), int | float | str) for row in file.annotations):
        raise DataError(f"{path}: {bad} of its annotations have no 'category_id' that is a number or a text")
    ids = [image["id"] for image in file.images]
    if len(set(ids)) < len(ids):
        seen: set[int | str] = set()
        doubled = [str(i) for i in ids if i in seen or seen.add(i)]
        raise DataError(f"{path}: image ids must be different; given twice: {first_few(doubled)}")
    names: dict[int | str, Any] = {}
    for category in file.categories:
        names.setdefault(category["id"], category.get("name"))
    if doubled := [c for c in file.categories if c.get("name") != names[c["id"]]]:
        meant = [f"{c['id']} is both {names[c['id']]!r} and {c.get('name')!r}" for c in doubled[:3]]
        more = f" (and {len(doubled) - 3} more)" if len(doubled) > 3 else ""
        raise DataError(f"{path}: category ids must mean one class each; {', '.join(meant)}{more}")
    known = set(names)
    file.used = {annotation.get("category_id") for annotation in file.annotations}
    if unknown := file.used - known:
        raise DataError(
            f"{path}: annotations have categories that it does not list: {first_few(sorted(map(str, unknown)))}"
        )
    return file


def merge_categories(
    files: Sequence[CocoFile],
    report: DetectionReport,
    rename: Mapping[int, str] | None = None,
    class_names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The categories of all splits, by ascending id, without Roboflow's dummy.

    Args:
        rename: category id -> name to use instead of the files'; blank ones are ignored.
        class_names: all names to use instead, by ascending id.

    The dummy is the first of Roboflow's categories: id 0, without annotations, and its name is the "supercategory" of
    the others; it would be a class that never occurs.

    Raises:
        DataError: an id with two names. ClassNamesError: blank or doubled names.
        ConfigError: class_names of another number.
    """
    merged: dict[int, dict[str, Any]] = {}
    for file in files:
        for category in file.categories:
            other = merged.setdefault(category["id"], category)
            if other.get("name") != category.get("name"):
                names = f"both {other.get('name')!r} and {category.get('name')!r}"
                raise DataError(f"{file.path}: category {category['id']} is called {names}; ids must mean one class")
    used = set().union(*(file.used for file in files))
    dummy = merged.get(0)
    others = [category for key, category in merged.items() if key != 0]
    if dummy and 0 not in used and any(category.get("supercategory") == dummy.get("name") for category in others):
        del merged[0]
        report.add("dummy_categories", repr(dummy.get("name")))
    if not merged:
        raise DataError(f"{files[0].path}: no categories")
    ids = sorted(merged, key=lambda key: (isinstance(key, str), key))
    if class_names is not None and len(class_names) != len(ids):
        raise ConfigError(f"{files[0].path}: the files have {len(ids)} categories, class_names {len(class_names)}")
    rename = {key: name for key, name in (rename or {}).items() if name.strip()}
    if class_names is not None:
        rename = dict(zip(ids, class_names))
    categories = [{**merged[key], "name": rename.get(key, merged[key].get("name"))} for key in ids]
    check_class_names([category.get("name") for category in categories], str(files[0].path))
    return categories


def checked_box(values: Any, width: int, height: int) -> tuple[list[float] | None, str | None]:
    """COCO's [x, y, w, h] -> (xyxy inside the picture or None, kind of fault or None)."""
    if not isinstance(values, list | tuple) or len(values) != 4 or not all(isinstance(v, numbers.Real) for v in values):
        return None, "malformed"
    x, y, w, h = map(float, values)
    if not all(map(math.isfinite, (x, y, w, h))):
        return None, "not_finite"
    return clipped_box(x, y, x + w, y + h, width, height)


def clipped_box(
    x1: float, y1: float, x2: float, y2: float, width: int, height: int
) -> tuple[list[float] | None, str | None]:
    """Finite corners -> (the part inside the picture or None, kind of fault or None)."""
    if x2 <= x1 or y2 <= y1:
        return None, "empty"
    box = [min(max(x1, 0.0), width), min(max(y1, 0.0), height), min(max(x2, 0.0), width), min(max(y2, 0.0), height)]
    # Compared as float32, which is what boxes are kept as.
    if np.float32(box[2]) <= np.float32(box[0]) or np.float32(box[3]) <= np.float32(box[1]):
        return None, "outside"
    reach = max(-x1, -y1, x2 - width, y2 - height)
    return box, "clipped" if reach > EDGE_TOLERANCE else None


def make_item(
    path: Path, image_id: int | str, width: int, height: int, rows: list[tuple], **more: Any
) -> DetectionItem:
    """An item of (box, label, id, iscrowd, area) rows."""
    boxes, labels, ids, crowd, area = zip(*rows) if rows else ((), (), (), (), ())
    return DetectionItem(
        path,
        image_id,
        width,
        height,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(ids, dtype=np.int64),
        np.array(crowd, dtype=bool),
        np.array(area, dtype=np.float64),
        **more,
    )


def _size(image: Mapping[str, Any], where: str) -> tuple[int, int]:
    size = image.get("width"), image.get("height")
    if not all(isinstance(side, numbers.Real) and math.isfinite(side) and side >= 1 for side in size):
        raise DataError(f"{where}: width and height must be pixels, at least 1; got {size}")
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(f"{where}: {size[0]} x {size[1]} pixels are more than the limit of {MAX_PIXELS}")
    return int(size[0]), int(size[1])


def coco_items(
    file: CocoFile,
    images: Path,
    category_ids: Sequence[int],
    report: DetectionReport,
    missing_images: str = "error",
    locate: Callable[[Mapping[str, Any]], str] = lambda image: image.get("file_name"),
    extras: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda image: {},
    only: set[int | str] | None = None,
    members: frozenset[str] | None = None,
) -> list[DetectionItem]:
    """Items of a file in ascending order of image ids, annotations in the file's order.

    Args:
        images: folder that the pictures' names are relative to.
        category_ids: in label order.
        report: counts what is met.
        missing_images: "error", or "skip" to leave absent pictures out, counted.
        locate: image -> its path below `images`. extras: image -> further fields of the item.
        only: ids of the images to read; None for all.
        members: names in the archive `images`, whose pictures lie in a folder of the file's name; None for a folder.

    Raises:
        DataError: an image without name or size, absent pictures (the first few and their number), or annotations of
            which none belongs to an image.
    """
    if missing_images not in ("error", "skip"):
        raise ConfigError(f"missing_images must be 'error' or 'skip', not {missing_images!r}")
    labels = {category: label for label, category in enumerate(category_ids)}
    chosen = [image for image in file.images if only is None or image["id"] in only]
    chosen.sort(key=lambda image: (isinstance(image["id"], str), image["id"]))
    chosen = _present(file, images, chosen, report, missing_images, locate, members)
    by_image: dict[int | str, list[dict[str, Any]]] = {image["id"]: [] for image, _ in chosen}
    listed = {image["id"] for image in file.images}
    seen: set[int] = set()
    for position, annotation in enumerate(file.annotations):
        name = annotation.get("id")
        name = name if isinstance(name, int | float | str) else f"number {position}"
        if annotation["image_id"] not in listed:
            report.add("orphaned", f"{file.path.name}: annotation {name} of image {annotation['image_id']}")
            continue
        if annotation["image_id"] not in by_image:
            continue  # its picture is left out: not asked for, or counted as missing
        if name in seen:
            report.add("doubled_ids", f"{file.path.name}: {name}")
        seen.add(name)
        by_image[annotation["image_id"]].append(annotation)
    if file.annotations and not any(annotation["image_id"] in listed for annotation in file.annotations):
        raise DataError(
            f"{file.path}: none of the {len(file.annotations)} annotations belongs to a listed image, e.g. image_id "
            f"{file.annotations[0]['image_id']!r} where images have ids like {next(iter(listed), None)!r}; make them "
            "agree (numbers and text differ)"
        )
    items = []
    for image, path in chosen:
        where = f"{file.path.name}: image {image['id']}"
        width, height = _size(image, where)
        rows = []
        for annotation in by_image[image["id"]]:
            box, fault = checked_box(annotation.get("bbox"), width, height)
            if fault:
                report.add(fault, f"{where}, annotation {annotation.get('id')}: {annotation.get('bbox')}")
            if box is None:
                continue
            area = annotation.get("area")
            if not isinstance(area, numbers.Real) or not math.isfinite(area) or area <= 0:
                area = (box[2] - box[0]) * (box[3] - box[1])
            number = annotation.get("id")
            number = number if isinstance(number, int) else -1
            label = labels[annotation["category_id"]]
            rows.append((box, label, number, bool(annotation.get("iscrowd", 0)), float(area)))
        if not rows:
            report.add("empty_images", where)
        report.images += 1
        report.boxes += len(rows)
        more = extras(image)
        if members is not None:
            path, more = images, {**more, "member": path.as_posix()}
        items.append(make_item(path, image["id"], width, height, rows, **more))
    return items


def _present(
    file: CocoFile,
    folder: Path,
    images: list[dict[str, Any]],
    report: DetectionReport,
    missing_images: str,
    locate: Callable[[Mapping[str, Any]], str],
    members: frozenset[str] | None = None,
) -> list[tuple[dict[str, Any], Path]]:
    """Images with their paths, inside the archive if `members` are given; lists each folder once.

    Absent pictures raise, or are counted and left out.
    """
    content: dict[Path, set[str]] = {}
    there, absent = [], []
    for image in images:
        name = locate(image)
        if not isinstance(name, str) or not name:
            raise DataError(f"{file.path}: image {image['id']} has no file name")
        path = Path(file.path.stem) / name if members is not None else folder / name
        if members is not None:
            content[path.parent] = {path.name} if path.as_posix() in members else set()
        elif path.parent not in content:
            try:
                content[path.parent] = set(os.listdir(path.parent))
            except OSError:
                content[path.parent] = set()
        if path.name in content[path.parent]:
            there.append((image, path))
        else:
            absent.append(path)
    if absent and missing_images == "error":
        raise DataError(
            f"{file.path} names {len(absent)} of {len(images)} pictures that are absent: {first_few(absent, 3)}; "
            "unpack the data set completely, check its folder, or leave them out: "
            "load_detection(..., missing_images='skip')"
        )
    for path in absent:
        report.add("missing_images", str(path))
    return there


def read_coco_splits(
    name: str,
    splits: Mapping[str, tuple[Path, Path]],
    missing_images: str = "error",
    **more: Any,
) -> DetectionData:
    """A data set of {"train" | "val" | "test": (annotation file, folder of pictures)}.

    Args:
        missing_images: "error", or "skip" to leave absent pictures out, counted.
        more: of `make_detection_data`; `class_names` to use other names than the files', in label order; `rename`,
            category id -> other name.

    Raises:
        DataError, ClassNamesError: files absent, broken, or contradicting each other.
    """
    report = DetectionReport()
    files = {split: read_coco_file(path) for split, (path, _) in splits.items()}
    rename, class_names = more.pop("rename", None), more.pop("class_names", None)
    categories = merge_categories(list(files.values()), report, rename, class_names)
    ids, names = [category["id"] for category in categories], [category["name"] for category in categories]
    items = {
        split: coco_items(files[split], folder, ids, report, missing_images) for split, (_, folder) in splits.items()
    }
    return make_detection_data(name, names, ids, items, report, **more)


def find_splits(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Annotation files and picture folders of a folder in one of the module's layouts; empty if it has none."""
    found: dict[str, tuple[Path, Path]] = {}
    for split in SPLITS:
        for word in SPLIT_WORDS[split]:
            candidates = [(folder / word / file, folder / word) for file in FILE_NAMES]
            candidates += [(folder / f"{word}_{file.lstrip('_')}", folder) for file in FILE_NAMES[1:]]
            candidates += [(folder / f"{word}.json", folder / word)]
            candidates += [
                (folder / "annotations" / f"instances_{word}{year}.json", folder / f"{word}{year}")
                for year in ("2017", "2014", "")
            ]
            pair = next((pair for pair in candidates if pair[0].is_file()), None)
            if pair is not None:
                found.setdefault(split, pair)
    return found


def read_coco(
    path: Path, name: str | None = None, class_names: Sequence[str] | None = None, missing_images: str = "error"
) -> DetectionData:
    """A folder or archive in one of the module's layouts, or one COCO JSON file (all of it becomes the test split).

    Args:
        name: of the data set; None for the folder's or file's.
        class_names: instead of the files' names, in the order of category ids.
        missing_images: "error", or "skip" to leave absent pictures out, counted.

    Raises:
        DataError: no such layout, or anything absent, broken or contradictory.
    """
    path = Path(path)
    if path.suffix.lower() == ".zip":
        return read_coco_archive(path, name, class_names, missing_images)
    if path.is_file():
        beside = path.with_suffix("")
        splits = {"test": (path, beside if beside.is_dir() else path.parent)}
    else:
        splits = find_splits(path)
        if not splits:
            raise DataError(
                f"{path} holds no COCO annotations; expected train/_annotations.coco.json (Roboflow), "
                "annotations/instances_train2017.json (COCO), or train.json beside train/"
            )
    return read_coco_splits(name or path.stem, splits, missing_images, class_names=class_names)


def read_coco_archive(
    path: Path, name: str | None = None, class_names: Sequence[str] | None = None, missing_images: str = "error"
) -> DetectionData:
    """A zip archive with {train,val,test}.json and pictures in folders of these names. Arguments as for `read_coco`."""
    report = DetectionReport()
    found = {}
    try:
        with reading.Archive(path) as archive:
            members = frozenset(archive.names)
            for split in SPLITS:
                if (inner := f"{split}.json") in archive:
                    text = archive.read(inner, reading.MAX_TEXT_BYTES)
                    found[split] = reading.parse_json(text, f"{path}::{inner}", nonfinite=True)
    except DataError as error:
        raise DataError(f"cannot read the COCO annotations in {path}: {error}") from error
    files = {split: read_coco_file(path / f"{split}.json", content) for split, content in found.items()}
    if not files:
        raise DataError(f"{path} holds no COCO annotations; expected train.json, val.json or test.json at its top")
    categories = merge_categories(list(files.values()), report, class_names=class_names)
    ids, names = [category["id"] for category in categories], [category["name"] for category in categories]
    items = {
        split: coco_items(file, path, ids, report, missing_images, members=members) for split, file in files.items()
    }
    return make_detection_data(name or path.stem, names, ids, items, report)
