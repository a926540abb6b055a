"""GLIP-T and GLIP-L at full width: a prediction and a training step of SDPT, with peak memory printed."""

from __future__ import annotations

import resource

import pytest
import torch
from PIL import Image

from duotune import attach
from duotune.backbones.glip import GlipBackbone
from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor

HEIGHT, WIDTH = 416, 608
NAMES = ["person", "cat", "hair drier"]


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


@pytest.mark.slow
@pytest.mark.parametrize("size, tokens", [("glip_t", 122_880), ("glip_l", 163_840)])
def test_a_prediction_and_a_training_step(size, tokens, tokenizer):
    torch.manual_seed(0)
    config = getattr(GlipConfig, size)()
    network = GlipForObjectDetection(config)
    with torch.no_grad():
        network.head.bias0.fill_(-1.0)  # untrained, it would find nothing above the threshold
    processor = GlipProcessor.from_config(config, tokenizer, short_side=HEIGHT, long_side=WIDTH)
    model = attach(GlipBackbone(size, network, processor), "sdpt", NAMES)
    assert model.num_trainable_parameters() == tokens
    noise = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8).numpy()
    (found,) = model.detect([Image.fromarray(noise)])
    assert len(found["scores"]) > 0 and torch.isfinite(found["boxes"]).all()
    predicted = peak_gigabytes()

    pixels, _ = model.backbone.prepare([Image.fromarray(noise)])
    labels = [
        {"boxes": torch.tensor([[30.0, 40, 300, 380]]), "positive_map": model.method.caption.positive_map([1])},
    ]
    model.train()
    (prototypes,) = model.method.parameters()
    loss = model(pixels, labels=labels)["loss"]
    loss.backward()
    assert (prototypes.grad.flatten(1).norm(dim=1) > 0).all()
    with torch.no_grad():
        prototypes -= 0.5 * prototypes.grad / prototypes.grad.norm()
        after = model(pixels, labels=labels)["loss"]
    assert after != loss
    print(f"{size} at {HEIGHT}x{WIDTH}: peak {predicted:.1f} GB to predict, {peak_gigabytes():.1f} GB to train prompts")
