"""Training through frozen float16 weights: gradients on their way back are kept large enough for float16.

float16 ends at 6e-8, and what a class that is already sure sends back is smaller: without a scale it becomes zero, and
late in training gradients are wrong by a tenth and more. Prompts and losses are float32, the weights between them
are not, so the gradient is multiplied where it leaves the loss and divided where it reaches a prompt, by a power of
two: in float32 that changes no bit. The loss itself, and what is reported of it, stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TrainingError

SCALE = 1024.0


class LossScale:
    """Scales the gradients of losses for some parameters until `remove` is called.

    Raises:
        TrainingError: on the way back, a gradient that is no number: it was too large for float16.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], scale: float = SCALE):
        self.scale = scale
        self._hooks = [p.register_hook(self._unscaled) for p in parameters if p.requires_grad]

    def __call__(self, loss: Tensor) -> Tensor:
        """The loss; its gradient will be larger."""
        return _Larger.apply(loss, self.scale) if loss.requires_grad else loss

    def _unscaled(self, gradient: Tensor) -> Tensor:
        if not gradient.isfinite().all():
            raise TrainingError(
                "a gradient is too large for the backbone's float16 weights; load it with dtype='bfloat16' or 'float32'"
            )
        return gradient / self.scale

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


class _Larger(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.scale, None
