"""Accuracy, per class and overall, and the harmonic mean of base and new classes. All in percent, 0..100."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import DataError


def _as_predictions(predictions: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """(N,) predicted and (N,) true labels; predictions may be (N, C) logits. Raises DataError if shapes do not fit."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim == 2:
        if np.isnan(predictions).any():
            raise DataError("logits contain NaN: no class is the largest")
        predictions = predictions.argmax(axis=1)
    if labels.ndim != 1 or predictions.shape != labels.shape:
        raise DataError(
            f"expected (N,) labels and (N,) predictions or (N, C) logits: {labels.shape}, {predictions.shape}"
        )
    if not len(labels):
        raise DataError("no predictions to measure: the split is empty")
    return predictions, labels


def accuracy(predictions: Any, labels: Any) -> float:
    """Share of right predictions in percent.

    Args:
        predictions: (N,) labels, or (N, C) logits of which the largest counts. Arrays or CPU tensors.
        labels: (N,).

    Raises:
        DataError: no predictions, shapes that do not fit, or NaN logits.
    """
    predictions, labels = _as_predictions(predictions, labels)
    return float((predictions == labels).mean() * 100)


def per_class_accuracy(predictions: Any, labels: Any, num_classes: int) -> np.ndarray:
    """(C,) share of each class's items that are predicted right, in percent; NaN for a class without items.

    Raises DataError as `accuracy` does, and if a label is outside 0..C-1.
    """
    predictions, labels = _as_predictions(predictions, labels)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"labels must be 0..{num_classes - 1}; got {labels.min()}..{labels.max()}")
    total = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[predictions == labels], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return right / np.where(total, total, np.nan) * 100


def harmonic_mean(base: float, new: float) -> float:
    """2 / (1/base + 1/new); 0 if either is 0. Same unit as the arguments, which must not be negative."""
    if min(base, new) < 0:
        raise DataError(f"accuracies must not be negative: {base}, {new}")
    return 0.0 if min(base, new) == 0 else 2 * base * new / (base + new)


@dataclass(frozen=True)
class ClassificationMetrics:
    """How good predictions on one split are.

    Attributes:
        accuracy: over all items, percent.
        mean_class_accuracy: mean over classes that have items, percent.
        num_images: number of items.
        class_names: C names.
        per_class: C accuracies in percent, None for a class without items.
        counts: C numbers of items.
    """

    accuracy: float
    mean_class_accuracy: float
    num_images: int
    class_names: tuple[str, ...]
    per_class: tuple[float | None, ...]
    counts: tuple[int, ...]

    @classmethod
    def measure(cls, predictions: Any, labels: Any, class_names: Sequence[str]) -> ClassificationMetrics:
        """From (N,) predicted labels or (N, C) logits, and (N,) labels. Raises DataError as `accuracy` does."""
        per_class = per_class_accuracy(predictions, labels, len(class_names))
        counts = np.bincount(np.asarray(labels), minlength=len(class_names))
        return cls(
            accuracy=accuracy(predictions, labels),
            mean_class_accuracy=float(np.nanmean(per_class)),
            num_images=int(counts.sum()),
            class_names=tuple(class_names),
            per_class=tuple(None if np.isnan(value) else float(value) for value in per_class),
            counts=tuple(int(count) for count in counts),
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        """A table, one row per class and one for all."""
        width = max(len("all"), len("class"), *map(len, self.class_names))
        rows = [f"{'class':<{width}}  images  accuracy"]
        for name, count, value in zip(self.class_names, self.counts, self.per_class):
            rows.append(f"{name:<{width}}  {count:>6}  {'-' if value is None else f'{value:.2f}':>8}")
        rows.append(f"{'all':<{width}}  {self.num_images:>6}  {self.accuracy:>8.2f}")
        return "\n".join(rows)


@dataclass(frozen=True)
class BaseToNew:
    """Accuracy on the classes that were trained on and on classes that were not, in percent."""

    base: float
    new: float

    @property
    def harmonic_mean(self) -> float:
        return harmonic_mean(self.base, self.new)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "harmonic_mean": self.harmonic_mean}, indent=2)

    def __str__(self) -> str:
        return f"{'base':>6}  {'new':>6}  {'mean':>6}\n{self.base:6.2f}  {self.new:6.2f}  {self.harmonic_mean:6.2f}"
