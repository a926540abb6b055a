"""Pascal VOC (Everingham et al. 2010): one XML file per picture.

VOC:        Annotations/ID.xml, JPEGImages/ID.jpg, and lists of IDs in ImageSets/Main/{train,val,trainval,test}.txt
Roboflow:   {train,valid,test}/ID.xml beside the pictures
labelImg:   ID.xml beside the pictures, or Annotations/ and images/: no splits

Corners of VOC count pixels from 1 and the last one belongs to the box, so xmin and ymin lose 1 and xmax and ymax stay:
(1, 1, W, H) is the whole picture. (Tools that count from 0 write boxes in the same place; theirs are 1 pixel larger.)
Objects marked as difficult count as crowds: nothing is learnt from them, and whether they are found does not matter, as
in VOC's own measure. Classes are the names that occur, in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError, DataError
from ...reading import decode_text, parse_xml, shown
from ..base import first_few
from ..images import is_image_name
from ..layout import plain_name, split_of
from .base import DetectionData, DetectionItem, make_detection_data
from .boxes import clipped_box, count_doubled, make_item, named_after, picture_size
from .report import DetectionReport
from .sampling import divide
from .tree import Tree
from .values import as_mark, as_number

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

CORNERS = ("xmin", "ymin", "xmax", "ymax")
PEEKED = 20  # XML files that are looked into


@dataclass(frozen=True)
class _Part:
    """The annotations of a split and the folders that their pictures may be in."""

    files: tuple[str, ...]
    folders: tuple[str, ...]


def find_voc(tree: Tree) -> dict[str, _Part]:
    """Split -> its annotations, "" for data without splits; empty if there are none.

    Raises:
        DataError: two folders of one split.
    """
    annotations = tree.find_folder("Annotations")
    pictures = [tree.find_folder("JPEGImages"), tree.find_folder("images")]
    if annotations is not None:
        if files := _annotations(tree, annotations):
            places = tuple(place for place in (*pictures, annotations, "") if place is not None)
            return _by_list(tree, files, places)
        return _by_folder(tree, annotations, [place for place in pictures if place is not None])
    if found := _by_folder(tree, "", []):
        return found
    for folder in ("", *(place for place in pictures if place is not None)):
        if files := _annotations(tree, folder):
            places = dict.fromkeys([folder, *(place for place in pictures if place is not None)])
            return {"": _Part(tuple(files), tuple(places))}
    return {}


def _annotations(tree: Tree, folder: str) -> list[str]:
    """The XML files of a folder, if one of the first is VOC's."""
    files = [f"{folder}/{name}".lstrip("/") for name in tree.listing(folder)[1] if name.casefold().endswith(".xml")]
    for file in files[:PEEKED]:
        try:
            if b"<annotation" in tree.read(file, "VOC annotations").replace(b"\0", b""):
                return files
        except DataError:
            return files
    return []


def _by_folder(tree: Tree, above: str, pictures: Sequence[str]) -> dict[str, _Part]:
    """Annotations in a folder per split."""
    found: dict[str, _Part] = {}
    for folder in tree.listing(above)[0]:
        split = split_of(folder)
        place = f"{above}/{folder}".lstrip("/")
        inner = tree.find_folder(f"{place}/Annotations") or place
        if split is None or not (files := _annotations(tree, inner)):
            continue
        if split in found:
            raise DataError(f"{tree.path} has several folders of the split {split!r}; keep one of them")
        places = [tree.find_folder(f"{place}/{name}") for name in ("JPEGImages", "images")]
        places += [place, *(tree.find_folder(f"{other}/{folder}") for other in pictures), *pictures]
        found[split] = _Part(tuple(files), tuple(dict.fromkeys(p for p in places if p is not None)))
    return found


