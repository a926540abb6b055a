"""Dynamic convolution over a feature pyramid (dynamic head, Dai et al., arXiv 2106.08322).

Every level is the mean of up to three deformable convolutions (of itself, of the next finer and of the next coarser
level), each scaled by a gate of its own, and passes a dynamic ReLU. All levels share the weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...tracing import traced
from .deform_conv import ModulatedDeformConv
from .initialization import tagged

TAPS = 9
COARSER, SAME, FINER = 0, 1, 2  # places of the three convolutions in official checkpoints


class DynamicRelu(nn.Module):
    """max(a1 x + b1, a2 x + b2) with coefficients per channel from the pooled input (Chen et al., arXiv 2003.10027)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.fc = nn.Sequential(
            tagged(nn.Linear(channels, channels // reduction), "torch"),
            nn.ReLU(),
            tagged(nn.Linear(channels // reduction, 4 * channels), "torch"),
        )

    def coefficients(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """(…, C) means over positions -> four (…, C): b2, a2, b1 - b2 and a1 - a2."""
        a1, b1, a2, b2 = (F.hardsigmoid(self.fc(pooled)) - 0.5).unflatten(-1, (4, -1)).unbind(-2)
        return b2, 2 * a2, b1 - b2, 2 * (a1 - a2) + 1

    def forward(self, x: Tensor, coefficients: Sequence[Tensor] | None = None) -> Tensor:
        """(B, C, h, w) -> the same. coefficients: (B, C) each, if they are known."""
        coefficients = self.coefficients(x.mean((2, 3))) if coefficients is None else coefficients
        b2, a2, b, a = (c[..., None, None] for c in coefficients)
        # max(u, v) as v + relu(u - v): fewer passes over the maps, above all backwards.
        return torch.addcmul(b2, x, a2) + torch.addcmul(b, x, a).relu()


class NormedDeformConv(nn.Module):
    """Deformable convolution and group norm."""

    def __init__(self, channels: int, groups: int, stride: int = 1):
        super().__init__()
        self.conv = ModulatedDeformConv(channels, channels, stride)
        self.bn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        return self.bn(self.conv(x, offset, mask).to(x.dtype))


def reread(x: Tensor, height: int, width: int) -> Tensor:
    """The first numbers of each sample, in memory order, as maps (B, C, height, width).

    The official CUDA kernel takes offsets of one level for the next coarser one and never looks at their shape: it
    reads the buffer as if it had the coarser size. Official weights were trained like that, so this is part of the
    model. It is neither a crop nor an interpolation.
    """
    batch, channels = x.shape[:2]
    return x.reshape(batch, -1)[:, : channels * height * width].reshape(batch, channels, height, width)


class DynamicConv(nn.Module):
    """One block's image part (DyConv)."""

    def __init__(self, channels: int, groups: int, reduction: int = 4):
        super().__init__()
        self.DyConv = nn.ModuleList(
            NormedDeformConv(channels, groups, stride=2 if place == FINER else 1) for place in (COARSER, SAME, FINER)
        )
        self.AttnConv = nn.Sequential(nn.AdaptiveAvgPool2d(1), tagged(nn.Conv2d(channels, 1, 1), "small"), nn.ReLU())
        self.relu = DynamicRelu(channels, reduction)
        self.offset = nn.Conv2d(channels, 3 * TAPS, 3, padding=1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, h, w), finest first -> the same shapes. Every level reads the block's input maps."""
        branches = [self._branches(maps, level) for level in range(len(maps))]
        counts = tuple(map(len, branches))
        # what follows is small, and of all levels together, as each operation costs a launch
        averages = torch.stack([branch.mean((2, 3)) for level in branches for branch in level])
        conv = self.AttnConv[1]
        gates = F.hardsigmoid(F.linear(averages, conv.weight.flatten(1), conv.bias).relu())
        gates = gates * (_shares if traced() else _kept_shares)(counts, gates.dtype, gates.device)
        # gates are alike everywhere, so pooling may go first
        pooled = torch.stack([part.sum(0) for part in (averages * gates).split(counts)])
        coefficients = zip(*(c.unbind(0) for c in self.relu.coefficients(pooled)))
        weighted = zip([branch for level in branches for branch in level], gates[..., None, None].unbind(0))
        found = []
        for count, own in zip(counts, coefficients):
            mean = None
            for branch, gate in itertools.islice(weighted, count):
                mean = branch * gate if mean is None else torch.addcmul(mean, branch, gate)
            found.append(self.relu(mean, own))
        return found

    def _branches(self, maps: list[Tensor], level: int) -> list[Tensor]:
        """Convolutions of the level itself and its neighbours, in its size."""
        x = maps[level]
        # Memory order matters to `reread`, so leave channels-last here.
        planes = self.offset(x).contiguous(memory_format=torch.contiguous_format)
        offset, mask = planes[:, : 2 * TAPS], planes[:, 2 * TAPS :].sigmoid()
        branches = [self.DyConv[SAME](x, offset, mask)]
        if level > 0:
            branches.append(self.DyConv[FINER](maps[level - 1], offset, mask))
        if level + 1 < len(maps):
            coarser = maps[level + 1]
            height, width = coarser.shape[-2:]
            out = self.DyConv[COARSER](coarser, reread(offset, height, width), reread(mask, height, width))
            branches.append(F.interpolate(out, size=x.shape[-2:], mode="bilinear", align_corners=True))
        return branches


def _shares(counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(N, 1, 1): for each branch of levels with so many, one over the number."""
    return torch.cat([torch.full((count, 1, 1), 1 / count, dtype=dtype, device=device) for count in counts])


@functools.lru_cache(16)
def _kept_shares(*where: Any) -> Tensor:
    with torch.inference_mode(False):  # they may be needed where gradients are
        return _shares(*where)
