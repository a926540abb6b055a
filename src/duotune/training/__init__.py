"""Training on transformers' Trainer: arguments, schedule, the feature cache and the trainer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_LAZY = {
    "DetectionTrainer": ".detection",
    "DetectionTrainingArguments": ".detection",
    "FeatureCache": ".cache",
    "PromptTrainer": ".trainer",
    "PromptTrainingArguments": ".arguments",
    "frozen_features": ".features",
    "last_checkpoint": ".checkpoints",
}

__all__ = [
    "DetectionTrainer",
    "DetectionTrainingArguments",
    "FeatureCache",
    "PromptTrainer",
    "PromptTrainingArguments",
    "frozen_features",
    "last_checkpoint",
]

if TYPE_CHECKING:
    from .arguments import PromptTrainingArguments
    from .cache import FeatureCache
    from .checkpoints import last_checkpoint
    from .detection import DetectionTrainer, DetectionTrainingArguments
    from .features import frozen_features
    from .trainer import PromptTrainer


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
