"""Prototype tokens and inverse projections alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from closeness import close
from duotune.prompts import InverseProjection, UnifiedPrototypeTokens
from duotune.prompts.unified import INITS, transposed_pseudo_inverse


def linear(d, e, dtype=torch.double, seed=0):
    layer = nn.Linear(d, e).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(e, d, generator=generator) * 0.3)
        layer.bias.copy_(torch.randn(e, generator=generator))
    return layer


@pytest.mark.parametrize("shape", [(6, 20), (20, 20), (20, 6)], ids=["wide", "square", "narrow"])
def test_projecting_back_is_the_nearest_that_the_modality_can_say(shape):
    layer, prototypes = linear(*shape), torch.randn(4, shape[1], dtype=torch.double)
    rows = InverseProjection(layer)(prototypes)
    best = torch.linalg.lstsq(layer.weight, (prototypes - layer.bias).T, driver="gelsd").solution.T
    torch.testing.assert_close(rows, best, rtol=1e-9, atol=1e-9)
    residual = layer(rows) - prototypes
    if shape[0] < shape[1]:  # what is left is orthogonal to everything that the layer can say, and not nothing
        assert residual.norm() > 0.1 * prototypes.norm()
        torch.testing.assert_close(residual @ layer.weight, torch.zeros(4, shape[0]).double(), rtol=0, atol=1e-9)
    else:
        torch.testing.assert_close(residual, torch.zeros_like(residual), rtol=0, atol=1e-9)


def weights():
    full = linear(6, 20).weight.detach()
    lacking = full.clone()
    lacking[:, 5] = lacking[:, 0] + lacking[:, 1]
    nearly = full.clone()
    nearly[:, 5] = nearly[:, 0] + 1e-7 * nearly[:, 5]
    return {"full_rank": full, "rank_lost": lacking, "nearly_lost": nearly, "wider_than_high": full.T.contiguous()}


@pytest.mark.parametrize("kind", weights())
def test_the_four_conditions_of_moore_and_penrose(kind):
    a = weights()[kind].T  # d x e
    inverse = transposed_pseudo_inverse(a.T)
    for left, right in [(a @ inverse @ a, a), (inverse @ a @ inverse, inverse)]:
        assert (left - right).abs().max() <= 1e-6 * right.abs().max()
    for product in (a @ inverse, inverse @ a):
        assert (product - product.T).abs().max() <= 1e-6
    torch.testing.assert_close(inverse, torch.linalg.pinv(a), rtol=1e-6, atol=1e-6 * inverse.abs().max().item())


def test_full_rank_needs_no_singular_values(monkeypatch):
    monkeypatch.setattr(torch.linalg, "pinv", lambda *_: pytest.fail("a singular value decomposition ran"))
    transposed_pseudo_inverse(weights()["full_rank"])


def test_the_inverse_is_no_state_and_keeps_a_fit_precision():
    layer = linear(6, 20, torch.float32)
    exact = InverseProjection(linear(6, 20))
    inverse = InverseProjection(layer)
    assert not list(inverse.parameters()) and not inverse.state_dict()
    assert inverse.inverse.dtype == torch.float32
    torch.testing.assert_close(inverse.inverse.double(), exact.inverse, rtol=1e-6, atol=1e-7)
    half = InverseProjection(linear(6, 20, torch.bfloat16))
    assert half.inverse.dtype == torch.float32
    prototypes = torch.randn(3, 20)
    expected = inverse(prototypes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert close(inverse(prototypes), expected)
    before = inverse.bias.clone()
    with torch.no_grad():
        layer.bias.zero_()
    assert torch.equal(inverse.bias, before), "the projection's bias is shared"


def test_tokens_of_some_layers():
    tokens = UnifiedPrototypeTokens(3, 8, [4, 1, 4])
    assert tokens.tokens.shape == (2, 3, 8) and tokens.layers == (1, 4)
    assert torch.equal(tokens(4), tokens.tokens[1]) and torch.equal(tokens(1), tokens.tokens[0])
    assert tokens(0) is None and tokens(5) is None


K, E = 40, 500
# standard deviation of each start; fans are those of a (1, K, E) tensor: K * E in, E out
DEVIATION = {
    "uniform": 1 / math.sqrt(3),
    "normal": 1.0,
    "xavier": math.sqrt(2) * math.sqrt(2 / (K * E + E)),
    "xavier_normal": math.sqrt(2 / (K * E + E)),
    "kaiming": math.sqrt(2 / (K * E)),
    "kaiming_normal": math.sqrt(2 / (K * E)),
    "sparse": 0.01 * math.sqrt(0.5),
}


@pytest.mark.parametrize("init", INITS)
def test_starts(init):
    torch.manual_seed(0)
    tokens = UnifiedPrototypeTokens(K, E, range(2), init).tokens.detach()
    assert tokens.std().item() == pytest.approx(DEVIATION[init], rel=0.03)
    assert abs(tokens.mean().item()) < 0.05 * DEVIATION[init]
    assert not torch.equal(tokens[0], tokens[1])
    bound = DEVIATION[init] * math.sqrt(3)
    assert (tokens.abs().max() <= bound * 1.0001) == (init in ("uniform", "xavier", "kaiming"))
    assert ((tokens == 0).double().mean().item() == 0.5) == (init == "sparse")


def test_an_unknown_start():
    with pytest.raises(ValueError, match="uniform, normal, .*, not 'ones'"):
        UnifiedPrototypeTokens(1, 2, [0], "ones")
