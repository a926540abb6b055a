"""`duotune predict` with the artifact of a detector: boxes, and pictures with boxes drawn in."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.base import ImageItem, first_few
from ..data.images import is_image_name
from ..data.listing import list_images
from ..errors import ConfigError, DataError
from ..writing import write_bytes, write_text, write_together
from .box_formats import CLASSES_FILE, COCO_FILE, as_classes, as_coco, as_yolo, is_found_coco, is_found_yolo
from .output import counted, print_json, table, tell_broken

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..predictor import BoxesFound, Predictor
    from .predict import Options

KEPT_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
DETECTIONS = "detections.json"


def run(options: Options, predictor: Predictor) -> int:
    """Find boxes and print them; with --out also draw them."""
    from ..recipes.claim import claimed

    if options.top_k is not None:
        raise ConfigError(f"--top-k is of classifiers; {options.artifact} finds boxes, see --score-threshold")
    if options.format is not None:
        return _run_format(options, predictor)
    if options.out is None:
        rows = _find(options, predictor, None)
    else:
        _refuse_sources(options.images, Path(options.out))
        _refuse_others(Path(options.out), is_image_name, DETECTIONS)
        with claimed(options.out) as folder:
            rows = _find(options, predictor, folder)
    good = [row for row in rows if row.error is None]
    text = json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False)
    if options.out is not None:
        write_text(Path(options.out) / DETECTIONS, text + "\n")
    if options.json:
        print_json(text)
    else:
        cells = [
            [row.source, name, f"{score:.2f}", *(f"{side:.0f}" for side in box)]
            for row in good
            for name, score, box in zip(row.names, row.scores, row.boxes)
        ]
        if cells:
            print(table(cells, ["image", "class", "score", "x1", "y1", "x2", "y2"]))
        if empty := sum(not row.boxes for row in good):
            print(f"nothing found in {empty} of {len(good)} images (--score-threshold {_threshold(options)})")
    if options.out is not None and not options.json:
        with_boxes = sum(bool(row.boxes) for row in good)
        print(f"wrote {options.out}: {counted(len(good), 'image')}, boxes drawn in {with_boxes}, and {DETECTIONS}")
    sys.stdout.flush()
    tell_broken([row.error for row in rows], "looked at")
    return 0


def _run_format(options: Options, predictor: Predictor) -> int:
    """Find boxes and write them for other tools, all files or none; without --out print COCO's JSON."""
    from ..recipes.claim import claimed

    if options.json:
        raise ConfigError("--json and --format are alternatives; choose one (COCO's JSON is printed without --out)")
    if options.format == "yolo" and options.out is None:
        raise ConfigError("--format yolo writes a file per image; name their folder with --out")
    numbered: list[str] = []
    if options.out is None:
        rows = _find(options, predictor, None)
        print_json(as_coco(rows, predictor.model.class_names, options.images))
    else:
        _refuse_labels(options, Path(options.out), predictor.model.class_names)
        with claimed(options.out) as folder:
            rows = _find(options, predictor, None)
            if options.format == "coco":
                text = as_coco(rows, predictor.model.class_names, options.images) + "\n"
                files = {COCO_FILE: text.encode(errors="backslashreplace")}  # of file names that are no text, as JSON
            else:
                files, numbered = as_yolo(rows, predictor.model.class_names)
            write_together(folder, files)
        what = COCO_FILE if options.format == "coco" else f"{counted(len(files) - 1, 'label file')} and {CLASSES_FILE}"
        found = sum(len(row.boxes) for row in rows)
        print(f"wrote {options.out}: {what}, {found} boxes")
    if numbered:
        print(f"note: images share their names, so {first_few(numbered, 3)}", file=sys.stderr)
    sys.stdout.flush()
    tell_broken([row.error for row in rows], "looked at")
    return 0


def _sources(image: str) -> list[ImageItem]:
    """The pictures that a file, folder or archive stands for; none if it cannot be read, which is told later."""
    path = Path(image).expanduser()
    try:
        return list_images(path) if path.is_dir() or path.suffix.lower() == ".zip" else [ImageItem(path, 0)]
    except DataError:
        return []


def _refuse_others(folder: Path, would_go: Callable[[str], bool], result: str) -> None:
    """Raises ConfigError if a folder without a `result` of an earlier command has files that a result may replace."""
    if folder.is_dir() and not (folder / result).is_file():
        if found := sorted(name for name in os.listdir(folder) if would_go(name)):
            raise ConfigError(
                f"--out {folder} holds {first_few(found, 3)}, which no earlier predict wrote; name another folder"
            )


def _refuse_labels(options: Options, folder: Path, class_names: Sequence[str]) -> None:
    """Raises ConfigError if found boxes would replace files that predict did not write: somebody's annotations."""
    if options.format == "coco":
        names, ours = {COCO_FILE}, is_found_coco
    else:
        stems = {Path(item.member or item.path.name).stem for image in options.images for item in _sources(image)}
        names, ours = {CLASSES_FILE, *(f"{stem}.txt" for stem in stems)}, is_found_yolo
    for path in (folder / name for name in sorted(names)):
        same = path.name == CLASSES_FILE and path.is_file() and path.read_bytes() == as_classes(class_names)
        if path.exists() and not same and not ours(path):
            raise ConfigError(
                f"--out {folder} holds {first_few([path.name])}, which no earlier predict wrote; name another folder"
            )


def _refuse_sources(images: list[str], folder: Path) -> None:
    """Raises ConfigError if drawn pictures could replace those that are read."""
    for image in images:
        if any(item.path.resolve().parent == folder.resolve() for item in _sources(image)):
            raise ConfigError(
                f"--out {folder} holds images of {image}, which drawn ones would replace; name another folder"
            )


def _threshold(options: Options) -> float:
    return 0.3 if options.score_threshold is None else options.score_threshold


def _find(options: Options, predictor: Predictor, folder: Path | None) -> list[BoxesFound]:
    rows, taken = [], set()
    for found, image in predictor.detections(options.images, _threshold(options), options.batch_size or 1, True):
        rows.append(found)
        if folder is not None and image is not None:
            _write(folder / _free_name(found.source, taken), found.draw(image))
    return rows


def _free_name(source: str, taken: set[str]) -> str:
    """A file name like the picture's own, different from all before."""
    path = Path(source.rpartition("::")[2])  # of a picture in an archive its name there
    suffix = path.suffix if path.suffix.lower() in KEPT_FORMATS else ".png"
    name, number = f"{path.stem}{suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{path.stem}-{number}{suffix}"
    taken.add(name.lower())
    return name


def _write(path: Path, image: Image) -> None:
    content, kind = io.BytesIO(), KEPT_FORMATS[path.suffix.lower()]
    image.save(content, kind, **({"quality": 92} if kind == "JPEG" else {}))
    write_bytes(path, content.getvalue(), lasting=False)
