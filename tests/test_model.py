"""`attach`: its default seed, and what it says of backbones that do not fit."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import duotune
from duotune import attach
from duotune.backbones.clip import ClipBackbone
from duotune.backbones.glip import GlipBackbone
from duotune.data import ClassificationData
from duotune.data.detection import DetectionData
from duotune.errors import PortError
from duotune.model import choose_method
from duotune.models.glip import GlipConfig
from duotune.recipes import Recipe
from duotune.training import PromptTrainingArguments

NAMES = ["cat", "dog"]


def test_one_seed_everywhere():
    of = lambda call: inspect.signature(call).parameters["seed"].default
    assert (
        of(attach) == of(ClassificationData.few_shot) == of(DetectionData.few_shot) == Recipe(method="coop").seed == 1
    )
    assert PromptTrainingArguments.seed == PromptTrainingArguments.shots_seed == 1


def test_a_random_start_is_its_seeds(tiny_clip):
    start = lambda **seed: attach(tiny_clip, "coop", NAMES, **seed).method.text.context.tokens
    assert torch.equal(start(), start(seed=1)) and not torch.equal(start(), start(seed=2))
    state = torch.get_rng_state()
    start()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backbone_that_lacks_ports_names_those_that_have_them_embedded_ones_too():
    with pytest.raises(PortError, match="; try glip or grounding_dino, such as the embedded tiny-glip$"):
        choose_method("sdpt", "mine", ClipBackbone.ports)
    with pytest.raises(PortError, match="; try clip, such as the embedded tiny$"):
        choose_method("dpt", "mine", GlipBackbone.ports)


def test_transformers_knows_whose_an_embedded_detector_is():
    """Else its automatic classes warn of "a model of type glip" at every start."""
    folder = Path(duotune.__file__).parent / "assets" / "tiny-glip"
    assert type(AutoConfig.from_pretrained(folder)) is GlipConfig
