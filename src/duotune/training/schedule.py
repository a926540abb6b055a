"""Learning rates: SGD with one group per kind of prompt, a constant warm-up, then a cosine, one rate per epoch.

    epoch e < warmup_epochs     warmup_lr
    afterwards                  lr · (1 + cos(π (e - warmup_epochs) / num_epochs)) / 2

The cosine's clock starts when the warm-up ends and its period is all epochs, so the last epochs do not
reach zero: that is what the authors' framework computes (Dassl, `optim/lr_scheduler.py` with
WARMUP_RECOUNT), and the rate changes once per epoch, not once per step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import ConfigError
from ..methods.base import ParamGroup


def learning_rate(group: ParamGroup, epoch: int, num_epochs: int) -> float:
    """The rate of `group` during `epoch` (counted from 0) of `num_epochs`."""
    if epoch < group.warmup_epochs:
        return group.warmup_lr
    return group.lr * 0.5 * (1 + math.cos(math.pi * (epoch - group.warmup_epochs) / num_epochs))


def optimizer_groups(groups: Sequence[ParamGroup], model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, in the method's order.

    Raises:
        ConfigError: the groups and the trainable parameters of `model` are not the same set: something would
            silently not be trained, or be trained twice.
    """
    listed = [id(p) for g in groups for p in g.params]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if forgotten := sorted(trainable[i] for i in set(trainable) - set(listed)):
        raise ConfigError(f"param_groups() leaves out the trainable parameters {', '.join(forgotten)}")
    if len(set(listed)) < len(listed):
        raise ConfigError("param_groups() names a parameter twice")
    if foreign := set(listed) - set(trainable):
        raise ConfigError(f"param_groups() names {len(foreign)} parameters that are frozen or no part of the model")
    return [{"params": list(g.params), "lr": g.lr, "weight_decay": weight_decay, "name": g.name} for g in groups]


def epoch_schedule(
    optimizer: Optimizer, groups: Sequence[ParamGroup], num_epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """A scheduler to be stepped once per optimizer step; its rates change at epoch boundaries alone."""

    def factor(group: ParamGroup):
        return lambda step: learning_rate(group, step // steps_per_epoch, num_epochs) / group.lr

    return LambdaLR(optimizer, [factor(g) for g in groups])
