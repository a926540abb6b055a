"""SDPT on GLIP against an independent transcription, in both visibility modes, gradients included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from closeness import all_close
from duotune import attach
from duotune.backbones.glip import GlipBackbone
from duotune.methods.detection import DetectionBatch

sys.path.insert(0, str(Path(__file__).parent))
from sdpt_transcription import detector, fusion  # noqa: E402

CLASSES = (["cat", "red square", "dog"], ["boat"])
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . cat dog red square boat".split()
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import BertTokenizer

    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=True)


def make_backbone(tokenizer, dtype, **sizes):
    from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor

    torch.manual_seed(0)
    config = GlipConfig.tiny(num_fusion_layers=3, **sizes)
    model = GlipForObjectDetection(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name and "bias0" not in name:
                parameter.normal_(0, 0.1)
            elif parameter.dim() > 1 and "embeddings" not in name:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    return GlipBackbone("tiny", model.to(dtype), GlipProcessor.from_config(config, tokenizer))


@pytest.fixture(scope="module")
def backbones(tokenizer):
    return {dtype: make_backbone(tokenizer, dtype) for dtype in TOLERANCE}


def attached(backbone, **settings):
    model = attach(backbone, "sdpt", CLASSES[0], num_prototype_tokens=4, **settings)
    model.method.to(backbone.model.dtype)
    return model


def inputs(backbone, dtype):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 3, 64, 96, generator=generator, dtype=torch.float64).to(dtype)
    captions = [backbone.caption(names) for names in CLASSES]
    return pixels, captions


def ours(model, pixels, captions):
    raw = model.method(model.backbone, DetectionBatch(pixels, captions=captions)).raw
    return raw.logits, raw.box_deltas, raw.centerness


def theirs(model, pixels, captions, prototypes):
    backbone = model.backbone
    text = backbone.processor.tokenize([c.text for c in captions], padding="max_length")
    assert text["input_ids"].shape[1] == backbone.max_text_tokens > max(c.length for c in captions)
    visible = model.method.config.visible
    return detector(backbone.model, pixels, text["input_ids"], text["attention_mask"], prototypes, visible)


def compared(results, captions):
    """What anything reads: logits at valid tokens, deltas, centerness."""
    logits, deltas, centerness = results
    return [*(row[:, : c.length] for row, c in zip(logits, captions)), deltas, centerness]


@pytest.mark.parametrize("layers", [None, [0, 2]], ids=["all_layers", "some_layers"])
@pytest.mark.parametrize("visible", ["both", "text_queries"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_gradients(backbones, dtype, visible, layers):
    backbone = backbones[dtype]
    model = attached(backbone, visible=visible, layers=layers)
    pixels, captions = inputs(backbone, dtype)
    parameter = model.method.prototypes.tokens
    own = compared(ours(model, pixels, captions), captions)
    plain = {layer: parameter[i][None] for i, layer in enumerate(layers or range(3))}
    expected = compared(theirs(model, pixels, captions, plain), captions)
    for a, b in zip(own, expected):
        assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()
    if dtype == torch.float32:
        return  # gradients of the whole flip with the signs and cells of ReLU and deformable sampling; see below
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(b.shape, generator=generator, dtype=torch.float64).to(dtype) for b in expected]
    total = lambda parts: sum((w * p).sum() for w, p in zip(weights, parts))
    (gradient,) = torch.autograd.grad(total(own), parameter)
    (wanted,) = torch.autograd.grad(total(expected), parameter)
    assert wanted.flatten(1).norm(dim=1).min() > 0.01
    assert wanted.abs().amax(2).min() > 1e-4, "every token of every layer matters"
    assert (gradient - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


@pytest.mark.parametrize("visible", ["both", "text_queries"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_gradients_of_a_fusion_layer(backbones, dtype, visible):
    """The smooth part alone, where both precisions can be compared: gradients of image, text and tokens."""
    backbone = backbones[dtype]
    model = attached(backbone, visible=visible)
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    visual, text = draw(2, 50, 32).requires_grad_(), draw(2, 9, 32).requires_grad_()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 4:] = 0
    block, parameter = backbone.model.model.tower[1].fusion, model.method.prototypes.tokens
    own = block.attn(visual, text, mask, model.method.tokens(1, visual, text))
    expected = fusion(block, visual, text, mask, parameter[1][None], visible)
    cotangents = [draw(*part.shape) for part in expected]
    results = []
    for parts in (own, expected):
        total = sum((w * p).sum() for w, p in zip(cotangents, parts))
        results.append([*parts, *torch.autograd.grad(total, [parameter, visual, text])])
    assert results[1][2][1].abs().amax(1).min() > 1e-3, "every token matters"
    for a, b in zip(*results):
        assert (a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()


@pytest.mark.parametrize("visible", ["both", "text_queries"])
def test_the_prototypes_matter(backbones, visible):
    """A guard of the test above: without tokens, or seen by the wrong queries, the numbers are others."""
    backbone = backbones[torch.float64]
    model = attached(backbone, visible=visible)
    pixels, captions = inputs(backbone, torch.float64)
    with torch.no_grad():
        own = compared(ours(model, pixels, captions), captions)
        nothing = compared(theirs(model, pixels, captions, {}), captions)
        model.method.config.visible = "both" if visible == "text_queries" else "text_queries"
        plain = {i: p[None] for i, p in enumerate(model.method.prototypes.tokens)}
        other = compared(theirs(model, pixels, captions, plain), captions)
    for different in (nothing, other):
        assert all((a - b).abs().max() > 1e-4 * b.abs().max() for a, b in zip(own, different))


def test_hidden_text_tokens_of_the_authors_code_act_on_nothing(backbones):
    """Why `text_queries` makes no text-side tokens at all: their mask takes every effect from them."""
    backbone = backbones[torch.float64]
    model = attached(backbone, visible="text_queries")
    assert not list(model.method.to_text.children())
    pixels, captions = inputs(backbone, torch.float64)
    import sdpt_transcription as plain

    prototypes = {i: p[None].detach() for i, p in enumerate(model.method.prototypes.tokens)}
    with torch.no_grad():
        before = theirs(model, pixels, captions, prototypes)
        kept = plain.appended_row

        def noise_on_the_text_side(rows, projection):
            row = kept(rows, projection)
            text_side = {id(backbone.fusion_projections(layer)[1]) for layer in range(3)}
            return torch.full_like(row, 7.0) if id(projection) in text_side else row

        plain.appended_row = noise_on_the_text_side
        try:
            after = theirs(model, pixels, captions, prototypes)
        finally:
            plain.appended_row = kept
    assert all_close(compared(after, captions), compared(before, captions))


def test_in_a_wide_space_the_prototype_itself_is_the_query_and_the_key(tokenizer):
    """Where both modalities can say everything (widths at least e), both projections give back P exactly."""
    backbone = make_backbone(tokenizer, torch.float64, fusion_dim=32, fusion_heads=4)
    model = attached(backbone)
    for layer in range(3):
        prototypes = model.method.prototypes(layer)
        for inverse, projection in zip(
            (model.method.to_visual[str(layer)], model.method.to_text[str(layer)]), backbone.fusion_projections(layer)
        ):
            torch.testing.assert_close(projection(inverse(prototypes)), prototypes, rtol=1e-8, atol=1e-8)
