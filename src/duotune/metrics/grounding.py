"""Recall of the boxes of phrases, as Flickr30k Entities is reported. In percent, 0..100.

A phrase is found within k if one of its k surest boxes overlaps one of its true boxes by an IoU of at least 0.5 (the
"any box" protocol of MDETR and GLIP: github.com/microsoft/GLIP, evaluation/flickr/flickr_eval.py). Every place of a
sentence where a phrase stands counts by itself; phrases without boxes and sentences without phrases do not count.

Boxes are (n, 4) xyxy in pixels, width = x2 - x1, on both sides. GLIP's script compares its inclusive corners with those
of the annotation files as they are: a difference of one pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import DataError
from .detection import BoxPrediction

RANKS = (1, 5, 10)


class PhrasedItem(Protocol):
    """What is asked of a sentence with ground truth: `duotune.data.detection.DetectionItem` has it."""

    @property
    def image_id(self) -> int | str: ...
    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def phrases(self) -> tuple[tuple[tuple[int, int], ...], ...]: ...


@dataclass(frozen=True)
class PhraseRecall:
    """Recalls in percent.

    Attributes:
        recall_1, recall_5, recall_10: phrases found within so many boxes.
        upper_bound: phrases found with any of their boxes.
        num_phrases, num_sentences: how many there were.
    """

    recall_1: float
    recall_5: float
    recall_10: float
    upper_bound: float
    num_phrases: int
    num_sentences: int

    @classmethod
    def measure(
        cls, items: Sequence[PhrasedItem], predictions: Sequence[BoxPrediction], min_iou: float = 0.5
    ) -> PhraseRecall:
        """Compare predictions with the boxes of the same sentences.

        Args:
            items: sentences with ground truth; labels are positions in `phrases`. See `by_occurrence`.
            predictions: one per item, in the same order; labels are positions in `phrases`, too.
            min_iou: least overlap, 0..1.

        Raises:
            DataError: no phrases, not one prediction per item, or arrays that do not fit.
        """
        if len(items) != len(predictions):
            raise DataError(f"{len(items)} sentences need one prediction each, got {len(predictions)}")
        ranks: list[float] = []
        for item, found in zip(items, predictions):
            boxes, scores, labels = (np.asarray(x) for x in (found.boxes, found.scores, found.labels))
            if scores.ndim != 1 or labels.shape != scores.shape or boxes.shape != (len(scores), 4):
                shapes = f"{boxes.shape}, {scores.shape}, {labels.shape}"
                raise DataError(f"{item.image_id}: expected (n, 4) boxes, (n,) scores and labels; got {shapes}")
            order = np.argsort(-scores, kind="stable")
            for phrase in range(len(item.phrases)):
                own = boxes[order[labels[order] == phrase]]
                ranks.append(_rank(own, item.boxes[item.labels == phrase], min_iou))
        if not ranks:
            raise DataError("there are no phrases with boxes to measure on")
        shares = [100 * float(np.mean([rank <= k for rank in ranks])) for k in (*RANKS, np.finfo(float).max)]
        return cls(*shares, num_phrases=len(ranks), num_sentences=sum(bool(item.phrases) for item in items))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        """A table."""
        rows = [*((f"recall@{k}", getattr(self, f"recall_{k}")) for k in RANKS), ("upper bound", self.upper_bound)]
        return "\n".join([f"{name:<11}  {value:6.2f}" for name, value in rows])


def _rank(boxes: np.ndarray, truth: np.ndarray, min_iou: float) -> float:
    """Place, from 1, of the first box that overlaps a true one by `min_iou`; infinity if there is none."""
    boxes, truth = np.asarray(boxes, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    size = np.minimum(boxes[:, None, 2:], truth[None, :, 2:]) - np.maximum(boxes[:, None, :2], truth[None, :, :2])
    shared = size.clip(min=0).prod(-1)
    area, true_area = ((b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, truth))
    hits = (shared >= min_iou * (area[:, None] + true_area - shared)).any(1).nonzero()[0]
    return float(hits[0] + 1) if len(hits) else float("inf")
