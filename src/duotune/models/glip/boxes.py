"""Box arithmetic: coding relative to anchors, overlap, suppression.

Boxes are xyxy in pixels with *inclusive* corners unless a docstring says otherwise: width = x2 - x1 + 1. Mixing up the
two conventions costs accuracy and is hard to see, so conversions from and to COCO's xywh are here too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SHIFT_WEIGHT, SIZE_WEIGHT = 10.0, 5.0  # numbers, not tensors: those would have to be copied to an accelerator
MAX_LOG_SCALE = math.log(1000.0 / 16)


def xywh_to_boxes(xywh: Tensor) -> Tensor:
    """COCO's (x, y, width, height) (…, 4) -> inclusive corners."""
    x, y, w, h = xywh.unbind(-1)
    return torch.stack([x, y, x + (w - 1).clamp(min=0), y + (h - 1).clamp(min=0)], -1)


def boxes_to_xywh(boxes: Tensor) -> Tensor:
    """Inclusive corners (…, 4) -> COCO's (x, y, width, height)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([x1, y1, x2 - x1 + 1, y2 - y1 + 1], -1)


def clip_boxes(boxes: Tensor, height: float, width: float) -> Tensor:
    """Corners moved into [0, width - 1] x [0, height - 1]."""
    limit = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), limit)


def centers(boxes: Tensor) -> Tensor:
    """(…, 4) -> (…, 2) x, y."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Boxes relative to anchors, both (N, 4) -> (N, 4): shift over the anchor's size, log size ratio, weighted."""
    size, anchor_size = boxes[:, 2:] - boxes[:, :2] + 1, anchors[:, 2:] - anchors[:, :2] + 1
    shift = (centers(boxes) - centers(anchors)) / anchor_size
    return torch.cat([shift * SHIFT_WEIGHT, (size / anchor_size).log() * SIZE_WEIGHT], 1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """Inverse of `encode_boxes`; size ratios are limited to 62.5."""
    anchor_size = anchors[:, 2:] - anchors[:, :2] + 1
    centre = deltas[:, :2] / SHIFT_WEIGHT * anchor_size + centers(anchors)
    half = ((deltas[:, 2:] / SIZE_WEIGHT).clamp(max=MAX_LOG_SCALE).exp() * anchor_size - 1) / 2
    return torch.cat([centre - half, centre + half], 1)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(N, 4), (M, 4) -> (N, M) intersection over union of inclusive boxes."""
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    other_area = (others[:, 2] - others[:, 0] + 1) * (others[:, 3] - others[:, 1] + 1)
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inter = (high - low + 1).clamp(min=0).prod(-1)
    return inter / (area[:, None] + other_area[None] - inter)


def multiclass_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Greedy suppression within each class, as the official CUDA kernel (`ml_nms`) does it.

    Going down in score, a box is dropped if it overlaps a kept box of its class by *more* than `threshold`.

    Args:
        boxes: (N, 4). scores: (N,). labels: (N,) integers.

    Returns:
        Indices of the kept boxes, ascending.
    """
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[scores[rows].argsort(descending=True, stable=True)]
        keep[rows[_greedy(pairwise_iou(boxes[rows], boxes[rows]) > threshold)]] = True
    return keep.nonzero().squeeze(1)


def _greedy(overlaps: Tensor) -> Tensor:
    """(n, n) bool, sorted by score -> (n,) kept.

    Greedy suppression is the only fixed point of "kept unless a better kept box overlaps". Starting from all kept,
    each sweep settles at least the next undecided box, so this ends after as many sweeps as the longest chain of
    suppressions: a few.
    """
    better = overlaps.triu(1)
    kept = torch.ones(len(overlaps), dtype=torch.bool, device=overlaps.device)
    while True:
        now = ~(better & kept[:, None]).any(0)
        if torch.equal(now, kept):
            return kept
        kept = now
