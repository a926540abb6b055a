"""Which format of labels a folder, archive or file has, and what reads it: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from .base import DetectionData
from .coco import read_coco
from .coco_layout import find_coco
from .odinw import read_odinw_yaml
from .tree import Tree
from .voc import find_voc, read_voc
from .yolo import find_yolo, is_yolo_yaml, read_yolo


@dataclass(frozen=True)
class Format:
    """A format of labels.

    Attributes:
        title: what its files are called in messages.
        find: tree -> something true if the tree has such labels, which are not read. May raise DataError if it has,
            in a layout that cannot be known.
        read: (path, name, class_names, missing_images, seed) -> the data.
    """

    title: str
    find: Callable[[Tree], object]
    read: Callable[..., DetectionData]


FORMATS = (
    Format("COCO annotations", find_coco, read_coco),
    Format("YOLO labels", find_yolo, read_yolo),
    Format("Pascal VOC annotations", find_voc, read_voc),
)
"""In the order in which they are looked for: a folder that has several is read in the first."""


def format_of(path: Path) -> Format | None:
    """The format of the labels in a folder or zip archive; None if it has none."""
    try:
        tree = Tree(path)
    except DataError:
        return None
    for format in FORMATS:
        try:
            if format.find(tree):
                return format
        except DataError:
            return format
    return None


def reader_of(path: Path) -> Callable[..., DetectionData]:
    """What reads a path; of a folder or archive without labels, what says so."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        format = format_of(path)
        return format.read if format is not None else read_coco
    if path.suffix.lower() in (".yaml", ".yml"):
        return read_yolo if is_yolo_yaml(path) else read_odinw_yaml
    return read_coco
