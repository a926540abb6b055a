"""From the head's outputs to boxes with class scores."""

from __future__ import annotations

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
    average = probs.new_zeros(probs.shape[1], len(class_tokens))
    for column, tokens in enumerate(class_tokens):
        if len(tokens):
            average[list(tokens), column] = 1.0 / len(tokens)
    return probs @ average


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

    Args:
        token_logits, box_deltas, centerness: per level (N_l, T), (N_l, 4), (N_l,).
        anchors: per level (N_l, 4).
        class_tokens: token positions of each class.
        image_size: height, width in pixels without padding; boxes are clipped to it.
    """
    found = []
    for logits, deltas, centre, boxes in zip(token_logits, box_deltas, centerness, anchors):
        score = class_scores(logits, class_tokens)
        candidate = score > score_threshold
        product = torch.where(candidate, score * centre.float().sigmoid()[:, None], -1.0).flatten()
        values, pairs = product.topk(min(int(candidate.sum()), pre_nms_top))
        rows = pairs // score.shape[1]
        decoded = clip_boxes(decode_boxes(deltas[rows].float(), boxes[rows]), *image_size)
        found.append((decoded, values.sqrt(), pairs % score.shape[1]))
    boxes, scores, labels = (torch.cat(parts) for parts in zip(*found))
    kept = multiclass_nms(boxes, scores, labels, nms_threshold)
    return keep_best(Detections(boxes[kept], scores[kept], labels[kept]), max_detections)
