"""Numbers that say how good predictions are; pure functions of arrays, and dataclasses that print as tables."""

from __future__ import annotations

from .classification import (
    BaseToNew,
    ClassificationMetrics,
    accuracy,
    harmonic_mean,
    per_class_accuracy,
)
from .detection import BoxPrediction, DetectionMetrics, OdinwAverage
from .grounding import PhraseRecall

__all__ = [
    "BaseToNew",
    "BoxPrediction",
    "ClassificationMetrics",
    "DetectionMetrics",
    "OdinwAverage",
    "PhraseRecall",
    "accuracy",
    "harmonic_mean",
    "per_class_accuracy",
]
