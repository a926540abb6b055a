"""Detection head: what every image position says about every caption token, its box and its centerness."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...precision import full_precision, wide
from .fusion import flatten_maps
from .initialization import tagged


class LevelScale(nn.Module):
    """A learned factor of one level's box deltas."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class GlipHead(nn.Module):
    """Linear maps on the fusion tower's output; one anchor per position."""

    def __init__(
        self, channels: int, text_dim: int, levels: int = 5, unused_classes: int = 80, prior_prob: float = 0.01
    ):
        super().__init__()
        self.prior_prob = prior_prob
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias_lang = nn.Parameter(torch.zeros(text_dim))
        self.bias0 = nn.Parameter(torch.full((1,), self.prior_bias))
        # In official checkpoints; nothing reads what it would say.
        self.cls_logits = tagged(nn.Conv2d(channels, unused_classes, 1), "small")
        self.bbox_pred = tagged(nn.Conv2d(channels, 4, 1), "small")
        self.centerness = tagged(nn.Conv2d(channels, 1, 1), "small")
        self.dot_product_projection_text = tagged(nn.Linear(text_dim, channels), "torch")
        self.scales = nn.ModuleList(LevelScale() for _ in range(levels))

    @property
    def prior_bias(self) -> float:
        """Logit of the initial probability that a token is matched."""
        return -math.log((1 - self.prior_prob) / self.prior_prob)

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, d_l) -> (B, T, C) what positions are compared with, and (B, T) a bias per token."""
        unit, project = F.normalize(wide(text), dim=-1, eps=1e-12), self.dot_product_projection_text
        bias = unit @ wide(self.bias_lang) + self.bias0
        return F.linear(unit / 2, wide(project.weight), wide(project.bias)), bias

    def forward(self, maps: list[Tensor], text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, C, h, w) and text (B, T, d_l) -> token logits (B, N, T), box deltas (B, N, 4), centerness (B, N).

        Positions: level after level, row-major. Centerness as logits. All in float32 at least.
        """
        with full_precision(text.device):
            embedded, bias = self.embed_text(text)
            visual = wide(flatten_maps(maps))
            logits = torch.baddbmm(bias[:, None], visual, (embedded / wide(self.log_scale).exp()).transpose(1, 2))
            # A 1x1 convolution is a linear map of positions.
            position = lambda layer: F.linear(visual, wide(layer.weight).flatten(1), wide(layer.bias))
            sizes = [m.shape[-2] * m.shape[-1] for m in maps]
            parts = position(self.bbox_pred).split(sizes, 1)
            deltas = torch.cat([scale(part) for scale, part in zip(self.scales, parts)], 1)
            return logits, deltas, position(self.centerness).squeeze(-1)