def _by_list(tree: Tree, files: Sequence[str], places: tuple[str, ...]) -> dict[str, _Part]:
    """Annotations of one folder, as ImageSets/Main divides them; {"": all} without lists of splits."""
    lists = tree.find_folder("ImageSets/Main", "ImageSets")
    names = [name for name in tree.listing(lists)[1] if name.casefold().endswith(".txt")] if lists is not None else []
    said = {split: name for name in names if (split := split_of(name.rpartition(".")[0]))}
    both = next((name for name in names if name.casefold() == "trainval.txt"), None)
    if both is not None and "train" not in said:
        said["train"] = both
    if not said:
        return {"": _Part(tuple(files), places)}
    known = {plain_name(file.rpartition("/")[2].rpartition(".")[0]): file for file in files}
    found: dict[str, _Part] = {}
    for split, name in said.items():
        where = tree.where(f"{lists}/{name}")
        lines = decode_text(tree.read(f"{lists}/{name}", "picture ids"), str(where)).splitlines()
        ids = [_id(line.split()[0], known) for line in lines if line.strip()]
        absent = [i for i in ids if plain_name(i) not in known]
        if len(absent) == len(ids):
            continue  # VOC's own archive lists test pictures whose annotations come separately
        if absent:
            raise DataError(
                f"{where} names {len(absent)} of {len(ids)} pictures that have no annotation: {first_few(absent, 3)}; "
                "unpack the data set completely, or correct the list"
            )
        found[split] = _Part(tuple(dict.fromkeys(known[plain_name(i)] for i in ids)), places)
    if not found:
        raise DataError(
            f"{tree.where(lists)}: no list names a picture that has an annotation; expected the annotations' names, "
            "without .xml; correct the lists, or remove them"
        )
    return found


def _id(word: str, known: Container[str]) -> str:
    """The id that a list means; some write the picture's path instead."""
    base = word.replace("\\", "/").rpartition("/")[2]
    return base.rpartition(".")[0] if plain_name(base) not in known and is_image_name(base) else base


def read_voc(
    path: Path,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    missing_images: str = "error",
    seed: int | None = None,
) -> DetectionData:
    """A folder or zip archive of VOC files. Arguments as for `coco.read_coco`.

    Raises:
        DataError: annotations broken or of another form, pictures absent. ClassNamesError: two names read the same.
    """
    if missing_images not in ("error", "skip"):
        raise ConfigError(f"missing_images must be 'error' or 'skip', not {missing_images!r}")
    path, report = Path(path), DetectionReport()
    tree = Tree(path)
    parts = find_voc(tree)
    if not parts:
        raise DataError(f"{path} holds no Pascal VOC annotations; expected Annotations/*.xml with JPEGImages/")
    _refuse_inner(tree, parts)
    read = {split: list(_read_all(tree, part.files)) for split, part in parts.items()}
    names = sorted({_name(thing, where) for rows in read.values() for where, root in rows for thing in _objects(root)})
    if class_names is not None and len(class_names) != len(names):
        raise ConfigError(f"{path}: the data set has {len(names)} classes, class_names {len(class_names)}")
    if not names:
        raise DataError(f"{path}: no object in any of its annotations")
    labels = {name: label for label, name in enumerate(names)}
    items: dict[str, list[DetectionItem]] = {}
    for split, part in parts.items():
        finder = _Pictures(tree, part.folders)
        rows = [(where, root, finder.find(file, root)) for file, (where, root) in zip(part.files, read[split])]
        absent = [where for where, _, picture in rows if picture is None]
        if absent and missing_images == "error":
            raise DataError(
                f"{path}: {len(absent)} of {len(rows)} annotations have no picture of their name: "
                f"{first_few(absent, 3)}; unpack the data set completely, or leave them out: "
                "load_detection(..., missing_images='skip')"
            )
        for where in absent:
            report.add("missing_images", where)
        items[split or "test"] = [
            _item(tree, number, where, root, picture, labels, report)
            for number, (where, root, picture) in enumerate(rows, start=1)
            if picture is not None
        ]
        if split == "" or not tree.find_folder("ImageSets"):
            for picture in finder.unused(picture for _, _, picture in rows):
                report.add("unlabelled", picture)
    data = make_detection_data(name or named_after(path), class_names or names, range(1, len(names) + 1), items, report)
    return divide(data, seed, tree) if "" in parts else data


