"""COCO JSON: one file with "images", "annotations" and "categories". Where it lies in a folder: `coco_layout`.

Boxes are [x, y, width, height] in pixels. An annotation without one that can be used has its polygons' or mask's. What
is cut, dropped or taken from elsewhere is counted in the data's report; a file of which no box can be used is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...reading import parse_json, read_bytes, shown
from ..base import first_few
from ..images import MAX_PIXELS
from ..layout import plain_name
from .base import DetectionData, DetectionItem, check_class_names, make_detection_data
from .boxes import BoxShapes, annotated_box, count_doubled, make_item, named_after, picture_size
from .coco_layout import EXPECTED, Annotated, find_coco, picture_folders_of_one, split_of_file
from .report import DetectionReport
from .sampling import divide
from .tree import Tree
from .values import as_id, as_mark, as_name, as_number, twin_id


@dataclass
class CocoFile:
    """A read annotation file, not yet matched with labels."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    used: set[int] = field(default_factory=set)  # category ids that have annotations


def read_json(path: Path) -> Any:
    """A JSON file's content, NaN and Infinity allowed, as Python writes them. Raises DataError if it cannot be read."""
    return parse_coco_json(read_bytes(path, "COCO annotations (JSON)"), path)


def parse_coco_json(content: bytes, path: Path) -> Any:
    """The same of bytes that are already here; `path` is a name for messages."""
    return parse_json(content, f"cannot read the COCO annotations in {path}: it", nonfinite=True, wide=True)


