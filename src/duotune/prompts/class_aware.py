"""Class-aware visual prompts, CAVPT (DPT, arXiv 2208.08340, section 3.3).

text features of the Q candidates            the layer's tokens [CLS, patches], detached
            │ W_meta                                   ╎ + 10 learnt extra tokens
         query_j ──────────── attention ─────────── keys, values
            │                     │ o_j
            └────── + ────────────┤
                    │             └─► LayerNorm1 ─► auxiliary classifier
                LayerNorm2
                    │
             prompt token j  ─► appended to the layer's input
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CandidateAttention(nn.Module):
    """One-head attention with `inner`-wide queries and keys and raw tokens as values.

    o = W_v (softmax(W_q q (W_k x)ᵀ / sqrt(inner)) x); no projection has a bias.
    """

    def __init__(self, width: int, inner: int = 32):
        super().__init__()
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """queries (B, Q, d), tokens (B, N, d) -> (B, Q, d)"""
        scores = self.query(queries) @ self.key(tokens).transpose(1, 2) / math.sqrt(self.query.out_features)
        # the value projection is applied after the sum: Q rows instead of N
        return self.value(scores.softmax(dim=-1) @ tokens)


class ClassAwarePrompts(nn.Module):
    """The CAVPT generator of one layer.

    Args:
        text_width: width of the joint embedding space the candidates' text features live in.
        width: vision width d.
        num_extra_tokens: learnt tokens beside the layer's own as keys and values (10 in the authors' code).
        inner: width of queries and keys (32).
        std: standard deviation of the extra tokens' normal start.
    """

    def __init__(self, text_width: int, width: int, num_extra_tokens: int = 10, inner: int = 32, std: float = 0.02):
        super().__init__()
        self.meta = nn.Linear(text_width, width)
        self.attention = CandidateAttention(width, inner)
        self.extra_tokens = nn.Parameter(torch.randn(num_extra_tokens, width) * std)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt tokens for one layer.

        Args:
            hidden: (B, N, d) the layer's input tokens; no gradient flows into them from here.
            candidates: (B, Q, text_width) text features of each image's candidate classes, not normalised.

        Returns:
            prompts (B, Q, d), and the attended candidates o (B, Q, d) that an `AuxiliaryHead` classifies.
        """
        queries = self.meta(candidates)
        extra = self.extra_tokens.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        attended = self.attention(queries, torch.cat([hidden.detach(), extra], dim=1))
        return self.norm(attended + queries), attended


class AuxiliaryHead(nn.Module):
    """Classifies attended candidates while training: a linear layer without bias on LayerNorm1(o)."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes, bias=False)

    def forward(self, attended: Tensor) -> Tensor:
        """(..., d) -> (..., C)"""
        return self.classifier(self.norm(attended))
