"""Training targets and losses.

Anchors are matched with ATSS (Zhang et al., arXiv 1912.02424), tokens learn with a focal loss, boxes with GIoU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ...processes import mean_over_processes
from .boxes import centers, decode_boxes, encode_boxes, pairwise_iou

MIN_INSIDE = 0.01  # pixels by which a positive anchor's centre lies within its box


@dataclass
class Targets:
    """What each anchor should say, for one image or concatenated over a batch (A anchors).

    Attributes:
        matched: (A,) int64, row of the anchor's box, -1 for background.
        tokens: (A, T) float 0/1, tokens the anchor should match.
        deltas: (A, 4) its box relative to the anchor; 0 for background.
    """

    matched: Tensor
    tokens: Tensor
    deltas: Tensor


def assign_anchors(boxes: Tensor, anchors: list[Tensor], topk: int = 9) -> Tensor:
    """Row of the box each anchor is responsible for (A,), -1 for background.

    Per box, the `topk` anchors of each level whose centres are nearest are candidates; those with an overlap of at
    least mean + standard deviation over the candidates and the centre inside the box are taken. Of several boxes an
    anchor takes the one it overlaps most.

    Args:
        boxes: (M, 4) inclusive corners. anchors: per level (A_l, 4).
    """
    every = torch.cat(anchors)
    if not len(boxes):
        return torch.full((len(every),), -1, dtype=torch.long, device=every.device)
    overlaps = pairwise_iou(every, boxes)
    distances = torch.cdist(centers(every), centers(boxes), compute_mode="donot_use_mm_for_euclid_dist")
    candidates, start = [], 0
    for level in anchors:
        near = distances[start : start + len(level)].topk(min(topk, len(level)), dim=0, largest=False).indices
        candidates.append(near + start)
        start += len(level)
    candidates = torch.cat(candidates)
    values = overlaps.gather(0, candidates)
    positive = values >= values.mean(0) + values.std(0)
    centre = centers(every)[candidates]
    inside = torch.cat([centre - boxes[None, :, :2], boxes[None, :, 2:] - centre], -1).amin(-1) > MIN_INSIDE
    claims = torch.full_like(overlaps, -1.0)
    claims.scatter_(0, candidates, torch.where(positive & inside, values, -1.0))
    best, matched = claims.max(1)
    return torch.where(best < 0, -1, matched)


def build_targets(
    boxes: Tensor,
    positive_map: Tensor,
    anchors: list[Tensor],
    length: int,
    max_text_tokens: int,
    topk: int = 9,
) -> Targets:
    """Targets of one image.

    Args:
        boxes: (M, 4) inclusive corners in pixels of the resized image.
        positive_map: (M, T'), nonzero for tokens of the box's phrase.
        length: T, tokens in the batch; T' may be longer or shorter.
        max_text_tokens: only captions of full length have a "no object" token, the last.
    """
    matched = assign_anchors(boxes, anchors, topk)
    every = torch.cat(anchors)
    rows = positive_map[:, :length]
    rows = F.pad((rows != 0).to(every.dtype), (0, length - rows.shape[1]))
    nothing = rows.new_zeros(1, length)
    if length == max_text_tokens:
        nothing[0, -1] = 1
    tokens = torch.cat([rows, nothing])[matched]  # -1 is the last row
    # background has its anchor as its box, which is 0 relative to it; a row per anchor, as how many are positive is
    # known to the device alone
    goal = torch.where((matched >= 0)[:, None], torch.cat([boxes, every[:1]])[matched], every)
    return Targets(matched, tokens, encode_boxes(goal, every))


def token_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss (Lin et al., arXiv 1708.02002), elementwise."""
    prob = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    error = prob * (1 - targets) + (1 - prob) * targets
    return cross_entropy * error**gamma * (alpha * targets + (1 - alpha) * (1 - targets))


def area(sides: Tensor) -> Tensor:
    """(…, 2) -> (…). Not `prod`, whose gradient asks the device whether there are zeros."""
    return sides[..., 0] * sides[..., 1]


def giou_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al., arXiv 1902.09630) of boxes (N, 4) -> (N,).

    Here extents are x2 - x1, without the +1, and inverted predictions count as empty.
    """
    low_p, high_p = predicted[:, :2], torch.maximum(predicted[:, :2], predicted[:, 2:])
    low_t, high_t = target[:, :2], target[:, 2:]
    inter = area((torch.minimum(high_p, high_t) - torch.maximum(low_p, low_t)).clamp(min=0))
    hull = area(torch.maximum(high_p, high_t) - torch.minimum(low_p, low_t)) + 1e-7
    union = area(high_p - low_p) + area(high_t - low_t) - inter + 1e-7
    return 1 - (inter / union - (hull - union) / hull)


def centerness_targets(deltas: Tensor, anchors: Tensor) -> Tensor:
    """How central each positive anchor (N, 4) is in its encoded box (N, 4): (N,) in 0..1."""
    boxes, centre = decode_boxes(deltas, anchors), centers(anchors)
    before, behind = centre - boxes[:, :2], boxes[:, 2:] - centre
    return (torch.minimum(before, behind) / torch.maximum(before, behind)).prod(1).sqrt()


def detection_losses(
    token_logits: Tensor,
    box_deltas: Tensor,
    centerness: Tensor,
    anchors: Tensor,
    targets: list[Targets],
    text_mask: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_weight: float = 2.0,
) -> dict[str, Tensor]:
    """Weighted losses of a batch, float32 scalars; their sum is what is minimised.

    Args:
        token_logits: (B, A, T). box_deltas: (B, A, 4). centerness: (B, A) logits. anchors: (A, 4).
        targets: one per image. text_mask: (B, T), nonzero for valid tokens.
    """
    token_logits, box_deltas, centerness = token_logits.float(), box_deltas.float(), centerness.float()
    matched = torch.stack([t.matched for t in targets])
    positive = matched >= 0
    count = mean_over_processes(positive.sum().float(), least=1.0)
    focal = token_focal_loss(token_logits, torch.stack([t.tokens for t in targets]), alpha, gamma)
    token_loss = (focal * (text_mask != 0)[:, None, :]).sum() / count

    # Every anchor has a row in what follows, and those of background count nothing: picking the positive ones would
    # make the host wait to know how many there are. Zeros in their places have finite losses and no gradient.
    of_boxes = lambda values: values.flatten(0, 1)
    inside, goal = of_boxes(positive), of_boxes(torch.stack([t.deltas for t in targets]))
    every = of_boxes(anchors.expand(len(targets), -1, -1))
    weight = torch.where(inside, centerness_targets(goal, every), 0.0)
    total = mean_over_processes(weight.sum(), least=torch.finfo(weight.dtype).tiny)
    found = torch.where(inside[:, None], of_boxes(box_deltas), 0.0)
    box_loss = (giou_loss(decode_boxes(found, every), decode_boxes(goal, every)) * weight).sum() / total
    told = torch.where(inside, of_boxes(centerness), 0.0)
    centre = F.binary_cross_entropy_with_logits(told, weight, reduction="none")
    centre_loss = torch.where(inside, centre, 0.0).sum() / count
    return {
        "loss_token": token_loss,
        "loss_box": box_weight * box_loss,
        "loss_centerness": centre_loss,
    }
