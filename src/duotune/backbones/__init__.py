"""Adapters that give frozen models their ports."""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError
from ..registry import Registry

if TYPE_CHECKING:
    from .base import Backbone, Detector, DualEncoder, Port, TextSequence, TextTokens, VisionPrompts

BACKBONES = Registry(
    "backbone",
    {
        "clip": "duotune.backbones.clip:ClipBackbone",
        "glip": "duotune.backbones.glip:GlipBackbone",
    },
)
EMBEDDED = {"tiny": "tiny-clip"}
"""Names of models shipped with the package -> folder under `duotune/assets`."""


def list_backbones() -> list[str]:
    """Names of the embedded models; `load_backbone` takes local folders and Hub ids as well."""
    return sorted(EMBEDDED)


def load_backbone(name: str, dtype: str | None = None, device: str | None = None) -> Backbone:
    """Load a frozen backbone.

    Args:
        name: an embedded name ("tiny"), a local folder, or a Hub id.
        dtype: "float32", "bfloat16", "float16"; None: the stored one, float32 on a CPU.
        device: "cpu", "cuda", ...; None: CUDA if there is one.

    Raises:
        UnknownNameError: the model's type has no adapter. DataError: it cannot be loaded.
    """
    import torch

    if dtype is not None and dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return adapter_of(name).load(name, _source(name), getattr(torch, dtype) if dtype else None, device)


def adapter_of(name: str) -> type[Backbone]:
    """The adapter class of a backbone, whose `ports` are known before any weight is loaded.

    Raises:
        UnknownNameError: the model's type has no adapter. DataError: there is no such model.
    """
    return BACKBONES.get(_model_type(name, _source(name)))


def _source(name: str) -> str:
    return str(resources.files("duotune") / "assets" / EMBEDDED[name]) if name in EMBEDDED else name


def _model_type(name: str, source: str) -> str:
    if Path(source).is_dir():
        config = Path(source) / "config.json"
        if not config.is_file():
            raise DataError(f"{name!r} is a folder without config.json; expected a Hugging Face model folder")
        try:
            return json.loads(config.read_text()).get("model_type", "unknown")
        except ValueError as error:
            raise DataError(f"{config} is not valid JSON ({error})") from error
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type", "unknown")
    except (OSError, ValueError) as error:
        embedded = ", ".join(sorted(EMBEDDED))
        raise DataError(
            f"no backbone {name!r}: it is no embedded name ({embedded}), no local folder, and no Hub id that is in the "
            "local cache or reachable"
        ) from error


def __getattr__(name: str):
    # the names of `base` need torch; the tables above do not, and `duotune list` reads just those
    if name in __all__:
        return getattr(importlib.import_module(".base", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BACKBONES",
    "EMBEDDED",
    "Backbone",
    "Detector",
    "DualEncoder",
    "Port",
    "TextSequence",
    "TextTokens",
    "VisionPrompts",
    "adapter_of",
    "list_backbones",
    "load_backbone",
]
