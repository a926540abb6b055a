"""Where COCO files lie in a folder or archive, which split each is of, and where its pictures may be.

Roboflow:   {train,valid,test}/_annotations.coco.json, pictures beside it
COCO 2017:  annotations/instances_{train,val}2017.json, pictures in {train,val}2017/ or images/{train,val}2017/
flat:       {train,val,test}.json, pictures in {train,val,test}/, images/{train,val,test}/ or images/
ODinW:      {train,valid,test}/annotations_without_background.json
one file:   any one name, at the top or in annotations/, that says no split; pictures in images/, data/ or beside it

Splits are known by `layout.split_of`, so "Train", "validation" and the like serve too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import DataError
from ...reading.archives import Archive
from ..base import first_few
from ..layout import SPLIT_NAMES, split_of
from .base import SPLITS
from .tree import Tree

EXPECTED = (
    "expected train/_annotations.coco.json (Roboflow), annotations/instances_train2017.json (COCO), train.json beside "
    "train/ or images/, and likewise for val and test, or one JSON file of all pictures; data.yaml with images/train "
    "and labels/train (YOLO); or Annotations/*.xml with JPEGImages/ (Pascal VOC)"
)
KNOWN_FILES = ("_annotations.coco.json", "annotations_without_background.json")
NEUTRAL = frozenset(
    "annotation annotations ann anns coco instance instances bbox bboxes box boxes label labels detection detections "
    "object objects gt default result results without background json split set data dataset".split()
)
MARKS = (b'"images"', b'"annotations"', b'"categories"', b'"image_id"', b'"category_id"', b'"bbox"')
PEEKED_BYTES = 2**16


@dataclass(frozen=True)
class Annotated:
    """An annotation file in a `Tree`, and the folders its pictures may lie in, the likeliest first."""

    file: str
    folders: tuple[str, ...]


def split_of_file(name: str) -> str | None:
    """The split that an annotation file's name says: "instances_val2017.json" -> "val"; None if it says none or more.

    Words that are none of `NEUTRAL` make it another kind of file: "captions_train2017.json" says none.
    """
    words = _words(name)
    said = {split_of(word) for word in words if split_of(word)}
    other = [word for word in words if not split_of(word) and word.rstrip("0123456789") not in (*NEUTRAL, "")]
    return said.pop() if len(said) == 1 and not other else None


def _split_of(name: str) -> str | None:
    """The same of a file among others: "trainval" is training there, since what is for testing has its own file."""
    whole = "trainval" in _words(name)
    return split_of_file(name.casefold().replace("trainval", "train") if whole else name)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.casefold().removesuffix(".json")) if word]


def looks_like_coco(tree: Tree, name: str) -> bool:
    """Whether the beginning or the end of a JSON file has the words of COCO's format."""
    try:
        if tree.is_archive:
            with Archive(tree.path) as archive:
                content = archive.read(tree.top + name)
            ends = content[:PEEKED_BYTES] + content[-PEEKED_BYTES:]
        else:
            with tree.where(name).open("rb") as file:
                ends = file.read(PEEKED_BYTES)
                file.seek(max(0, file.seek(0, 2) - PEEKED_BYTES))
                ends += file.read(PEEKED_BYTES)
    except (OSError, DataError):
        return False
    ends = ends.replace(b"\0", b"")  # of UTF-16
    return sum(mark in ends for mark in MARKS) >= 2


def find_coco(tree: Tree) -> dict[str, Annotated]:
    """Split -> its annotations; {"": ...} for one file of all pictures; empty if there are none.

    Raises:
        DataError: COCO files whose splits cannot be known, or several of one split; names them.
    """
    rows = _by_split(tree)
    if all("trainval" in _words(file) for _, _, file, _ in rows):
        rows = []  # alone it is one file of all pictures
    found: dict[str, Annotated] = {}
    for split in SPLITS:
        own = [(("trainval" in _words(file), rank), file, home) for rank, s, file, home in rows if s == split]
        if not own:
            continue
        best = min(rank for rank, _, _ in own)
        first = sorted((file, home) for rank, file, home in own if rank == best)
        if len(first) > 1:
            raise DataError(
                f"{tree.path} has several COCO files of the split {split!r}: {first_few([f for f, _ in first])}; "
                "keep one of them, or name one file"
            )
        found[split] = Annotated(first[0][0], _picture_folders(tree, split, *first[0]))
    if found:
        return found
    single = [name for name in _loose(tree) if looks_like_coco(tree, name)]
    if len(single) > 1:
        raise DataError(
            f"{tree.path} has several COCO files, and their names say no split: {first_few(single)}; {EXPECTED}"
        )
    return {"": Annotated(single[0], picture_folders_of_one(tree, single[0]))} if single else {}


