"""One paper, one file. A line here is all that a new method needs beside its file.

A name may stand for one class on dual encoders and another on detectors; the ports of the backbone decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnknownNameError
from ..registry import Registry

if TYPE_CHECKING:
    from .base import Method

METHODS = Registry(
    "method",
    {
        "zero_shot": "duotune.methods.zero_shot:ZeroShot",
        "linear_probe": "duotune.methods.linear_probe:LinearProbe",
        "coop": "duotune.methods.coop:CoOp",
        "vpt": "duotune.methods.vpt:VPT",
        "vlp": "duotune.methods.vlp:VLP",
        "dpt": "duotune.methods.dpt:DPT",
    },
)
DETECTION_METHODS = Registry(
    "method",
    {
        "zero_shot": "duotune.methods.detection_zero_shot:DetectionZeroShot",
        "linear_probe": "duotune.methods.detection_linear_probe:DetectionLinearProbe",
        "full": "duotune.methods.full:Full",
        "text_prompt": "duotune.methods.text_prompt:TextPrompt",
        "vpt": "duotune.methods.detection_vpt:DetectionVPT",
        "sdpt": "duotune.methods.sdpt:SDPT",
    },
)


def list_methods() -> list[str]:
    """Names that `attach` knows, sorted."""
    return sorted({*METHODS, *DETECTION_METHODS})


def methods_named(name: str) -> list[type[Method]]:
    """The classes that `name` stands for, one per kind of backbone. Raises UnknownNameError."""
    found = [table.get(name) for table in (METHODS, DETECTION_METHODS) if name in table]
    if not found:
        raise UnknownNameError("method", name, list_methods())
    return found


__all__ = ["DETECTION_METHODS", "METHODS", "list_methods", "methods_named"]
