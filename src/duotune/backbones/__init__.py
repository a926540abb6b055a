"""Adapters that give frozen models their ports."""

from __future__ import annotations

from ..registry import Registry
from .base import Backbone, DualEncoder, Port, TextSequence, TextTokens, VisionPrompts

BACKBONES = Registry(
    "backbone",
    {
        "clip": "duotune.backbones.clip:load_clip",
    },
)
EMBEDDED = {"tiny": "tiny-clip"}
"""Names of models shipped with the package -> folder under `duotune/assets`."""

__all__ = ["BACKBONES", "EMBEDDED", "Backbone", "DualEncoder", "Port", "TextSequence", "TextTokens", "VisionPrompts"]
