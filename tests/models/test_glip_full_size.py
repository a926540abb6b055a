"""GLIP-T and GLIP-L at full width: a prediction and a training step of prompts, with peak memory printed."""

from __future__ import annotations

import resource

import pytest
import torch

from duotune.models.glip import FusionTokens, GlipConfig, GlipForObjectDetection, GlipProcessor

HEIGHT, WIDTH = 416, 608


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("size", ["glip_t", "glip_l"])
def test_a_prediction_and_a_training_step(size, tokenizer):
    torch.manual_seed(0)
    config = getattr(GlipConfig, size)()
    model = GlipForObjectDetection(config).eval().requires_grad_(False)
    with torch.no_grad():
        model.head.bias0.fill_(-1.0)  # untrained, it would find nothing above the threshold
    processor = GlipProcessor.from_config(config, tokenizer)
    caption = processor.caption(["person", "cat", "hair drier"])
    text = processor(text=caption)
    pixels = torch.randn(1, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        outputs = model(pixels, **text)
    (found,) = processor.post_process_object_detection(outputs, caption, [(HEIGHT, WIDTH)])
    assert len(found["scores"]) > 0 and torch.isfinite(found["boxes"]).all()
    predicted = peak_gigabytes()

    tokens = torch.randn(config.num_fusion_layers, 10, config.fpn_channels, requires_grad=True)
    labels = {"boxes": torch.tensor([[30.0, 40, 300, 380]]), "positive_map": caption.positive_map([1])}
    prompts = lambda layer, visual, text: FusionTokens(visual=tokens[layer])
    loss = model(pixels, **text, labels=[labels], fusion_prompts=prompts).loss
    loss.backward()
    before = loss.item()
    assert (tokens.grad.flatten(1).norm(dim=1) > 0).all()
    with torch.no_grad():
        tokens -= 0.05 * tokens.grad / tokens.grad.norm()
        after = model(pixels, **text, labels=[labels], fusion_prompts=prompts).loss.item()
    assert after != before
    print(f"{size} at {HEIGHT}x{WIDTH}: peak {predicted:.1f} GB to predict, {peak_gigabytes():.1f} GB to train prompts")
