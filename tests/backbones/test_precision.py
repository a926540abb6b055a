"""Backbones in half precision stay close to float32; prompts themselves stay in float32.

bfloat16 keeps 8 significant bits (relative rounding 2^-9 = 0.2 %), float16 11 (2^-12 = 0.02 %). Cosines gather
roundings at random: four of them is the bound on this three-layer tower (1 to 2.5 were seen). A gradient is
conditioned worse: with random weights the classes' features nearly cancel in it, and Hugging Face's own modules
come out 11 to 53 roundings away, with or without our single-step blocks; 64 is the bound.
The loss is scaled before the backward pass, as training in float16 does: its numbers end at 6e-8.
"""

from __future__ import annotations

import pytest
import torch

from duotune import attach
from duotune.backbones import load_backbone

NAMES = ["cat", "red square", "dog", "grey house boat", "flower"]
ROUNDING = {"bfloat16": 2**-9, "float16": 2**-12}
LOSS_SCALE = 1024.0


@pytest.mark.parametrize("method", ["coop", "vpt", "vlp", "dpt", "zero_shot", "linear_probe"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_half_precision_stays_close(tiny_clip, tiny_clip_folder, dtype, method):
    half = load_backbone(str(tiny_clip_folder), dtype=dtype, device="cpu")
    assert next(half.model.parameters()).dtype == getattr(torch, dtype)
    pixels, labels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    with torch.no_grad():  # frozen features and candidates in common: top-k may fall otherwise where classes tie
        frozen = tiny_clip.encode_image(pixels)
    runs = []
    for backbone in (tiny_clip, half):
        model = attach(backbone, method, NAMES).train()
        out = model(pixels, frozen_features=frozen, labels=labels)
        if out["loss"].requires_grad:
            (LOSS_SCALE * out["loss"]).backward()
        runs.append((out["logits"].detach(), {k: p.grad for k, p in model.method.named_parameters()}))
        assert all(p.dtype == torch.float32 for p in model.method.parameters())
    (logits, gradients), (half_logits, half_gradients) = runs
    scale = tiny_clip.logit_scale
    assert half_logits.dtype == torch.float32
    assert ((half_logits - logits) / scale).abs().max() <= 4 * ROUNDING[dtype]  # in cosines
    for name, gradient in gradients.items():
        if gradient is None or gradient.norm() == 0:
            continue
        assert (half_gradients[name] - gradient).norm() <= 64 * ROUNDING[dtype] * gradient.norm(), name


@pytest.mark.parametrize("dtype", ROUNDING)
def test_half_precision_keeps_the_zero_shot_order(tiny_clip_folder, tiny_clip, dtype):
    half = load_backbone(str(tiny_clip_folder), dtype=dtype, device="cpu")
    assert half.fingerprint() == tiny_clip.fingerprint()
    text = torch.nn.functional.cosine_similarity(half.encode_text(NAMES).float(), tiny_clip.encode_text(NAMES))
    assert text.min() > 0.999
