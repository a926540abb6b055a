"""Anchors: one square per cell and level.

Like the rest of GLIP's box arithmetic they follow the old convention of inclusive corners: a box of width w ends at
x1 + w - 1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ...tracing import traced

KEPT = 64
"""Sizes of pyramids whose anchors are kept on their device, 16 bytes each: 0.3 MB for a picture of 800 x 1088."""


def cell_anchor(stride: int, scale: float) -> tuple[float, float, float, float]:
    """Corners x1, y1, x2, y2 in pixels of the first cell's anchor: side scale · stride around ((stride - 1) / 2)^2."""
    centre, half = (stride - 1) / 2, (scale * stride - 1) / 2
    return centre - half, centre - half, centre + half, centre + half


def level_anchors(height: int, width: int, stride: int, scale: float, device: torch.device | None = None) -> Tensor:
    """(height · width, 4) float32 corners of one level's anchors, row-major; some reach out of the image."""
    y = torch.arange(height, dtype=torch.float32, device=device) * stride
    x = torch.arange(width, dtype=torch.float32, device=device) * stride
    y, x = (t.reshape(-1) for t in torch.meshgrid(y, x, indexing="ij"))
    corners = cell_anchor(stride, scale)
    return torch.stack([place + corner for place, corner in zip((x, y, x, y), corners)], 1)


def pyramid_anchors(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], scale: float, device: torch.device | None = None
) -> list[Tensor]:
    """`level_anchors` for maps of the given (height, width); they may be kept, so nobody may change them."""
    if traced():
        return [level_anchors(h, w, stride, scale, device) for (h, w), stride in zip(sizes, strides)]
    return list(_kept(tuple(map(tuple, sizes)), tuple(strides), scale, torch.device(device or "cpu")))


@functools.lru_cache(KEPT)
def _kept(
    sizes: tuple[tuple[int, int], ...], strides: tuple[int, ...], scale: float, device: torch.device
) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):  # they may be needed where gradients are
        return tuple(level_anchors(h, w, stride, scale, device) for (h, w), stride in zip(sizes, strides))
