"""duotune: adapt frozen vision-language models with kilobytes of prompts in both modalities.

    model = duotune.attach("tiny", "dpt", data.class_names, data.template)     a frozen backbone and a method
    duotune.PromptTrainer(model, arguments, data).train()                      transformers' Trainer
    model.save("mine"); duotune.load("mine").classify(["photo.jpg"])           an artifact of kilobytes

Names are imported when they are first used, so that `import duotune` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_LAZY = {
    # models
    "attach": "duotune.model",
    "PromptedDetector": "duotune.model",
    "PromptedModel": "duotune.model",
    "Progress": "duotune.methods.base",
    "load_backbone": "duotune.backbones",
    "list_backbones": "duotune.backbones",
    "list_methods": "duotune.methods",
    # artifacts
    "load": "duotune.artifacts",
    "describe": "duotune.artifacts",
    "nearest_words": "duotune.inspection",
    "convert_openai_clip": "duotune.conversion",
    "import_dassl": "duotune.conversion",
    "import_sdpt": "duotune.conversion",
    # data
    "load_dataset": "duotune.data",
    "list_datasets": "duotune.data",
    "ClassificationData": "duotune.data",
    "load_detection": "duotune.data.detection",
    "list_detection_datasets": "duotune.data.detection",
    "DetectionData": "duotune.data.detection",
    # training and testing
    "PromptTrainer": "duotune.training",
    "PromptTrainingArguments": "duotune.training",
    "DetectionTrainingArguments": "duotune.training",
    "FeatureCache": "duotune.training",
    "evaluate": "duotune.evaluation",
    "base_to_new": "duotune.evaluation",
    "ClassificationResult": "duotune.evaluation",
    "evaluate_detector": "duotune.detection_evaluation",
    "DetectionResult": "duotune.detection_evaluation",
    "evaluate_phrases": "duotune.detection_evaluation",
    "PhraseResult": "duotune.detection_evaluation",
    "Predictor": "duotune.predictor",
    "Prediction": "duotune.predictor",
    "BoxesFound": "duotune.predictor",
    # experiments
    "Recipe": "duotune.recipes",
    "load_recipe": "duotune.recipes",
    "list_recipes": "duotune.recipes",
    "run_recipe": "duotune.recipes.running",
    # errors
    "DuotuneError": "duotune.errors",
}

__all__ = [
    "BoxesFound",
    "ClassificationData",
    "ClassificationResult",
    "DetectionData",
    "DetectionResult",
    "DetectionTrainingArguments",
    "DuotuneError",
    "FeatureCache",
    "PhraseResult",
    "Prediction",
    "Predictor",
    "Progress",
    "PromptTrainer",
    "PromptTrainingArguments",
    "PromptedDetector",
    "PromptedModel",
    "Recipe",
    "__version__",
    "attach",
    "base_to_new",
    "convert_openai_clip",
    "describe",
    "evaluate",
    "evaluate_detector",
    "evaluate_phrases",
    "import_dassl",
    "import_sdpt",
    "list_backbones",
    "list_datasets",
    "list_detection_datasets",
    "list_methods",
    "list_recipes",
    "load",
    "load_backbone",
    "load_dataset",
    "load_detection",
    "load_recipe",
    "nearest_words",
    "run_recipe",
]

if TYPE_CHECKING:
    from .artifacts import describe, load
    from .backbones import list_backbones, load_backbone
    from .conversion import convert_openai_clip, import_dassl, import_sdpt
    from .data import ClassificationData, list_datasets, load_dataset
    from .data.detection import DetectionData, list_detection_datasets, load_detection
    from .detection_evaluation import DetectionResult, PhraseResult, evaluate_detector, evaluate_phrases
    from .errors import DuotuneError
    from .evaluation import ClassificationResult, base_to_new, evaluate
    from .inspection import nearest_words
    from .methods import list_methods
    from .methods.base import Progress
    from .model import PromptedDetector, PromptedModel, attach
    from .predictor import BoxesFound, Prediction, Predictor
    from .recipes import Recipe, list_recipes, load_recipe
    from .recipes.running import run_recipe
    from .training import DetectionTrainingArguments, FeatureCache, PromptTrainer, PromptTrainingArguments


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'duotune' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
