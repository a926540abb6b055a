"""Grounding DINO (Swin-T) at full width, random weights: a prediction and a training step, with peak memory printed."""

from __future__ import annotations

import resource

import pytest
import torch
from tiny_grounding_dino import make_tokenizer

from duotune import attach
from duotune.backbones.grounding_dino import GroundingDinoBackbone

HEIGHT, WIDTH = 800, 1088
PARAMETERS = 172_250_626  # of transformers' GroundingDinoConfig() with BERT's own vocabulary


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@pytest.mark.slow
def test_a_prediction_and_a_training_step():
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    torch.manual_seed(0)
    backbone = GroundingDinoBackbone(
        "grounding-dino-tiny", GroundingDinoForObjectDetection(GroundingDinoConfig()), make_tokenizer()
    )
    assert sum(p.numel() for p in backbone.parameters()) == PARAMETERS
    loaded = peak_gigabytes()
    names = ["cat", "red square", "hair drier"]
    model = attach(backbone, "sdpt", names)
    assert model.num_trainable_parameters() == 6 * 10 * 1024
    pixels = torch.randn(1, 3, HEIGHT, WIDTH)
    sizes = torch.tensor([[HEIGHT, WIDTH]])
    (found,) = model.find(pixels, image_sizes=sizes, max_detections=100)
    assert len(found["scores"]) == 100 and torch.isfinite(found["boxes"]).all()
    predicted = peak_gigabytes()

    labels = [{"boxes": torch.tensor([[30.0, 40, 300, 380]]), "positive_map": model.method.caption.positive_map([1])}]
    model.train()
    with torch.no_grad():
        maps = backbone.encode_image(pixels, image_sizes=sizes)
    (tokens,) = model.method.param_groups()[0].params
    for checkpointing in (True, False):  # the one that needs less first: the peak never falls
        backbone.gradient_checkpointing = checkpointing
        model(feature_maps=maps, labels=labels)["loss"].backward()
        print(f"step {'with' if checkpointing else 'without'} checkpointing: peak {peak_gigabytes():.1f} GB")
    assert (tokens.grad.flatten(1).norm(dim=1) > 0).all()
    before = model(feature_maps=maps, labels=labels)["loss"].item()
    with torch.no_grad():
        tokens -= 0.05 * tokens.grad / tokens.grad.norm()
        after = model(feature_maps=maps, labels=labels)["loss"].item()
    assert after != before
    print(f"{HEIGHT}x{WIDTH}: peak {loaded:.1f} GB loaded, {predicted:.1f} GB to predict")
