"""GLIP's training loss on one image, written out plainly: anchors, ATSS, focal loss, GIoU, centerness.

Boxes have inclusive corners, width x2 - x1 + 1, but for GIoU. Nothing of duotune is imported.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def anchors_of(sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Per level (h w, 4): squares of 8 strides' side."""
    found = []
    for level, (height, width) in enumerate(sizes):
        stride = 8 << level
        y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
        centre = torch.stack([x, y, x, y], -1).reshape(-1, 4).float() + (stride - 1) / 2
        found.append(centre + (8 * stride - 1) / 2 * torch.tensor([-1.0, -1, 1, 1]))
    return found


def overlaps(a: Tensor, b: Tensor) -> Tensor:
    area = lambda t: (t[:, 2] - t[:, 0] + 1) * (t[:, 3] - t[:, 1] + 1)
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    common = (high - low + 1).clamp(min=0).prod(-1)
    return common / (area(a)[:, None] + area(b) - common)


def assign(levels: list[Tensor], boxes: Tensor) -> Tensor:
    """(A,) index of the box of each anchor, -1 for none."""
    anchors = torch.cat(levels)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    iou = overlaps(anchors, boxes)
    best, owner = torch.full((len(anchors),), -1.0), torch.full((len(anchors),), -1)
    for index, box in enumerate(boxes):
        distance = ((centre - (box[:2] + box[2:]) / 2) ** 2).sum(1).sqrt()
        candidates, start = [], 0
        for level in levels:
            count = min(9, len(level))
            candidates.append(distance[start : start + len(level)].topk(count, largest=False).indices + start)
            start += len(level)
        candidates = torch.cat(candidates)
        values = iou[candidates, index]
        inside = torch.cat([centre[candidates] - box[:2], box[2:] - centre[candidates]], 1).amin(1) > 0.01
        for anchor in candidates[(values >= values.mean() + values.std()) & inside].tolist():
            if iou[anchor, index] > best[anchor]:
                best[anchor], owner[anchor] = iou[anchor, index], index
    return owner


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    size, own = boxes[:, 2:] - boxes[:, :2] + 1, anchors[:, 2:] - anchors[:, :2] + 1
    shift = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / own
    return torch.cat([10 * shift, 5 * (size / own).log()], 1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    own = anchors[:, 2:] - anchors[:, :2] + 1
    centre = deltas[:, :2] / 10 * own + (anchors[:, :2] + anchors[:, 2:]) / 2
    size = (deltas[:, 2:] / 5).clamp(max=math.log(1000 / 16)).exp() * own
    return torch.cat([centre - (size - 1) / 2, centre + (size - 1) / 2], 1)


def giou(a: Tensor, b: Tensor) -> Tensor:
    a = torch.cat([a[:, :2], torch.maximum(a[:, :2], a[:, 2:])], 1)
    area = lambda t: (t[:, 2] - t[:, 0]) * (t[:, 3] - t[:, 1])
    common = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1) + 1e-7
    union = area(a) + area(b) - common + 1e-7
    return common / union - (around - union) / around


def detection_loss(
    logits: Tensor,
    deltas: Tensor,
    centerness: Tensor,
    sizes: list[tuple[int, int]],
    boxes: Tensor,
    positive_map: Tensor,
    mask: Tensor,
) -> Tensor:
    """logits (N, T), deltas (N, 4), centerness (N), boxes (M, 4), positive_map (M, T), mask (T) -> scalar."""
    levels = anchors_of(sizes)
    anchors, owner = torch.cat(levels), assign(levels, boxes)
    found = owner >= 0
    count = found.sum().clamp(min=1)
    targets = torch.zeros_like(logits)
    targets[:, -1] = 1
    targets[found] = positive_map[owner[found]]
    prob = logits.sigmoid()
    right = prob * targets + (1 - prob) * (1 - targets)
    weight = 0.25 * targets + 0.75 * (1 - targets)
    focal = weight * (1 - right) ** 2 * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    token = focal[:, mask > 0].sum() / count

    anchors, goal = anchors[found], encode(boxes[owner[found]], anchors[found])
    truth = decode(goal, anchors)
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2
    before, behind = centre - truth[:, :2], truth[:, 2:] - centre
    share = (torch.minimum(before, behind) / torch.maximum(before, behind)).prod(1).sqrt()
    box = ((1 - giou(decode(deltas[found], anchors), truth)) * share).sum() / share.sum()
    centred = F.binary_cross_entropy_with_logits(centerness[found], share, reduction="sum") / count
    return token + 2 * box + centred
