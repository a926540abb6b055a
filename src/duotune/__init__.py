"""duotune: adapt frozen vision-language models with a few kilobytes of prompts in both modalities."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_LAZY = {
    "attach": "duotune.model",
    "PromptedModel": "duotune.model",
    "load_backbone": "duotune.backbones",
    "DuotuneError": "duotune.errors",
}

__all__ = ["__version__", *_LAZY]

if TYPE_CHECKING:
    from .backbones import load_backbone
    from .errors import DuotuneError
    from .model import PromptedModel, attach


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'duotune' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
