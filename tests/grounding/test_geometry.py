"""Sizes after resizing, and boxes with them."""

from __future__ import annotations

import numpy as np
import pytest

from duotune.grounding import flip_boxes, resized_size, scale_boxes


@pytest.mark.parametrize("size, expected", [
    ((480, 640), (800, 1066)),  # 1066.67 is cut, not rounded
    ((640, 480), (1066, 800)),
    ((333, 1000), (444, 1333)),  # the long side would be 2402: short side round(1333 * 333 / 1000)
    ((800, 1200), (800, 1200)),
    ((100, 100), (800, 800)),
])  # fmt: skip
def test_resized_size(size, expected):
    assert resized_size(*size, short=800, longest=1333) == expected


def test_boxes_move_with_the_picture():
    boxes = np.array([[0, 0, 10, 20], [30, 5, 40, 10]], dtype=np.float32)
    assert scale_boxes(boxes, (20, 40), (30, 80)).tolist() == [[0, 0, 20, 30], [60, 7.5, 80, 15]]
    assert flip_boxes(boxes, 40).tolist() == [[30, 0, 40, 20], [0, 5, 10, 10]]
    assert flip_boxes(flip_boxes(boxes, 40), 40).tolist() == boxes.tolist()
    none = np.zeros((0, 4), dtype=np.float32)
    assert scale_boxes(none, (2, 2), (4, 4)).shape == flip_boxes(none, 2).shape == (0, 4)
    assert boxes.tolist()[0] == [0, 0, 10, 20]  # neither writes into its argument
