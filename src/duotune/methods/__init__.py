"""One paper, one file. A line here is all that a new method needs beside its file."""

from __future__ import annotations

from ..registry import Registry

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


def list_methods() -> list[str]:
    """Names that `attach` knows, sorted."""
    return list(METHODS)


__all__ = ["METHODS", "list_methods"]
