"""Dynamic convolution over a feature pyramid (dynamic head, Dai et al., arXiv 2106.08322).

Every level is the mean of up to three deformable convolutions (of itself, of the next finer and of the next coarser
level), each scaled by a gate of its own, and passes a dynamic ReLU. All levels share the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def forward(self, x: Tensor, pooled: Tensor | None = None) -> Tensor:
        """(B, C, h, w) -> the same. pooled: (B, C), its mean over positions, if that is known."""
        pooled = x.mean((2, 3)) if pooled is None else pooled
        coefficients = F.hardsigmoid(self.fc(pooled))[..., None, None] - 0.5
        a1, b1, a2, b2 = coefficients.chunk(4, 1)
        # max(u, v) as v + relu(u - v): fewer passes over the maps, above all backwards.
        return torch.addcmul(b2, x, 2 * a2) + torch.addcmul(b1 - b2, x, 2 * (a1 - a2) + 1).relu()


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
        return [self._level(maps, level) for level in range(len(maps))]

    def _level(self, maps: list[Tensor], level: int) -> Tensor:
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
        mean = pooled = None
        for branch in branches:
            average = branch.mean((2, 3), keepdim=True)
            gate = F.hardsigmoid(self.AttnConv[1:](average)) / len(branches)
            mean = branch * gate if mean is None else torch.addcmul(mean, branch, gate)
            pooled = average * gate if pooled is None else torch.addcmul(pooled, average, gate)
        return self.relu(mean, pooled.flatten(1))  # gates are alike everywhere, so pooling may go first
