"""Boxes as readers meet them: checked, cut at the picture's edge, put into items."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..images import image_size
from .base import DetectionItem
from .report import DetectionReport
from .values import outline_box

EDGE_TOLERANCE = 0.01  # pixels; boxes that reach farther out are counted as clipped, not only clipped


@dataclass(frozen=True)
class _Place:
    """Where a picture is, as `data.images` asks for it."""

    path: Path
    member: str | None = None

    @property
    def key(self) -> str:
        return f"{self.path}::{self.member}" if self.member else str(self.path)


def picture_size(place: Mapping[str, Any]) -> tuple[int, int]:
    """(width, height) of the picture at `Tree.place`, its EXIF orientation obeyed. Raises DataError if it is broken."""
    return image_size(_Place(**place))[1]


def checked_box(values: Any, width: int, height: int) -> tuple[list[float] | None, str | None]:
    """COCO's [x, y, w, h] -> (xyxy inside the picture or None, kind of fault or None)."""
    if not _is_box(values):
        return None, "malformed"
    try:
        x, y, w, h = map(float, values)
    except OverflowError:
        return None, "not_finite"
    if not all(map(math.isfinite, (x, y, w, h, x + w, y + h))):
        return None, "not_finite"
    return clipped_box(x, y, x + w, y + h, width, height)


def _is_box(values: Any) -> bool:
    real = lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool)
    return isinstance(values, list | tuple) and len(values) == 4 and all(map(real, values))


def annotated_box(
    annotation: Mapping[str, Any], width: int, height: int
) -> tuple[list[float] | None, str | None, bool]:
    """As `checked_box`, of an annotation, and whether its outline had to serve because its bbox could not."""
    box, fault = checked_box(annotation.get("bbox"), width, height)
    if box is not None or fault == "outside" or not annotation.get("segmentation"):
        return box, fault, False
    bounds = outline_box(annotation["segmentation"], width, height)
    if bounds is None:
        return None, fault, False
    return *clipped_box(*bounds, width, height), True


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


@dataclass
class BoxShapes:
    """Whether all boxes of a file look like another format's: corners instead of sizes, shares instead of pixels."""

    seen: int = 0
    corners: int = 0  # would lie in their picture as [x1, y1, x2, y2]
    shares: int = 0  # lie in the first pixel of a picture of more
    out: int = 0

    def see(self, values: Any, fault: str | None, width: int, height: int) -> None:
        if fault in ("malformed", "not_finite"):
            return
        x, y, w, h = map(float, values)
        edge = EDGE_TOLERANCE
        self.seen += 1
        self.corners += 0 <= x < w <= width + edge and 0 <= y < h <= height + edge
        self.shares += 0 <= x <= 1 and 0 <= y <= 1 and 0 < w <= 1 and 0 < h <= 1 and min(width, height) > 4
        self.out += fault in ("clipped", "outside")

    def judge(self, path: Path, report: DetectionReport) -> None:
        """Raises DataError for shares; counts what would fit as corners."""
        if self.seen and self.shares == self.seen:
            raise DataError(
                f"{path}: all {self.seen} boxes lie within the first pixel of their picture, as if they were shares of "
                "its size; COCO's are [x, y, width, height] in pixels"
            )
        if self.out and self.corners == self.seen:
            for _ in range(self.out):
                report.add("corners", path.name)


def count_doubled(rows: Sequence[tuple], where: str, report: DetectionReport) -> None:
    """Count boxes of one picture, (box, label, ...), that stand at exactly the same place."""
    labels: dict[tuple[float, ...], set[int]] = {}
    for box, label, *_ in rows:
        there = labels.setdefault(tuple(box), set())
        if there:
            report.add("doubled_boxes" if label in there else "two_classes", where)
        there.add(label)


def named_after(path: Path) -> str:
    """The name of a data set without one: that of its folder or file."""
    return path.stem if path.is_file() else path.name or path.resolve().name
