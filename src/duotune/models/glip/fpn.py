"""Feature pyramid (Lin et al., arXiv 1612.03144): three Swin maps become five maps of one width."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialization import tagged


def drop_block(x: Tensor, prob: float, block: int, training: bool) -> Tensor:
    """DropBlock (Ghiasi et al., arXiv 1810.12890): zero squares of `block` cells in all channels, keep the scale."""
    if prob == 0.0 or not training:
        return x
    seeds = (torch.rand(x.shape[0], 1, *x.shape[2:], device=x.device) < prob / block**2).to(x.dtype)
    dropped = F.max_pool2d(seeds, block, stride=1, padding=block // 2)[..., : x.shape[2], : x.shape[3]]
    keep = 1.0 - dropped
    return x * keep * (keep.numel() / keep.sum().clamp(min=1.0))


class TopBlocks(nn.Module):
    """Two coarser maps on top of P5."""

    def __init__(self, channels: int):
        super().__init__()
        self.p6 = tagged(nn.Conv2d(channels, channels, 3, 2, 1), "kaiming")
        self.p7 = tagged(nn.Conv2d(channels, channels, 3, 2, 1), "kaiming")

    def forward(self, p5: Tensor) -> list[Tensor]:
        p6 = _strided(self.p6, p5)
        return [p6, _strided(self.p7, F.relu(p6))]


def _strided(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)`, padded by hand: of a map of one cell, oneDNN's bfloat16 gradient leaves taps that read nothing but
    padding unwritten."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias, conv.stride)


class GlipFpn(nn.Module):
    """C3, C4, C5 -> P3 ... P7, no norms and no activations."""

    def __init__(self, in_channels: list[int], channels: int, drop_block_prob: float = 0.0, drop_block_size: int = 3):
        super().__init__()
        self.drop_block_prob, self.drop_block_size = drop_block_prob, drop_block_size
        for level, width in enumerate(in_channels, 2):
            self.add_module(f"fpn_inner{level}", tagged(nn.Conv2d(width, channels, 1), "kaiming"))
            self.add_module(f"fpn_layer{level}", tagged(nn.Conv2d(channels, channels, 3, padding=1), "kaiming"))
        self.top_blocks = TopBlocks(channels)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of strides 8, 16, 32 -> five maps (B, channels, h, w) of strides 8 ... 128."""
        c3, c4, c5 = maps
        merged5 = self.fpn_inner4(c5)
        p5 = self.fpn_layer4(merged5)
        merged4 = self.fpn_inner3(c4) + F.interpolate(merged5, size=c4.shape[-2:], mode="nearest")
        p4 = self.fpn_layer3(self._drop(merged4))
        merged3 = self.fpn_inner2(c3) + F.interpolate(merged4, size=c3.shape[-2:], mode="nearest")
        return [self.fpn_layer2(self._drop(merged3)), p4, p5, *self.top_blocks(p5)]

    def _drop(self, merged: Tensor) -> Tensor:
        return drop_block(merged, self.drop_block_prob, self.drop_block_size, self.training)
