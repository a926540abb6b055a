"""Swin transformer (Liu et al., arXiv 2103.14030) as GLIP uses it: four maps, the last three normed.

Kept apart from transformers' SwinBackbone because parameter names, padding and the place of the output norms are
those of the official GLIP checkpoints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...tracing import traced

WindowTokens: TypeAlias = Callable[[int, int, Tensor], "Tensor | None"]
"""`(stage, block, hidden (B, H, W, C)) -> (n, C) or (B, n, C)` learned tokens for all windows of a block, or None."""


def drop_path(x: Tensor, prob: float, training: bool) -> Tensor:
    """Stochastic depth: zero whole samples of a residual branch with probability `prob`, scale up the others."""
    if prob == 0.0 or not training:
        return x
    keep = torch.rand((x.shape[0],) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device) >= prob
    return x * keep / (1.0 - prob)


def relative_position_index(window: int) -> Tensor:
    """(w^2, w^2) int64: row of the bias table for each pair of positions in a w x w window."""
    axis = torch.arange(window)
    rows, cols = (t.flatten() for t in torch.meshgrid(axis, axis, indexing="ij"))
    delta_row = rows[:, None] - rows[None, :] + window - 1
    delta_col = cols[:, None] - cols[None, :] + window - 1
    return delta_row * (2 * window - 1) + delta_col


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), H and W multiples of w -> (B, windows, w^2, C), windows row-major."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, -1, window * window, channels)


def window_merge(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `window_partition`."""
    batch, _, _, channels = x.shape
    x = x.view(batch, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, height, width, channels)


@functools.lru_cache(64)
def kept_shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """`shift_mask`, kept on its device; nobody may change it."""
    with torch.inference_mode(False):  # it may be needed where gradients are
        return shift_mask(height, width, window, shift, device)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """(windows, w^2, w^2): -100 between positions that the cyclic shift brought together from different sides."""

    def region(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).long() + (index >= size - shift).long()

    regions = region(height)[:, None] * 3 + region(width)[None, :]
    regions = window_partition(regions[None, :, :, None], window)[0, :, :, 0]
    return (regions[:, None, :] != regions[:, :, None]).float() * -100.0


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias per relative position."""

    def __init__(self, dim: int, window: int, heads: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """(B, windows, N, C) -> same shape.

        Args:
            mask: (windows, N, N) added to the scores.
            tokens: (B or 1, n, C) further keys and values of every window, without positional bias. They are not
                queries: nobody reads their rows.
        """
        batch, windows, size, dim = x.shape
        head_dim = dim // self.heads
        q, k, v = self.qkv(x).view(batch, windows, size, 3, self.heads, head_dim).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        bias = bias.view(size, size, self.heads).permute(2, 0, 1)
        scores = (q * head_dim**-0.5) @ k.transpose(-2, -1) + bias
        if mask is not None:
            scores = scores + mask[:, None].to(scores.dtype)
        if tokens is None:
            out = scores.softmax(-1) @ v
        else:
            weight, offset = self.qkv.weight[dim:], self.qkv.bias[dim:]
            kv = F.linear(tokens, weight, offset).view(tokens.shape[0], 1, -1, 2, self.heads, head_dim)
            token_k, token_v = kv.permute(3, 0, 1, 4, 2, 5)
            extra = (q * head_dim**-0.5) @ token_k.transpose(-2, -1)
            attention = torch.cat([scores, extra], -1).softmax(-1)
            out = attention[..., :size] @ v + attention[..., size:] @ token_v
        return self.proj(out.transpose(2, 3).reshape(batch, windows, size, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path_prob: float):
        super().__init__()
        self.window, self.shift, self.drop_path_prob = window, shift, drop_path_prob
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor, mask: Tensor, tokens: Tensor | None = None) -> Tensor:
        """(B, H, W, C) -> same. `mask` is used by shifted blocks. `tokens` pass the block's first norm."""
        _, height, width, _ = x.shape
        # Zeros are added behind the norm and take part as keys: so does the official code.
        pad_bottom, pad_right = -height % self.window, -width % self.window
        y = F.pad(self.norm1(x), (0, 0, 0, pad_right, 0, pad_bottom))
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        if tokens is not None:
            tokens = self.norm1(tokens if tokens.dim() == 3 else tokens[None])
        y = self.attn(window_partition(y, self.window), mask if self.shift else None, tokens)
        y = window_merge(y, self.window, height + pad_bottom, width + pad_right)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        x = x + drop_path(y[:, :height, :width], self.drop_path_prob, self.training)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path_prob, self.training)


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        parts = [x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class PatchEmbed(nn.Module):
    def __init__(self, dim: int, patch: int = 4):
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = pixel_values.shape[-2:]
        pixel_values = F.pad(pixel_values, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.proj(pixel_values).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, window: int, mlp_ratio: float, probs: list[float], last: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, window // 2 if i % 2 else 0, mlp_ratio, probs[i]) for i in range(depth)
        )
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor, stage: int, tokens: WindowTokens | None = None) -> Tensor:
        window = self.window
        height, width = x.shape[1] + -x.shape[1] % window, x.shape[2] + -x.shape[2] % window
        mask = (shift_mask if traced() else kept_shift_mask)(height, width, window, window // 2, x.device)
        for index, block in enumerate(self.blocks):
            x = block(x, mask, tokens(stage, index, x) if tokens is not None else None)
        return x


class GlipSwin(nn.Module):
    """Images -> maps of strides 4, 8, 16, 32; width doubles with each."""

    def __init__(
        self,
        embed_dim: int,
        depths: list[int],
        num_heads: list[int],
        window_size: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dim)
        probs = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(depths, num_heads)):
            start = sum(depths[:stage])
            self.layers.append(
                SwinStage(
                    embed_dim << stage,
                    depth,
                    heads,
                    window_size,
                    mlp_ratio,
                    probs[start : start + depth],
                    last=stage == len(depths) - 1,
                )
            )
            if stage:  # the first map goes nowhere, so official checkpoints have no norm0
                self.add_module(f"norm{stage}", nn.LayerNorm(embed_dim << stage))

    def forward(self, pixel_values: Tensor, tokens: WindowTokens | None = None) -> list[Tensor]:
        """(B, 3, H, W) -> four maps (B, C << i, H / (4 << i), W / (4 << i)), all but the first normed.

        In channels-last memory.

        Args:
            tokens: asked before every block for learned tokens that its windows attend to (VPT for Swin).
        """
        x = self.patch_embed(pixel_values)
        maps = []
        for stage, layer in enumerate(self.layers):
            x = layer(x, stage, tokens)
            maps.append((getattr(self, f"norm{stage}")(x) if stage else x).permute(0, 3, 1, 2))
            if layer.downsample is not None:
                x = layer.downsample(x)
        return maps
