"""What annotation files mean by their ids, numbers, marks and outlines, whatever type they were written with.

- ids: 1.0 is 1; text stays text, since "007" and 7 may be two things, and a reader that meets both says so.
- numbers: 640 or "640"; no truth values.
- marks (`iscrowd`, `difficult`): 0, 1, true, "0", "yes", null.
- outlines: polygons in every nesting that exporters write, and run-length masks, compressed or not, to their boxes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

MARKS = {"": False, "0": False, "0.0": False, "false": False, "no": False, "n": False, "none": False, "null": False}
MARKS |= {"1": True, "1.0": True, "true": True, "yes": True, "y": True}


def as_id(value: Any) -> int | str | None:
    """A whole number or a text; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def twin_id(value: int | str) -> int | str | None:
    """What the same id would be in the other type: 7 of "7", "7" of 7; None of a text that is no number."""
    if isinstance(value, int):
        return str(value)
    return int(value) if re.fullmatch(r"\s*[+-]?\d{1,30}\s*", value) else None


def as_number(value: Any) -> float | None:
    """A finite number, also from text ("12.5"); None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_mark(value: Any) -> bool | None:
    """Yes or no; None for what is neither."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    return MARKS.get(value.strip().lower()) if isinstance(value, str) else None


def as_name(value: Any) -> Any:
    """A class name: a text, or a number as text; anything else as it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if number and isinstance(value, float) else str(value) if number else value


def outline_box(outline: Any, width: int, height: int) -> tuple[float, float, float, float] | None:
    """The xyxy bounds of COCO's `segmentation`; None if there is none that can be read.

    Args:
        outline: a polygon [x, y, x, y, ...], a list of such, points [[x, y], ...], or a mask {"size": [height, width],
            "counts": run lengths, as numbers or in COCO's compressed text}.
        width, height: pixels of the picture, which a mask must have too.

    Polygons are bounded by their corners, as COCO's own boxes are; masks by the edges of their outermost pixels.
    """
    if isinstance(outline, dict):
        return _mask_box(outline, width, height)
    pairs = list(_pairs(outline, 0))
    if not pairs or None in pairs:
        return None
    xs, ys = zip(*pairs)
    return min(xs), min(ys), max(xs), max(ys)


def _pairs(values: Any, depth: int) -> Iterator[tuple[float, float] | None]:
    """The corners in nested lists; None where something is no corner."""
    if not isinstance(values, list) or depth > 3:
        yield None
    elif values and all(isinstance(value, list) for value in values):
        for value in values:
            yield from _pairs(value, depth + 1) if value else ()
    elif values:
        numbers = [as_number(value) for value in values]
        if None in numbers or len(numbers) % 2:
            yield None
        else:
            yield from zip(numbers[::2], numbers[1::2])


def _mask_box(mask: dict[str, Any], width: int, height: int) -> tuple[float, float, float, float] | None:
    runs, size = mask.get("counts"), mask.get("size")
    if isinstance(runs, str):
        runs = _unpacked(runs)
    if not isinstance(size, list) or [as_number(side) for side in size] != [height, width]:
        return None
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        return None
    if sum(runs) != width * height:
        return None
    # Runs go down the columns, in turn of what is outside and inside of the mask.
    left, top, right, bottom = width, height, -1, -1
    place = 0
    for number, run in enumerate(runs):
        if number % 2 and run:
            first, last = place, place + run - 1
            left, right = min(left, first // height), max(right, last // height)
            if first // height == last // height:
                top, bottom = min(top, first % height), max(bottom, last % height)
            else:
                top, bottom = 0, height - 1
        place += run
    return (left, top, right + 1, bottom + 1) if right >= 0 else None


def _unpacked(text: str) -> list[int] | None:
    """COCO's compressed counts: 5 bits a letter, low ones first, from the fourth run on as a difference to that two
    before."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place >= len(text) or shift > 60:
                return None
            bits = ord(text[place]) - 48
            if not 0 <= bits < 64:
                return None
            value |= (bits & 31) << shift
            more, shift, place = bool(bits & 32), shift + 5, place + 1
            if not more and bits & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs
