"""GLIP as a Hugging Face model in plain PyTorch: no compiled extension, CPU and CUDA.

    from duotune.models.glip import GlipForObjectDetection, GlipProcessor

Heavy imports happen on first use of a name.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "GlipConfig": "configuration_glip",
    "GlipModel": "modeling_glip",
    "GlipForObjectDetection": "modeling_glip",
    "GlipModelOutput": "modeling_glip",
    "GlipDetectionOutput": "modeling_glip",
    "GlipProcessor": "processing_glip",
    "GlipCaption": "processing_glip",
    "FusionTokens": "fusion",
    "convert_glip_checkpoint": "conversion",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
