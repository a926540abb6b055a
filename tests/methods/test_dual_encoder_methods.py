"""What dual encoders' methods have of their own; what holds for every method is in tests/contract."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from closeness import close
from duotune import attach
from duotune.errors import ClassNamesError, ConfigError
from duotune.methods.base import ImageBatch

NAMES = ["cat", "red square", "dog", "grey house boat", "flower"]
NEW_NAMES = ["tree", "blue car", "plane"]
WITH_TEXT = ["coop", "vlp", "dpt"]


@pytest.mark.parametrize("method", WITH_TEXT)
def test_a_class_specific_context_refuses_another_number_of_classes(tiny_clip, method):
    model = attach(tiny_clip, method, NAMES, class_specific=True)
    with pytest.raises(ClassNamesError, match="knows 5 classes, got 3.*class_specific=False"):
        model.set_classes(NEW_NAMES)


def test_the_auxiliary_head_is_for_training_alone(tiny_clip):
    model = attach(tiny_clip, "dpt", NAMES)
    left_out = set(model.method.state_dict()) - set(model.method.artifact_state())
    assert left_out and all(k.startswith("aux.") for k in left_out)


def test_class_names_that_the_tokenizer_reads_the_same(tiny_clip, monkeypatch):
    """Letter case, to a tokenizer that lower-cases; not to one that does not."""
    with pytest.raises(ClassNamesError, match="reads the same in 'Cat' and 'cat'; 'DOG' and 'dog': rename"):
        attach(tiny_clip, "zero_shot", ["Cat", "tree", "cat", "DOG", "dog"])
    attach(tiny_clip, "zero_shot", ["Cat", "tree", "dog"])
    by_letters = lambda texts, **_: SimpleNamespace(input_ids=[[ord(letter) for letter in text] for text in texts])
    monkeypatch.setattr(tiny_clip, "tokenizer", by_letters)
    attach(tiny_clip, "linear_probe", ["Cat", "tree", "cat"])


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}", ("a {}.", "nothing")])
def test_bad_templates(tiny_clip, template):
    with pytest.raises(ClassNamesError, match="must contain one '{}'"):
        attach(tiny_clip, "zero_shot", NAMES, template)


@pytest.mark.parametrize("method", WITH_TEXT)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_too_much_context_says_how_much_fits(tiny_clip, method, position):
    longest = tiny_clip.max_text_tokens - 1 - max(tiny_clip.tokenize([f"{n}." for n in NAMES]).eos.tolist())
    attach(tiny_clip, method, NAMES, num_context_tokens=longest, position=position)(torch.randn(1, 3, 32, 32))
    with pytest.raises(ClassNamesError, match=f"at most {longest} context tokens"):
        attach(tiny_clip, method, NAMES, num_context_tokens=longest + 1, position=position)


def test_class_aware_layers_beyond_the_tower(tiny_clip):
    with pytest.raises(ConfigError, match="layers 1 to 3"):
        attach(tiny_clip, "dpt", NAMES, class_aware_from=4)


def test_a_batch_needs_pixels_or_features():
    with pytest.raises(ConfigError, match="pixel_values or frozen_features"):
        ImageBatch()


def test_underscores_read_as_spaces(tiny_clip):
    pixels = torch.randn(2, 3, 32, 32)
    for method in ("zero_shot", "coop"):
        a, b = (
            attach(tiny_clip, method, names)(pixels)["logits"]
            for names in (["red_square", "cat"], ["red square", "cat"])
        )
        assert close(a, b)