def _by_split(tree: Tree) -> list[tuple[int, str, str, str]]:
    """(rank, split, file, the split's own folder or "") of every file whose split is known; lower ranks go first."""
    folders, files = tree.listing()
    found = []
    for folder in folders:
        split = split_of(folder)
        if split is None:
            continue
        inside = {file.casefold(): file for file in tree.listing(folder)[1] if file.casefold().endswith(".json")}
        known = [(rank, inside[name]) for rank, name in enumerate(KNOWN_FILES) if name in inside]
        if known:
            found += [(rank, split, f"{folder}/{file}", folder) for rank, file in known]
            continue
        names = [f"{folder}/{file}" for file in inside.values()]
        deeper = tree.find_folder(f"{folder}/annotations")
        if deeper is not None:
            names += [f"{deeper}/{file}" for file in tree.listing(deeper)[1] if file.casefold().endswith(".json")]
        names = [name for name in names if _split_of(name.rpartition("/")[2]) in (split, None)]
        coco = [name for name in names if looks_like_coco(tree, name)] if len(names) < 100 else []  # labelme: one each
        found += [(20, split, name, folder) for name in coco]
    for file in files:
        if not file.casefold().endswith(".json"):
            continue
        split, rank = _split_of(file), 4 if file.casefold().removesuffix(".json") in SPLIT_NAMES else 6
        if split and file.casefold().endswith("_" + KNOWN_FILES[1]):
            rank = 2
        if split and (rank < 6 or looks_like_coco(tree, file)):
            found.append((rank, split, file, ""))
    annotations = tree.find_folder("annotations")
    for file in tree.listing(annotations)[1] if annotations else ():
        split = _split_of(file) if file.casefold().endswith(".json") else None
        if split is None:
            continue
        name = f"{annotations}/{file}"
        plain = file.casefold()
        year = re.fullmatch(r".*?(\d*)\.json", plain)[1]
        if plain.startswith("instances_"):
            found.append(({"2017": 8, "2014": 9, "": 10}.get(year, 11), split, name, ""))
        elif looks_like_coco(tree, name):
            found.append((12, split, name, ""))
    return found


def _loose(tree: Tree) -> list[str]:
    """JSON files at the top, in annotations/ and in images/."""
    found = []
    for folder in ("", tree.find_folder("annotations"), tree.find_folder("images")):
        if folder is not None:
            names = [name for name in tree.listing(folder)[1] if name.casefold().endswith(".json")]
            found += [f"{folder}/{name}".lstrip("/") for name in names] if len(names) < 100 else []
    return found


def _picture_folders(tree: Tree, split: str, file: str, home: str) -> tuple[str, ...]:
    beside, _, base = file.rpartition("/")
    if home:
        places = [beside, tree.find_folder(f"{home}/images"), home]
    else:
        images = tree.find_folder("images")
        named = [word for word in _words(base) if split_of(word)]
        places = []
        for above in ("", images):
            if above is not None:
                own = [folder for folder in tree.listing(above)[0] if split_of(folder) == split]
                own.sort(key=lambda folder: (folder.casefold() not in named, folder))
                own = [f"{above}/{folder}".lstrip("/") for folder in own]
                places += own + [inner for f in own if (inner := tree.find_folder(f"{f}/images"))]
        places += [images, beside, ""]
    return tuple(dict.fromkeys(place for place in places if place is not None))


def picture_folders_of_one(tree: Tree, file: str) -> tuple[str, ...]:
    """Where the pictures of a file that belongs to no split may lie: a folder of its name, images/, beside it."""
    beside, _, base = file.rpartition("/")
    stem = base.rpartition(".")[0]
    names = [f"{beside}/{stem}".lstrip("/"), f"{beside}/images".lstrip("/"), "images/default", "images", "data"]
    places = [tree.find_folder(name) for name in names]
    return tuple(dict.fromkeys(place for place in (*places, beside, "") if place is not None))
