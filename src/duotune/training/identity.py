"""What a checkpoint is known by: whoever resumes must train the same thing on the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..data.base import ImageItem

_ABSENT = object()


def items_identity(items: Sequence[ImageItem]) -> dict[str, Any]:
    """How many images, and a digest of their names and labels in order; the same wherever the data set lies."""
    digest = hashlib.sha256("\0".join(f"{item.short_key}\0{item.label}" for item in items).encode())
    return {"training_images": len(items), "training_data": digest.hexdigest()[:16]}


def differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """ "seed was 1, now 2" for every entry that differs; of the same method, each setting of its `config` too."""
    if saved.get("method") == ours.get("method"):
        saved, ours = ({**table, **(table.get("config") or {})} for table in (saved, ours))
    told = []
    for key in dict.fromkeys([*ours, *saved]):
        was, now = saved.get(key, _ABSENT), ours.get(key, _ABSENT)
        if key != "config" and was != now:
            told.append(f"{key} was {_short(was)}, now {_short(now)}")
    return told


def _short(value: Any) -> str:
    text = "not set" if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


__all__ = ["differences", "items_identity"]
