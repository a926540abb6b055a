"""Unified prototype tokens and inverse projections (SDPT, arXiv 2407.11414)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

INITS = ("uniform", "normal", "xavier", "xavier_normal", "kaiming", "kaiming_normal", "sparse")
"""How prototype tokens may start. "xavier" and "kaiming" are the uniform forms, both with the gain of a ReLU."""
MAX_RESIDUAL = 1e-10


class UnifiedPrototypeTokens(nn.Module):
    """K tokens per fusion layer in the space where image queries and text keys meet.

    Args:
        num_prototype_tokens: K, at least 1.
        width: e, inner width of the fusion attention (2048 in GLIP).
        layers: numbers of the fusion layers that have tokens, counted from 0.
        init: one of `INITS`. The scales are those of the authors' code, whose tokens of a layer are a (1, K, e)
            tensor; "sparse" takes each layer's (K, e), since it is defined for matrices alone.

    Attributes:
        tokens: parameter (number of layers, K, e).
        layers: sorted numbers of the fusion layers.
    """

    def __init__(self, num_prototype_tokens: int, width: int, layers: Iterable[int], init: str = "uniform"):
        super().__init__()
        self.layers = tuple(sorted(set(layers)))
        self.tokens = nn.Parameter(torch.empty(len(self.layers), num_prototype_tokens, width))
        with torch.no_grad():
            for layer in self.tokens:
                start(layer, init)

    def forward(self, layer: int) -> Tensor | None:
        """Tokens (K, e) of a fusion layer (0-based); None if it has none."""
        return self.tokens[self.layers.index(layer)] if layer in self.layers else None

    def extra_repr(self) -> str:
        return f"shape={tuple(self.tokens.shape)}, layers={self.layers}"


def start(tokens: Tensor, init: str) -> None:
    """Fill (K, e) in place; `init` is one of `INITS`."""
    if init == "uniform":
        nn.init.uniform_(tokens, -1, 1)
    elif init == "normal":
        nn.init.normal_(tokens)
    elif init == "sparse":
        nn.init.sparse_(tokens, 0.5, std=0.01)
    elif init == "xavier":
        nn.init.xavier_uniform_(tokens[None], gain=nn.init.calculate_gain("relu"))
    elif init == "xavier_normal":
        nn.init.xavier_normal_(tokens[None])
    elif init == "kaiming":
        nn.init.kaiming_uniform_(tokens[None], nonlinearity="relu")
    elif init == "kaiming_normal":
        nn.init.kaiming_normal_(tokens[None])
    else:
        raise ValueError(f"init must be one of {', '.join(INITS)}, not {init!r}")


class InverseProjection(nn.Module):
    """From the aligned space back into a modality: the row whose projection comes nearest to a prototype.

        p -> (p - b) (Wᵀ)⁺        with the frozen projection x -> x Wᵀ + b and the Moore-Penrose inverse ⁺

    Nothing is learnt. The inverse is computed once, in float64, and kept in the weight's precision (float32 for half
    precision weights); it is in no state dict.

    Args:
        projection: the frozen layer d -> e.
    """

    inverse: Tensor
    bias: Tensor

    def __init__(self, projection: nn.Linear):
        super().__init__()
        weight, bias = projection.weight.detach(), projection.bias
        keep = torch.promote_types(weight.dtype, torch.float32)
        bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias.detach()
        self.register_buffer("inverse", transposed_pseudo_inverse(weight).to(keep), persistent=False)
        self.register_buffer("bias", bias.to(keep, copy=True), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> InverseProjection:
        kept = self.inverse, self.bias
        super()._apply(fn, recurse)
        if torch.promote_types(self.inverse.dtype, kept[0].dtype) != self.inverse.dtype:  # a cast would lose bits
            self.inverse, self.bias = (old.to(new.device) for old, new in zip(kept, (self.inverse, self.bias)))
        return self

    def forward(self, prototypes: Tensor) -> Tensor:
        """(..., e) -> (..., d), never in less than the precision of the inverse."""
        with torch.autocast(prototypes.device.type, enabled=False):
            return (prototypes.to(self.bias.dtype) - self.bias) @ self.inverse


@torch.no_grad()
def transposed_pseudo_inverse(weight: Tensor) -> Tensor:
    """(e, d) -> Moore-Penrose inverse (e, d) of its transpose, float64.

    Weights of full column rank go through the normal equations, which cost less than a singular value decomposition;
    the product with the weight, which must be the identity, tells whether that was exact.
    """
    if weight.is_meta:
        return torch.empty_like(weight, dtype=torch.float64)
    weight = weight.double()
    factor, failed = torch.linalg.cholesky_ex(weight.T @ weight)
    if not failed:
        inverse = torch.cholesky_solve(weight.T, factor)  # (d, e)
        residual = inverse @ weight - torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        if residual.abs().max() < MAX_RESIDUAL:
            return inverse.T.contiguous()
    return torch.linalg.pinv(weight.T)
