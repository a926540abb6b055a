"""Where hand-written steps serve, and where the plain operations of torch have to.

Hand-written steps (`torch.autograd.Function`s that cut work into slices) are for a processor that runs one operation
after the other. An accelerator has better kernels, and who records what is computed (torch.compile, torch.export, the
ONNX exporter, torch.jit) has to see plain operations. Every place with two ways asks here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def traced() -> bool:
    """Whether torch records the operations of this call: it compiles, exports or traces it."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def hand_written(x: Tensor) -> bool:
    """Whether hand-written steps serve at `x`: on a CPU, not under autocast, which they would not see, untraced."""
    return not traced() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
