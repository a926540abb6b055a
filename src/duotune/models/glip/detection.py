"""From the head's outputs to boxes with class scores."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import clip_boxes, decode_boxes, multiclass_nms


@dataclass
class Detections:
    """Boxes of one image, in no particular order.

    Attributes:
        boxes: (n, 4) xyxy with inclusive corners, in pixels.
        scores: (n,) in 0..1. labels: (n,) int64, index of the class in the caption's list of classes.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def sorted(self) -> Detections:
        """Best first."""
        order = self.scores.argsort(descending=True, stable=True)
        return Detections(self.boxes[order], self.scores[order], self.labels[order])


def class_scores(token_logits: Tensor, class_tokens: Sequence[Sequence[int]]) -> Tensor:
    """(N, T) logits -> (N, C): mean probability over each class's token positions, 0 for classes without tokens."""
    probs = token_logits.float().sigmoid()
    return probs @ _averages(tuple(map(tuple, class_tokens)), probs.shape[1], probs.device)


@functools.lru_cache(64)
def _averages(class_tokens: tuple[tuple[int, ...], ...], length: int, device: torch.device) -> Tensor:
    """(T, C): a column has the share of each of its class's tokens. Made on the host and copied once."""
    with torch.inference_mode(False):
        average = torch.zeros(length, len(class_tokens))
        for column, tokens in enumerate(class_tokens):
            if tokens:
                average[list(tokens), column] = 1.0 / len(tokens)
        return average.to(device, non_blocking=True)


def keep_best(detections: Detections, limit: int) -> Detections:
    """At most `limit` boxes, and those that tie with the last of them; order unchanged."""
    if len(detections.scores) <= limit:
        return detections
    kept = detections.scores >= detections.scores.topk(limit).values[-1]
    return Detections(detections.boxes[kept], detections.scores[kept], detections.labels[kept])


def detect(
    token_logits: Sequence[Tensor],
    box_deltas: Sequence[Tensor],
    centerness: Sequence[Tensor],
    anchors: Sequence[Tensor],
    class_tokens: Sequence[Sequence[int]],
    image_size: tuple[int, int],
    score_threshold: float = 0.05,
    pre_nms_top: int = 1000,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
) -> Detections:
    """Decode one image.

    A (position, class) pair is a candidate if its class score alone passes the threshold; candidates are then ranked
    by class score times centerness, and the reported score is the root of that product.

    The best pairs of each level are found where the logits are, and come to the host in one copy; the rest is few
    boxes, whose number an accelerator would have to be asked for at every step.

    Args:
        token_logits, box_deltas, centerness: per level (N_l, T), (N_l, 4), (N_l,).
        anchors: per level (N_l, 4).
        class_tokens: token positions of each class.
        image_size: height, width in pixels without padding; boxes are clipped to it.

    Returns:
        boxes on the CPU.
    """
    found = []
    for logits, deltas, centre, boxes in zip(token_logits, box_deltas, centerness, anchors):
        score = class_scores(logits, class_tokens)
        candidate = score > score_threshold
        product = torch.where(candidate, score * centre.float().sigmoid()[:, None], -1.0).flatten()
        # fewer are faster to find, where counting them is free
        count = int(candidate.sum()) if product.device.type == "cpu" else product.numel()
        values, pairs = product.topk(min(count, pre_nms_top))
        rows = pairs // score.shape[1]
        labels = (pairs % score.shape[1]).to(values.dtype)  # few enough to be exact
        found.append(torch.cat([deltas[rows].float(), boxes[rows], values[:, None], labels[:, None]], 1))
    rows = torch.cat(found).cpu()
    rows = rows[rows[:, 8] >= 0]
    boxes = clip_boxes(decode_boxes(rows[:, :4], rows[:, 4:8]), *image_size)
    scores, labels = rows[:, 8].sqrt(), rows[:, 9].long()
    kept = multiclass_nms(boxes, scores, labels, nms_threshold)
    return keep_best(Detections(boxes[kept], scores[kept], labels[kept]), max_detections)
