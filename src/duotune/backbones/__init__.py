"""Adapters that give frozen models their ports."""

from __future__ import annotations

import difflib
import importlib
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, DataError, UnknownNameError, shown
from ..processes import default_device
from ..reading import MAX_DESCRIPTION_BYTES, read_json
from ..registry import Registry

if TYPE_CHECKING:
    from .base import Backbone, Detector, DualEncoder, Port, TextSequence, TextTokens, VisionPrompts

BACKBONES = Registry(
    "backbone",
    {
        "clip": "duotune.backbones.clip:ClipBackbone",
        "glip": "duotune.backbones.glip:GlipBackbone",
        "grounding_dino": "duotune.backbones.grounding_dino:GroundingDinoBackbone",
    },
)
ADAPTERS = {"grounding-dino": "grounding_dino", "mm-grounding-dino": "grounding_dino"}
"""Model types of transformers whose adapter has another name."""
EMBEDDED = {"tiny": "tiny-clip", "tiny-glip": "tiny-glip"}
"""Names of models shipped with the package -> folder under `duotune/assets`."""
HUB_SECONDS = 5
"""How long the Hub may take to answer whether it is there."""
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def list_backbones() -> list[str]:
    """Names of the embedded models; `load_backbone` takes local folders and Hub ids as well."""
    return sorted(EMBEDDED)


def load_backbone(name: str, dtype: str | None = None, device: str | None = None) -> Backbone:
    """Load a frozen backbone.

    Args:
        name: an embedded name ("tiny"), a local folder, or a Hub id.
        dtype: "float32", "bfloat16", "float16"; None: float32 on a CPU, elsewhere the stored one, but bfloat16 for
            weights stored in float16.
        device: "cpu", "cuda", "cuda:1", ...; None: CUDA if there is one (each process of a `torchrun` its own).

    Raises:
        UnknownNameError: an embedded name is misspelt, or the model's type has no adapter. DataError: it cannot be
        loaded. ConfigError: another dtype, or a device that this machine does not have.
    """
    import torch

    if dtype is not None and dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}")
    device = check_device(device) if device else default_device()
    source = _source(name)
    adapter = _adapter(_model_type(name, source))
    return adapter.load(name, source, getattr(torch, dtype) if dtype else None, device)


def adapter_of(name: str) -> type[Backbone]:
    """The adapter class of a backbone, whose `ports` are known before any weight is loaded.

    Raises:
        UnknownNameError: the model's type has no adapter. DataError: there is no such model.
    """
    return _adapter(_model_type(name, _source(name)))


def list_devices() -> list[str]:
    """Devices of this machine: "cpu", and each accelerator that torch can use ("cuda:0")."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu"] + [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count() if kind else 0)]


def check_device(name: str) -> str:
    """`name`, if there is such a device. Raises ConfigError naming those that there are."""
    import torch

    there = list_devices()
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    kinds = {d.partition(":")[0] for d in there}  # "cuda" is whichever of them torch takes first
    if device is None or not {str(device), str(device).removesuffix(":0")} & {*there, *kinds}:
        raise ConfigError(f"no device {name!r}; this machine has {', '.join(there)}")
    return name


def _adapter(model_type: str) -> type[Backbone]:
    return BACKBONES.get(ADAPTERS.get(model_type, model_type))


def _source(name: str) -> str:
    """Where the model lies: a folder, or a Hub id that the Hub can be asked for."""
    if name in EMBEDDED:
        return str(resources.files("duotune") / "assets" / EMBEDDED[name])
    if os.path.isdir(Path(name).expanduser()):  # unlike Path's, it raises for no name, however long
        return str(Path(name).expanduser())
    cached = _cached(name)
    if cached is None and difflib.get_close_matches(name, EMBEDDED, n=1, cutoff=0.6) and re.fullmatch(r"[\w.-]+", name):
        raise UnknownNameError("backbone", name, EMBEDDED)  # before the Hub is asked: an owner is no part of the name
    why = _unreachable(name)
    if why is None:
        return name
    if cached is not None:
        return cached
    where = "a file" if os.path.isfile(name) else "not a folder"
    raise DataError(
        f"no backbone {shown(name)}: it is {where}, not embedded ({', '.join(sorted(EMBEDDED))}), not in the local Hub "
        f"cache, and {why}"
    )


def _cached(name: str) -> str | None:
    """The folder of `name` in the local Hub cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return str(Path(config).parent) if isinstance(config, str) else None


def _unreachable(name: str) -> str | None:
    """Why the Hub cannot be asked for `name`; None if it can.

    One request with a short limit: transformers would ask for each of the model's files, several times each.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "the Hub is not asked (HF_HUB_OFFLINE is set)"
    if not _HUB_ID.fullmatch(name):
        return "no Hub id (name, or owner/name)"
    try:
        answer = get_session().head(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
    except HFValidationError:
        return "no Hub id (name, or owner/name)"
    except OfflineModeIsEnabled:
        return "the Hub is not asked (HF_HUB_OFFLINE is set)"
    except Exception as error:  # httpx's and the proxies' own; any answer, a refusal too, is the Hub's to tell
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return f"the Hub could not be reached ({reason})"
    return f"the Hub could not be reached (status {answer.status_code})" if answer.status_code >= 500 else None


def _model_type(name: str, source: str) -> str:
    if Path(source).is_dir():
        config = Path(source) / "config.json"
        if not config.is_file():
            raise DataError(f"{name!r} is a folder without config.json; expected a Hugging Face model folder")
        content = read_json(config, "a Hugging Face model's configuration", limit=MAX_DESCRIPTION_BYTES, wide=True)
        if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
            raise DataError(f"{config} names no model_type; expected that of a Hugging Face model")
        return content["model_type"]
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type", "unknown")
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"no backbone {name!r}: it is not a folder, not embedded ({', '.join(sorted(EMBEDDED))}), not in the local "
            f"Hub cache, and the Hub does not give it ({reason})"
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
    "check_device",
    "list_backbones",
    "list_devices",
    "load_backbone",
]
