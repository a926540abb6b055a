"""Learnt text context (CoOp, arXiv 2109.01134): vectors that stand where a template's words would."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ContextTokens(nn.Module):
    """M context vectors in token-embedding space, shared by all classes or one set per class.

    Args:
        num_context_tokens: M, at least 1.
        width: token-embedding width d.
        num_classes: None for one context shared by all classes, else C contexts.
        init: (M, d) embeddings of the words to start from; None for N(0, std).
        std: standard deviation of the random start (0.02 in CoOp and DPT).

    Attributes:
        tokens: parameter (M, d), or (C, M, d) if class-specific.
    """

    def __init__(
        self,
        num_context_tokens: int,
        width: int,
        num_classes: int | None = None,
        init: Tensor | None = None,
        std: float = 0.02,
    ):
        super().__init__()
        if init is None:
            tokens = torch.randn(num_context_tokens, width) * std
            if num_classes is not None:
                tokens = torch.randn(num_classes, num_context_tokens, width) * std
        else:
            tokens = init.detach().clone().float()
            if num_classes is not None:
                tokens = tokens.expand(num_classes, -1, -1).clone()
        self.tokens = nn.Parameter(tokens)

    @property
    def class_specific(self) -> bool:
        return self.tokens.ndim == 3

    @property
    def num_context_tokens(self) -> int:
        return self.tokens.shape[-2]

    def extra_repr(self) -> str:
        return f"shape={tuple(self.tokens.shape)}, class_specific={self.class_specific}"
