"""Every method against `transcription`: logits, loss, and the gradient of every parameter."""

from __future__ import annotations

import copy

import pytest
import torch
from transcription import Transcription, unit

from duotune import attach
from duotune.backbones.clip import ClipBackbone
from duotune.methods import METHODS
from duotune.methods.base import Progress

NAMES = ["cat", "red square", "dog", "grey house boat", "flower"]
TEMPLATE = "a drawing of a {}."
TOLERANCE = 1e-5  # of the largest logit, of the loss, and of each gradient's norm, in float32


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def reference(tiny_clip):
    return Transcription(copy.deepcopy(tiny_clip.model), tiny_clip.tokenizer, pad=tiny_clip.tokenizer.eos_token_id)


def attached(backbone, method, names=NAMES, template=TEMPLATE, **settings):
    """The method with every parameter moved off its start, in training mode."""
    model = attach(backbone, method, names, template, **settings)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.method.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.train()


def compare(model, pixels, labels, equations, epoch=0, tolerance=TOLERANCE):
    """equations(parameters) -> (logits, loss), run on copies of the method's parameters."""
    ours = model(pixels, labels=labels, progress=Progress(epoch, 60))
    ours["loss"].backward()
    values = {k: p.detach().clone().requires_grad_() for k, p in model.method.named_parameters()}
    logits, loss = equations(values)
    loss.backward()
    assert (ours["logits"] - logits).abs().max() <= tolerance * logits.abs().max()
    assert abs(ours["loss"] - loss) <= tolerance * abs(loss)
    assert values
    for name, p in model.method.named_parameters():
        if p.numel() == 0:
            continue
        if values[name].grad is None:  # the auxiliary head when no candidate is the ground truth
            assert name.startswith("aux.") and (p.grad is None or p.grad.abs().max() == 0)
            continue
        assert values[name].grad.norm() > 0, f"{name}: nothing to compare"
        assert (p.grad - values[name].grad).norm() <= tolerance * values[name].grad.norm(), name


LABELS = torch.tensor([0, 3, 1, 4])
COOP = [
    {"position": position, "class_specific": specific, "num_context_tokens": m}
    for position in ("end", "middle", "front")
    for specific in (False, True)
    for m in (4, 5)
]


@pytest.mark.parametrize("settings", COOP, ids=lambda s: "-".join(map(str, s.values())))
def test_coop(tiny_clip, reference, pixels, settings):
    model = attached(tiny_clip, "coop", **settings)
    compare(model, pixels, LABELS, lambda p: reference.coop(p, NAMES, pixels, LABELS, settings["position"]))


@pytest.mark.parametrize("specific", [False, True])
def test_coop_from_words(tiny_clip, reference, pixels, specific):
    model = attach(tiny_clip, "coop", NAMES, init_words="a photo of a", class_specific=specific)
    ids = tiny_clip.tokenizer("a photo of a").input_ids[1:-1]
    start = reference.text_tower.embeddings.token_embedding.weight[ids]
    tokens = model.method.text.context.tokens
    assert tokens.shape[-2] == len(ids)
    assert torch.equal(tokens.detach(), start.expand_as(tokens))
    # the words of a template as context read exactly as the template does
    zero_shot = attach(tiny_clip, "zero_shot", NAMES, "a photo of a {}.")
    expected = zero_shot(pixels)["logits"]
    assert (model(pixels)["logits"] - expected).abs().max() <= TOLERANCE * expected.abs().max()
    model = attached(tiny_clip, "coop", init_words="a_photo_of_a", class_specific=specific)
    compare(model, pixels, LABELS, lambda p: reference.coop(p, NAMES, pixels, LABELS))


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
def test_vpt(tiny_clip, reference, pixels, deep):
    model = attached(tiny_clip, "vpt", num_visual_tokens=5, deep=deep)
    assert len(model.method.visual.prompts.tokens) == (tiny_clip.vision_layers if deep else 1)
    compare(model, pixels, LABELS, lambda p: reference.vpt(p, NAMES, pixels, LABELS, TEMPLATE, deep))


@pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])
@pytest.mark.parametrize("position", ["end", "middle"])
def test_vlp(tiny_clip, reference, pixels, deep, position):
    settings = {"num_visual_tokens": 5, "num_context_tokens": 4, "deep": deep, "position": position}
    model = attached(tiny_clip, "vlp", **settings)
    compare(model, pixels, LABELS, lambda p: reference.vlp(p, NAMES, pixels, LABELS, deep, position))


