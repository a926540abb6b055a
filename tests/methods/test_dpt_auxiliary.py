"""L_ca of DPT against a loop over the triples that enter it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from duotune import attach

NAMES = ["cat", "red square", "dog", "grey house boat", "flower", "boat"]


@pytest.mark.parametrize(
    "labels, hits", [([0, 3, 5, 2], 4), ([0, 1, 5, 1], 2), ([1, 1, 1, 1], 0)], ids=["all", "some", "none"]
)
def test_it_is_the_mean_over_images_whose_class_is_a_candidate(tiny_clip, labels, hits):
    method = attach(tiny_clip, "dpt", NAMES, num_candidates=3, class_aware_from=2).method.double()
    candidates = torch.tensor([[2, 0, 4], [3, 4, 5], [5, 0, 2], [4, 5, 2]])
    labels, width = torch.tensor(labels), tiny_clip.vision_width
    attended = torch.randn(4, 2, 3, width, dtype=torch.float64, requires_grad=True)
    terms = [
        F.cross_entropy(method.aux[layer](attended[i, layer, j])[None], labels[i : i + 1])
        for layer in range(2)
        for i in range(4)
        for j in range(3)
        if candidates[i, j] == labels[i]
    ]
    assert len(terms) == 2 * hits
    plain = sum(terms) / len(terms) if terms else (attended * 0).sum()
    ours = method.auxiliary_loss(attended, candidates, labels)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    inputs = [attended, *method.aux.parameters()]
    for a, b in zip(*(torch.autograd.grad(x, inputs, materialize_grads=True) for x in (ours, plain))):
        assert (b.norm() > 0) == bool(hits)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)
