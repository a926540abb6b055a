"""Sizes of pictures and their boxes, in NumPy. Boxes are (N, 4) xyxy pixels; width = x2 - x1."""

from __future__ import annotations

import numpy as np


def resized_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """(height, width) after scaling the short side to `short`, or less where the long side would pass `longest`."""
    low, high = min(height, width), max(height, width)
    if high / low * short > longest:
        short = int(round(longest * low / high))
    if low == short:
        return height, width
    return (short, int(short * width / height)) if height < width else (int(short * height / width), short)


def scale_boxes(boxes: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """Boxes of a picture resized from (height, width) `before` to `after`; each axis has its own ratio."""
    y, x = (new / old for old, new in zip(before, after))
    return (boxes * np.array([x, y, x, y])).astype(np.float32)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes of a picture of this width flipped left-right."""
    flipped = np.array(boxes, dtype=np.float32)
    flipped[:, [0, 2]] = width - boxes[:, [2, 0]]
    return flipped