@pytest.mark.parametrize("first", [3, 2, 1], ids="class-aware-from-{}".format)
@pytest.mark.parametrize("epoch", [29, 30], ids=["guided", "after-guidance"])
@pytest.mark.parametrize("count", [2, 10], ids=["2-candidates", "capped-at-5"])
@pytest.mark.parametrize("hits", [True, False], ids=["candidates-hit", "candidates-miss"])
def test_dpt(tiny_clip, reference, pixels, first, epoch, count, hits):
    if not hits and count >= len(NAMES):
        count = 1  # with every class a candidate nothing can miss
    chosen = reference.candidates(NAMES, pixels, TEMPLATE, min(count, len(NAMES)))
    if hits:  # three images whose class is among the candidates, one that may miss
        labels = torch.stack([*chosen[:3, -1], LABELS[3]])
    else:
        labels = torch.tensor([next(c for c in range(len(NAMES)) if c not in row) for row in chosen.tolist()])
    settings = {"num_context_tokens": 4, "num_visual_tokens": 3, "num_candidates": count, "class_aware_from": first}
    model = attached(tiny_clip, "dpt", **settings)
    assert len(model.method.class_aware) == tiny_clip.vision_layers - first + 1
    if first == 1:  # no plain visual tokens are left
        assert model.method.visual.prompts.tokens.numel() == 0
    equations = lambda p: reference.dpt(p, NAMES, pixels, labels, TEMPLATE, first, count, guided=epoch < 30)
    compare(model, pixels, labels, equations, epoch)
    touched = {k for k, p in model.method.named_parameters() if p.grad is not None and p.grad.norm() > 0}
    assert hits == any(k.startswith("aux.") for k in touched)


def test_dpt_default_is_the_last_layer_alone(tiny_clip):
    model = attach(tiny_clip, "dpt", NAMES)
    config = model.method.config
    assert len(model.method.class_aware) == 1
    assert model.method.visual.prompts.tokens.shape == (tiny_clip.vision_layers - 1, 10, tiny_clip.vision_width)
    assert (config.num_context_tokens, config.num_candidates, config.num_extra_tokens) == (16, 10, 10)
    assert (config.guidance_epochs, config.guidance_weight, config.aux_loss_weight) == (30, 0.1, 0.3)


@pytest.mark.parametrize("init", ["zeros", "text"])
def test_linear_probe(tiny_clip, reference, pixels, init):
    model = attached(tiny_clip, "linear_probe", init=init)
    compare(model, pixels, LABELS, lambda p: reference.linear_probe(p, pixels, LABELS))


def test_linear_probe_started_at_the_text_is_zero_shot(tiny_clip, pixels):
    probe = attach(tiny_clip, "linear_probe", NAMES, TEMPLATE, init="text")
    expected = attach(tiny_clip, "zero_shot", NAMES, TEMPLATE)(pixels)["logits"]
    assert (probe(pixels)["logits"] - expected).abs().max() <= TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("templates", [(TEMPLATE,), (TEMPLATE, "a photo of a {}.", "{}")], ids=["one", "ensemble"])
def test_zero_shot(tiny_clip, reference, pixels, templates):
    template = templates[0] if len(templates) == 1 else templates
    logits = attach(tiny_clip, "zero_shot", NAMES, template)(pixels)["logits"]
    text = reference.zero_shot_text(NAMES, list(templates))
    expected = reference.scale * unit(reference.plain_image(pixels)) @ text.T
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()
    # and the model's own logits for a single template
    if len(templates) == 1:
        ids = reference.ids([templates[0].format(n) for n in NAMES])
        own = reference.model(input_ids=ids, pixel_values=pixels).logits_per_image
        assert (logits - own).abs().max() <= TOLERANCE * own.abs().max()


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("convention", ["highest id (eos_token_id 2)", "first end token"])
def test_both_eos_conventions_and_activations(tiny_clip, pixels, act, convention):
    """Old checkpoints carry eos_token_id 2 and pool at the highest id; later ones at the first end token."""
    from transformers import CLIPModel

    config = copy.deepcopy(tiny_clip.model.config)
    config.text_config.hidden_act = config.vision_config.hidden_act = act
    old = convention.startswith("highest")
    end = config.text_config.eos_token_id
    config.text_config.eos_token_id = 2 if old else end
    model = CLIPModel(config)
    model.load_state_dict(tiny_clip.model.state_dict())
    backbone = ClipBackbone("variant", model, tiny_clip.tokenizer)
    equations = Transcription(copy.deepcopy(model), tiny_clip.tokenizer, pad=0 if old else end)
    prompted = attached(backbone, "vlp", num_context_tokens=4, num_visual_tokens=3)
    compare(prompted, pixels, LABELS, lambda p: equations.vlp(p, NAMES, pixels, LABELS))


def test_every_method_is_held_to_its_equations():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(METHODS) > 0 and set(METHODS) <= tests