def _refuse_inner(tree: Tree, parts: dict[str, _Part]) -> None:
    """Raises DataError for annotations in folders inside of those that are read."""
    folders = {file.rpartition("/")[0] for part in parts.values() for file in part.files}
    for folder in sorted(folders):
        inner = [f"{folder}/{name}".lstrip("/") for name in tree.listing(folder)[0]]
        if other := next((file for place in inner if place not in folders for file in _annotations(tree, place)), None):
            raise DataError(
                f"{tree.where(other)} lies in a folder inside {tree.where(folder)}, which has annotations itself; put "
                "all of a split into one folder"
            )


def _read_all(tree: Tree, files: Sequence[str]) -> Iterator[tuple[str, Element]]:
    """(name for messages, root) of each annotation."""
    for file, content in zip(files, tree.read_many(list(files), "VOC annotations")):
        where = str(tree.where(file))
        root = parse_xml(content, where)
        if root.tag != "annotation":
            raise DataError(f"{where} is no Pascal VOC file: expected <annotation>, found <{shown(root.tag, 40)}>")
        yield where, root


def _objects(root: Element) -> list[Element]:
    return root.findall("object")


def _name(thing: Element, where: str) -> str:
    name = plain_name(" ".join((thing.findtext("name") or "").split()))
    if not name:
        raise DataError(f"{where}: an object has no name; expected <object><name>...</name>")
    return name


class _Pictures:
    """The picture of each annotation: that of its own name, else the one that it names."""

    def __init__(self, tree: Tree, folders: Sequence[str]):
        self.tree, self.folders = tree, folders
        self.stems: dict[str, list[str]] = {}
        for folder in folders:
            for name in tree.listing(folder)[1]:
                if is_image_name(name):
                    picture = f"{folder}/{name}".lstrip("/")
                    self.stems.setdefault(plain_name(name.rpartition(".")[0]), []).append(picture)

    def find(self, file: str, root: Element) -> str | None:
        own = self.stems.get(plain_name(file.rpartition("/")[2].rpartition(".")[0]), [])
        named = (root.findtext("filename") or "").strip()
        exact = [picture for picture in own if picture.rpartition("/")[2] == named]
        if own:
            return (exact or own)[0]
        places = (self.tree.find(named, folder, "filename") for folder in self.folders) if named else ()
        return next(filter(None, places), None)

    def unused(self, used: Iterator[str | None]) -> list[str]:
        taken = set(used)
        beside = self.folders[0]
        own = [picture for pictures in self.stems.values() for picture in pictures]
        return [p for p in own if p not in taken and p.rpartition("/")[0] == beside]


def _item(
    tree: Tree,
    number: int,
    where: str,
    root: Element,
    picture: str,
    labels: dict[str, int],
    report: DetectionReport,
) -> DetectionItem:
    place = tree.place(picture)
    width, height = (as_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
    if width is None or height is None or min(width, height) < 1 or width % 1 or height % 1:
        width, height = picture_size(place)
        report.add("sizes", where)
    rows: list[tuple] = []
    for position, thing in enumerate(_objects(root), start=1):
        about = f"{where}, object {position}"
        corners = thing.find("bndbox")  # its own: parts of the object have theirs
        values = [as_number(corners.findtext(corner)) if corners is not None else None for corner in CORNERS]
        difficult = as_mark(thing.findtext("difficult"))
        if difficult is None:
            raise DataError(f"{about}: difficult must be 0 or 1, not {shown(thing.findtext('difficult'), 40)}")
        if None in values:
            report.add("malformed", about)
            continue
        x1, y1, x2, y2 = values
        x1, y1 = (max(0.0, corner - 1) if corner >= 0 else corner - 1 for corner in (x1, y1))
        box, fault = clipped_box(x1, y1, x2, y2, int(width), int(height))
        if fault:
            report.add(fault, about)
        if box is not None:
            area = (box[2] - box[0]) * (box[3] - box[1])
            rows.append((box, labels[_name(thing, where)], position, difficult, area))
    count_doubled(rows, where, report)
    if not rows:
        report.add("empty_images", where)
    report.images += 1
    report.boxes += len(rows)
    return make_item(image_id=number, width=int(width), height=int(height), rows=rows, **place)