def read_coco_file(path: Path, content: Any = None) -> CocoFile:
    """Read a file and check its form. Ids become whole numbers or stay texts, names of categories texts.

    Args:
        content: of the file where it has been parsed already; `path` then is a name for messages. It is changed.

    Raises:
        DataError: no COCO JSON, an image id that is given twice, a category id with several names, or ids that are
            text in one place and numbers in another.
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
    ids = (("images", "id"), ("categories", "id"), ("annotations", "image_id"), ("annotations", "category_id"))
    for name, key in ids:
        _clean_ids(path, name, getattr(file, name), key)
    _check_image_ids(path, [image["id"] for image in file.images])
    for category in file.categories:
        name = as_name(category.get("name"))
        category["name"] = plain_name(name) if isinstance(name, str) else None
    names: dict[int | str, Any] = {}
    for category in file.categories:
        names.setdefault(category["id"], category["name"])
    if doubled := [c for c in file.categories if c["name"] != names[c["id"]]]:
        meant = [f"{c['id']} is both {names[c['id']]!r} and {c['name']!r}" for c in doubled[:3]]
        more = f" (and {len(doubled) - 3} more)" if len(doubled) > 3 else ""
        raise DataError(f"{path}: category ids must mean one class each; {', '.join(meant)}{more}")
    known = set(names)
    file.used = {annotation["category_id"] for annotation in file.annotations}
    if unknown := file.used - known:
        if twins := sorted((u for u in unknown if twin_id(u) in known), key=str):
            raise DataError(f"{path}: {_types_differ('category_id', twins[0], 'the categories have')}")
        raise DataError(
            f"{path}: annotations have categories that it does not list: {first_few(sorted(map(str, unknown)))}"
        )
    return file


def _clean_ids(path: Path, name: str, rows: list[dict[str, Any]], key: str) -> None:
    bad = []
    for row in rows:
        value = row.get(key)
        if type(value) is not int and type(value) is not str:
            row[key] = as_id(value)
            if row[key] is None:
                bad.append(value)
    if bad:
        example = f", e.g. {shown(bad[0], 60)}" if bad[0] is not None else ""
        raise DataError(f"{path}: {len(bad)} of its {name} have no {key!r} that is a number or a text{example}")


def _check_image_ids(path: Path, ids: list[int | str]) -> None:
    known = set(ids)
    if len(known) < len(ids):
        doubled = [str(i) for i, count in Counter(ids).items() if count > 1]
        raise DataError(f"{path}: image ids must be different; given twice: {first_few(doubled)}")
    texts = [i for i in known if isinstance(i, str)]
    if len(texts) < len(known) and (twins := [i for i in texts if twin_id(i) in known]):
        raise DataError(f"{path}: image ids must be different; {twins[0]!r} is there as a text and as a number")


def _types_differ(key: str, value: int | str, who: str) -> str:
    kinds = ("a number", "the text") if isinstance(value, int) else ("text", "the number")
    return f"{key} {value!r} is {kinds[0]} where {who} {kinds[1]} {twin_id(value)!r}; write both in the same type"


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


def _size(image: Mapping[str, Any], where: str, place: Mapping[str, Any], report: DetectionReport) -> tuple[int, int]:
    """Pixels, as the annotation says; of the picture itself where it says nothing that can be."""
    given = image.get("width"), image.get("height")
    width, height = map(as_number, given)
    if width is None or height is None or min(width, height) < 1 or width % 1 or height % 1:
        try:
            width, height = picture_size(place)
        except DataError as error:
            raise DataError(
                f"{where}: width and height must be pixels, at least 1; got ({shown(given[0], 40)}, "
                f"{shown(given[1], 40)}), and they cannot be read from the picture: {error}"
            ) from error
        report.add("sizes", where)
    if width * height > MAX_PIXELS:
        raise DataError(f"{where}: {width:.0f} x {height:.0f} pixels are more than the limit of {MAX_PIXELS}")
    return int(width), int(height)


def coco_items(
    file: CocoFile,
    tree: Tree,
    folders: Sequence[str],
    category_ids: Sequence[int | str],
    report: DetectionReport,
    missing_images: str = "error",
    locate: Callable[[Mapping[str, Any]], Any] = lambda image: image.get("file_name"),
    extras: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda image: {},
    only: set[int | str] | None = None,
) -> list[DetectionItem]:
    """Items of a file in ascending order of image ids, annotations in the file's order.

    Args:
        tree: what holds the pictures. folders: below it, where their names may be relative to; the one that has most
            of them counts, of equal ones the first.
        category_ids: in label order.
        report: counts what is met.
        missing_images: "error", or "skip" to leave absent pictures out, counted.
        locate: image -> its name. extras: image -> further fields of the item.
        only: ids of the images to read; None for all.

    Raises:
        DataError: an image without name or size, absent pictures (the first few and their number), a name that leads
            out of the tree, annotations of which none belongs to an image, or none has a box that can be used.
    """
    if missing_images not in ("error", "skip"):
        raise ConfigError(f"missing_images must be 'error' or 'skip', not {missing_images!r}")
    labels = {category: label for label, category in enumerate(category_ids)}
    chosen = [image for image in file.images if only is None or image["id"] in only]
    chosen.sort(key=lambda image: (isinstance(image["id"], str), image["id"]))
    present = _present(file, tree, folders, chosen, report, missing_images, locate)
    by_image = _by_image(file, {image["id"] for image, _ in present}, report)
    dropped = DetectionReport()
    shapes = BoxShapes()
    items = []
    for image, name in present:
        where, place = f"{file.path.name}: image {image['id']}", tree.place(name)
        width, height = _size(image, where, place, report)
        rows: list[tuple] = []
        for annotation in by_image[image["id"]]:
            if (row := _row(file, annotation, labels, width, height, where, report, dropped, shapes)) is not None:
                rows.append(row)
        count_doubled(rows, where, report)
        if not rows:
            report.add("empty_images", where)
        report.images += 1
        report.boxes += len(rows)
        items.append(make_item(image_id=image["id"], width=width, height=height, rows=rows, **place, **extras(image)))
    if sum(map(len, by_image.values())) and not any(len(item) for item in items):
        raise DataError(
            f"{file.path}: none of its annotations has a box that can be used: {'; '.join(dropped.lines())}; expected "
            "'bbox': [x, y, width, height] in pixels, or polygons or a mask of the picture's size in 'segmentation'"
        )
    shapes.judge(file.path, report)
    return items


def _row(
    file: CocoFile,
    annotation: Mapping[str, Any],
    labels: Mapping[int | str, int],
    width: int,
    height: int,
    where: str,
    report: DetectionReport,
    dropped: DetectionReport,
    shapes: BoxShapes,
) -> tuple | None:
    """(box, label, id, iscrowd, area) of an annotation; None if it has no usable box."""
    number = as_id(annotation.get("id"))
    about = f"{where}, annotation {shown(annotation.get('id'), 40)}"
    crowd = as_mark(annotation.get("iscrowd"))
    if crowd is None:
        raise DataError(f"{file.path.parent / about}: iscrowd must be 0 or 1, not {shown(annotation['iscrowd'], 60)}")
    box, fault, from_outline = annotated_box(annotation, width, height)
    for kind in filter(None, (fault, "outlines" if from_outline else None)):
        example = f"{about}: {shown(annotation.get('bbox'), 80)}"
        report.add(kind, example)
        if box is None:
            dropped.add(kind, example)
    if not from_outline:
        shapes.see(annotation.get("bbox"), fault, width, height)
    if box is None:
        return None
    area = as_number(annotation.get("area"))
    if area is None or area <= 0:
        area = (box[2] - box[0]) * (box[3] - box[1])
    number = number if isinstance(number, int) and -(2**63) <= number < 2**63 else -1
    return box, labels[annotation["category_id"]], number, crowd, area


def _by_image(file: CocoFile, wanted: set[int | str], report: DetectionReport) -> dict[int | str, list[dict[str, Any]]]:
    """Image id -> its annotations. Raises DataError if ids of annotations and images differ in type, or all do."""
    found: dict[int | str, list[dict[str, Any]]] = {key: [] for key in wanted}
    listed = {image["id"] for image in file.images}
    if file.annotations and not any(annotation["image_id"] in listed for annotation in file.annotations):
        raise DataError(
            f"{file.path}: none of the {len(file.annotations)} annotations belongs to a listed image, e.g. image_id "
            f"{file.annotations[0]['image_id']!r} where images have ids like {next(iter(listed), None)!r}; make them "
            "agree (numbers and text differ)"
        )
    seen: set[int | str] = set()
    for position, annotation in enumerate(file.annotations):
        name = as_id(annotation.get("id"))
        name = f"number {position}" if name is None else name
        image = annotation["image_id"]
        if image not in listed:
            if twin_id(image) in listed:
                raise DataError(f"{file.path}: {_types_differ('image_id', image, 'the images have')}")
            report.add("orphaned", f"{file.path.name}: annotation {name} of image {image}")
            continue
        if image not in found:
            continue  # its picture is left out: not asked for, or counted as missing
        if name in seen:
            report.add("doubled_ids", f"{file.path.name}: {name}")
        seen.add(name)
        found[image].append(annotation)
    return found


def _present(
    file: CocoFile,
    tree: Tree,
    folders: Sequence[str],
    images: list[dict[str, Any]],
    report: DetectionReport,
    missing_images: str,
    locate: Callable[[Mapping[str, Any]], Any],
) -> list[tuple[dict[str, Any], str]]:
    """Images with the names of their pictures in the tree. Absent ones raise, or are counted and left out."""
    names = []
    for image in images:
        name = locate(image)
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{file.path}: image {image['id']} has no file name")
        names.append(name)
    best: list[str | None] = []
    for folder in folders:
        found = [tree.find(name, folder) for name in names]
        if not best or found.count(None) < best.count(None):
            best = found
        if None not in best:
            break
    absent = [tree.where(f"{folders[0]}/{name}".lstrip("/")) for name, found in zip(names, best) if found is None]
    if absent and missing_images == "error":
        raise DataError(
            f"{file.path} names {len(absent)} of {len(images)} pictures that are absent: {first_few(absent, 3)}; "
            "unpack the data set completely, check its folder, or leave them out: "
            "load_detection(..., missing_images='skip')"
        )
    for path in absent:
        report.add("missing_images", str(path))
    there = [(image, found) for image, found in zip(images, best) if found is not None]
    counts = Counter(found for _, found in there)
    for found in (name for name, count in counts.items() if count > 1):
        report.add("doubled_pictures", found)
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
    files = {split: read_coco_file(path) for split, (path, _) in splits.items()}
    places = {split: (Tree(folder, unwrap=False), ("",)) for split, (_, folder) in splits.items()}
    return _put_together(name, files, places, missing_images, **more)


def _put_together(
    name: str,
    files: Mapping[str, CocoFile],
    places: Mapping[str, tuple[Tree, Sequence[str]]],
    missing_images: str,
    class_names: Sequence[str] | None = None,
    rename: Mapping[int, str] | None = None,
    **more: Any,
) -> DetectionData:
    report = DetectionReport()
    categories = merge_categories(list(files.values()), report, rename, class_names)
    ids, names = [category["id"] for category in categories], [category["name"] for category in categories]
    items = {s: coco_items(file, *places[s], ids, report, missing_images) for s, file in files.items()}
    return make_detection_data(name, names, ids, items, report, **more)


def read_coco(
    path: Path,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    missing_images: str = "error",
    seed: int | None = None,
) -> DetectionData:
    """A folder or zip archive in one of `coco_layout`'s layouts, or one COCO JSON file.

    Args:
        name: of the data set; None for the folder's or file's.
        class_names: instead of the files' names, in the order of category ids.
        missing_images: "error", or "skip" to leave absent pictures out, counted.
        seed: one file of all pictures is divided into splits with it, see `sampling.divide` (a file whose name says a
            split becomes that split); None: all of it is the test split.

    Raises:
        DataError: no such layout, or anything absent, broken or contradictory.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        within = path.parent.name.casefold() in ("annotations", "annotation", "images") and path.parent.parent.is_dir()
        tree = Tree(path.parent.parent if within else path.parent, unwrap=False)
        inner = path.relative_to(tree.path).as_posix()
        found = {"": Annotated(inner, picture_folders_of_one(tree, inner))}
    else:
        tree = Tree(path)
        found = find_coco(tree)
    if not found:
        raise DataError(f"{path} holds no COCO annotations; {EXPECTED}")
    files = {}
    for split, one in found.items():
        where = tree.where(one.file)
        content = tree.read(one.file, "COCO annotations (JSON)")
        files[split or "test"] = read_coco_file(where, parse_coco_json(content, where))
    places = {split or "test": (tree, one.folders) for split, one in found.items()}
    data = _put_together(name or named_after(path), files, places, missing_images, class_names)
    if "" not in found:
        return data
    said = split_of_file(found[""].file.rpartition("/")[2])
    return divide(data, seed, tree, said)
