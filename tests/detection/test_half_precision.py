"""SDPT on weights that are stored and frozen in half precision: prompts and their gradients stay in float32."""

from __future__ import annotations

import pytest
import torch

from duotune import attach, load_backbone

NAMES = ["cat", "red square", "hair drier", "house boats"]


def gradients(backbone, pixels, labels, visible):
    model = attach(backbone, "sdpt", NAMES, visible=visible).train()
    out = model(pixels, labels=labels)
    assert out["loss"].dtype == torch.float32
    out["loss"].backward()
    (prototypes,) = model.method.parameters()
    assert prototypes.dtype == prototypes.grad.dtype == torch.float32
    return model, out["loss"].item(), prototypes.grad.clone()


@pytest.mark.parametrize("visible", ["both", "text_queries"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_step_of_prompts_on_half_precision_weights(glip_folder, shared_backbone, pixels, labels, dtype, visible):
    half = load_backbone(str(glip_folder), dtype=dtype, device="cpu")
    assert {p.dtype for p in half.parameters()} == {getattr(torch, dtype)}
    _, exact_loss, exact = gradients(shared_backbone, pixels, labels, visible)
    model, loss, found = gradients(half, pixels, labels, visible)
    assert loss == pytest.approx(exact_loss, rel=0.02)
    for a, b in zip(found, exact):  # every layer's tokens learn in nearly the same direction
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > (0.9 if visible == "both" else 0.8)
    before = {k: v.clone() for k, v in half.model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.method.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = model(pixels, labels=labels)["loss"]
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(v, before[k]) for k, v in half.model.state_dict().items())


def test_a_prediction_in_half_precision(glip_folder, shared_backbone, pictures):
    half = load_backbone(str(glip_folder), dtype="bfloat16", device="cpu")
    limits = {"score_threshold": 0.01, "max_detections": 20}
    found, exact = (attach(b, "sdpt", NAMES).detect(pictures, **limits) for b in (half, shared_backbone))
    for a, b in zip(found, exact):
        assert len(a["scores"]) > 0 and torch.isfinite(a["boxes"]).all()
        assert a["scores"].max().item() == pytest.approx(b["scores"].max().item(), rel=0.1)
