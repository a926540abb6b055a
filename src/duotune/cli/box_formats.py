"""Found boxes in the formats of other tools: a COCO file, or YOLO labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..reading import read_json, read_text

if TYPE_CHECKING:
    from ..predictor import BoxesFound

COCO_FILE, CLASSES_FILE = "coco.json", "classes.txt"


def picture_names(rows: Sequence[BoxesFound], given: Sequence[str]) -> list[str]:
    """Names of pictures as annotation files have them: relative to the folder or archive that was given, or alone.

    Where two would be the same, all are as they were given.
    """
    folders = sorted((Path(path).expanduser() for path in given), key=lambda path: -len(path.parts))
    names = []
    for row in rows:
        path = Path(row.source.replace("::", "/"))
        home = next((folder for folder in folders if path != folder and path.is_relative_to(folder)), path.parent)
        names.append(path.relative_to(home).as_posix())
    return names if len(set(names)) == len(names) else [row.source for row in rows]


def as_coco(rows: Sequence[BoxesFound], class_names: Sequence[str], given: Sequence[str]) -> str:
    """A COCO file (JSON) of what was found: images, categories, and annotations with a score.

    Ids count from 1: of images in the order in which they were looked at, of categories in the model's order. Boxes are
    [x, y, width, height] in pixels. Its annotations are also a list of results as COCO's evaluation reads it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row, name in zip(rows, picture_names(rows, given)):
        if row.error is not None:
            continue
        images.append({"id": len(images) + 1, "file_name": name, "width": row.width, "height": row.height})
        for (x1, y1, x2, y2), score, label in zip(row.boxes, row.scores, row.labels):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": label + 1,
                    "bbox": box,
                    "score": score,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content, indent=2, ensure_ascii=False)


def as_yolo(rows: Sequence[BoxesFound], class_names: Sequence[str]) -> tuple[dict[str, bytes], list[str]]:
    """YOLO labels of what was found, with scores, and the names of files that had to be numbered.

    Returns:
        {file name: content}: classes.txt, and per picture that could be read NAME.txt, empty if nothing was found, with
        lines "class cx cy w h score" in shares of the picture's size. Pictures of one name get NAME-2.txt and so on.
    """
    files = {CLASSES_FILE: as_classes(class_names)}
    taken, numbered = {CLASSES_FILE}, []
    for row in rows:
        if row.error is not None:
            continue
        lines = [
            f"{label} {_shares(box, row.width, row.height)} {score:.6f}\n"
            for box, score, label in zip(row.boxes, row.scores, row.labels)
        ]
        stem = Path(row.source.replace("::", "/")).stem
        name, number = f"{stem}.txt", 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}.txt"
        if number > 1:
            numbered.append(f"{name} is of {row.source}")
        taken.add(name.lower())
        files[name] = "".join(lines).encode()
    return files, numbered


def as_classes(class_names: Sequence[str]) -> bytes:
    """A name per line; a line break in a name, which would make it two, is a space."""
    return "".join(" ".join(name.split()) + "\n" for name in class_names).encode()


def is_found_coco(path: Path) -> bool:
    """Whether a file is one of `as_coco`: all annotations have a score, which those of people lack."""
    try:
        return all("score" in annotation for annotation in read_json(path)["annotations"])
    except (DataError, TypeError, KeyError):
        return False


def is_found_yolo(path: Path) -> bool:
    """Whether a file is one of `as_yolo`: all lines have a score, which labels of people lack."""
    try:
        return all(len(line.split()) == 6 for line in read_text(path, "YOLO labels").splitlines())
    except DataError:
        return False


def _shares(box: Sequence[float], width: int, height: int) -> str:
    x1, y1, x2, y2 = box
    shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return " ".join(f"{min(1.0, max(0.0, share)):.6f}" for share in shares)
