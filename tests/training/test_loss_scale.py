"""Prompts in front of frozen float16 weights learn from small gradients too; what precision weights get on a device."""

from __future__ import annotations

import pytest
import torch

from duotune import PromptTrainer, PromptTrainingArguments, attach, load_backbone
from duotune.backbones.base import weights_dtype
from duotune.errors import TrainingError
from duotune.training.loss_scale import LossScale

NAMES = ["cat", "red square", "dog", "house boat"]
SURE = 2e-6
"""A loss as small as that of classes that are sure: its gradients are below what float16 has."""


def gradient(backbone, scaled: bool) -> torch.Tensor:
    model = attach(backbone, "coop", NAMES).train()
    features = torch.randn(8, backbone.embed_dim, generator=torch.Generator().manual_seed(0))
    loss = SURE * model(frozen_features=features, labels=torch.arange(8) % 4)["loss"]
    scale = LossScale(model.method.parameters()) if scaled else None
    (scale(loss) if scale else loss).backward()
    if scale:
        assert scale(loss).item() == loss.item()
        scale.remove()
    return model.method.text.context.tokens.grad


@pytest.fixture(scope="module")
def half(tiny_clip_folder):
    return load_backbone(str(tiny_clip_folder), dtype="float16", device="cpu")


def test_small_gradients_come_through_float16_weights(tiny_clip, half):
    exact = gradient(tiny_clip, False)
    error = lambda found: ((found - exact).norm() / exact.norm()).item()
    assert error(gradient(half, False)) > 0.15  # without a scale most of them are zero
    assert error(gradient(half, True)) < 0.03
    assert torch.equal(gradient(tiny_clip, True), exact)  # a power of two changes no bit


def test_the_trainer_scales_for_float16_weights_alone(half, tiny_clip, picture_data, tmp_path, monkeypatch):
    made, original = [], LossScale.__init__
    monkeypatch.setattr(LossScale, "__init__", lambda self, *a: made.append(self) or original(self, *a))
    states = {}
    for name, backbone in {"float32": tiny_clip, "float16": half}.items():
        model = attach(backbone, "coop", picture_data.class_names)
        arguments = PromptTrainingArguments(
            str(tmp_path / name), num_train_epochs=1, augment=False, disable_tqdm=True, save_strategy="no"
        )
        trainer = PromptTrainer(model, arguments, picture_data)
        trainer.train()
        states[name] = model.method.text.context.tokens.detach()
        assert len(made) == (name == "float16")
    start = attach(tiny_clip, "coop", picture_data.class_names).method.text.context.tokens.detach()
    moved = {name: state - start for name, state in states.items()}
    assert torch.cosine_similarity(moved["float16"].flatten(), moved["float32"].flatten(), dim=0) > 0.99
    assert not model.method.text.context.tokens._backward_hooks


def test_a_gradient_too_large_for_float16_is_told(half):
    model = attach(half, "coop", NAMES).train()
    scale = LossScale(model.method.parameters(), 2.0**60)
    loss = scale(model(frozen_features=torch.randn(4, half.embed_dim), labels=torch.arange(4))["loss"])
    with pytest.raises(TrainingError, match="too large for the backbone's float16 weights.*bfloat16"):
        loss.backward()


@pytest.mark.parametrize(
    ("asked", "stored", "device", "expected"),
    [
        (None, torch.float16, "cpu", torch.float32),
        (None, torch.bfloat16, "cpu", torch.float32),
        (torch.float16, torch.float32, "cpu", torch.float16),
        (None, torch.float16, "cuda", torch.bfloat16),
        (None, torch.float16, "mps", torch.bfloat16),
        (None, torch.float32, "cuda:1", torch.float32),
        (None, torch.bfloat16, "cuda", torch.bfloat16),
        (torch.float16, torch.float16, "cuda", torch.float16),
    ],
)
def test_the_precision_of_weights_follows_file_and_device(asked, stored, device, expected):
    assert weights_dtype(asked, stored, device) == expected


def test_a_gpu_that_computes_no_bfloat16_gets_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in {(7, 5): torch.float32, (8, 0): torch.bfloat16}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert weights_dtype(None, torch.float16, "cuda:0") == expected
