"""Learnt visual prompt tokens (VPT, arXiv 2203.12119)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class VisualPromptTokens(nn.Module):
    """P tokens for each of a vision tower's first layers.

    deep: every layer gets its own tokens, which are removed from that layer's output.
    shallow: one set enters at the first layer and stays in the sequence to the last.

    Args:
        num_visual_tokens: P, at least 1.
        width: vision width d.
        num_layers: number of prompted layers (1 if shallow).
        std: standard deviation of the normal start (0.02 in DPT).

    Attributes:
        tokens: parameter (num_layers, P, d).
    """

    def __init__(self, num_visual_tokens: int, width: int, num_layers: int, std: float = 0.02):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_layers, num_visual_tokens, width) * std)

    def forward(self, layer: int) -> Tensor | None:
        """Tokens (P, d) of a layer (0-based), None above the last prompted one."""
        return self.tokens[layer] if layer < len(self.tokens) else None

    def extra_repr(self) -> str:
        return f"shape={tuple(self.tokens.shape)}"
