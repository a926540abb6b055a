"""Full precision for what is compared, chosen or minimised, whatever weights and autocast have.

A logit of 30 in bfloat16 moves in steps of 0.13, and a sum of such terms loses more: features may be computed in half
precision, what is made of them may not.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def wide(values: Tensor) -> Tensor:
    """In float32 at least; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """A block in which autocast casts nothing on this kind of device."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
