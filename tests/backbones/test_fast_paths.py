"""Every shortcut of the towers against its plain twin, gradients included."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from duotune.backbones import frozen, layers
from duotune.backbones.base import TextEnds, TextSequence
from duotune.backbones.clip import ClipBackbone


@pytest.fixture(scope="module")
def double(tiny_clip) -> ClipBackbone:
    """The tiny CLIP in float64, where equal means 1e-10."""
    model = copy.deepcopy(tiny_clip.model).double()
    return ClipBackbone("double", model, tiny_clip.tokenizer)


@pytest.fixture
def plain_blocks(monkeypatch):
    """Call it to leave the blocks of `frozen` out from then on."""
    return lambda: monkeypatch.setattr(layers, "single_step", lambda layer, x: False)


def randn(*size: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    return torch.randn(*size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return a.shape == b.shape and (a - b).norm().item() <= tolerance * b.norm().item()


def with_gradients(function, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of a fixed random projection of it with respect to each input."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad((out * randn(*out.shape, seed=9, dtype=out.dtype)).sum(), inputs)]


def assert_close(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-10):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert b.norm() > 0
        assert close(a, b, tolerance)


def text_layer_of(backbone, i=0):
    return backbone._text.encoder.layers[i]


def vision_layer_of(backbone, i=0):
    return backbone._vision.encoder.layers[i]


def huggingface(layer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    out = layer(x, mask)
    return out[0] if isinstance(out, tuple) else out


EOS = torch.tensor([2, 5, 3, 1])


def padded_text(backbone, shared: Tensor, own: Tensor) -> Tensor:
    """The Hugging Face text tower over texts padded to the full length; row n ends at len(shared) + EOS[n]."""
    tower = backbone._text
    length = tower.embeddings.position_embedding.weight.shape[0]
    rows = torch.cat([shared.expand(len(own), -1, -1), own], dim=1)
    rows = torch.cat([rows, randn(len(own), length - rows.shape[1], rows.shape[2], seed=5)], dim=1)
    x = rows + tower.embeddings.position_embedding.weight
    mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)[None, None]
    for layer in tower.encoder.layers:
        x = huggingface(layer, x, mask)
    ends = x[torch.arange(len(own)), len(shared) + EOS]
    return backbone.model.text_projection(tower.final_layer_norm(ends))


@pytest.mark.parametrize("shared", [1, 5])
def test_text_tower_equals_full_padded_texts(double, shared):
    prefix, own = randn(shared, 48), randn(4, 6, 48, seed=1)
    encode = lambda s, o: double.encode_sequence(TextSequence(s, o, EOS))
    ours = with_gradients(encode, prefix, own)
    plain = with_gradients(lambda s, o: padded_text(double, s, o), prefix, own)
    assert_close(ours, plain)


def test_shared_beginning_equals_one_copy_per_text(double):
    prefix, own = randn(5, 48), randn(4, 6, 48, seed=1)
    apart = lambda s, o: TextSequence(s[:1], torch.cat([s[1:].expand(len(o), -1, -1), o], dim=1), EOS + 4)
    ours = with_gradients(lambda s, o: double.encode_sequence(TextSequence(s, o, EOS)), prefix, own)
    plain = with_gradients(lambda s, o: double.encode_sequence(apart(s, o)), prefix, own)
    assert_close(ours, plain)


def test_rows_after_the_end_are_never_read(double):
    own = randn(4, 9, 48, seed=1)
    clean = double.encode_sequence(TextSequence(randn(3, 48), own, EOS))
    for text, end in enumerate(EOS.tolist()):
        own[text, end + 1 :] = float("nan")
    assert close(double.encode_sequence(TextSequence(randn(3, 48), own, EOS)), clean)


def test_text_tower_computes_only_rows_up_to_each_end(double, monkeypatch):
    seen, original = [], layers.feed_forward
    monkeypatch.setattr(layers, "feed_forward", lambda layer, x: seen.append(len(x)) or original(layer, x))
    double.encode_sequence(TextSequence(randn(3, 48), randn(4, 30, 48), EOS))
    assert seen == [3 + int((EOS + 1).sum()), len(EOS)]  # the last layer: end rows alone


def test_packed_texts_lay_rows_out_and_back():
    packed = layers.PackedTexts(2, 20, EOS)
    padded = randn(4, 6, 3)
    rows = packed.unpad(padded)
    assert packed.length == 6 and len(rows) == int((EOS + 1).sum())
    again = packed.pad(rows)
    for text, end in enumerate(EOS.tolist()):
        assert torch.equal(again[text, : end + 1], padded[text, : end + 1])
        assert again[text, end + 1 :].abs().sum() == 0
        assert torch.equal(rows[packed.end_rows[text] - 2], padded[text, end])
        assert packed.positions[packed.end_rows[text] - 2] == 2 + end


def test_text_layer_last_equals_the_end_rows_of_a_full_layer(double):
    packed = layers.PackedTexts(3, 6, EOS)
    rows = randn(3 + len(packed.own), 48)
    layer = text_layer_of(double)
    last = with_gradients(lambda r: layers.text_layer(layer, r, packed, last=True), rows)
    full = with_gradients(lambda r: layers.text_layer(layer, r, packed, last=False)[packed.end_rows], rows)
    assert_close(last, full)


@pytest.mark.parametrize("limit", [1.0, 20_000.0, 60_000.0])
def test_text_in_parts_equals_text_at_once(double, monkeypatch, limit):
    prefix, own = randn(5, 48), randn(4, 6, 48, seed=1)
    encode = lambda s, o: double.encode_sequence(TextSequence(s, o, EOS))
    whole = with_gradients(encode, prefix, own)
    calls, original = [], double._encode_texts
    monkeypatch.setattr(double, "_encode_texts", lambda *a: calls.append(len(a[1])) or original(*a))
    monkeypatch.setattr(double, "max_text_bytes", limit)
    assert_close(with_gradients(encode, prefix, own), whole)
    assert len(calls) >= 4 and max(calls) < 4  # at least two parts, each of them run twice


PROMPTS = {"none": None, "shared": (5, 64), "per-image": (3, 5, 64)}


@pytest.mark.parametrize("last", [False, True], ids=["all-rows", "last"])
@pytest.mark.parametrize("prompts", PROMPTS)
def test_prompts_without_queries_equal_the_huggingface_layer(double, prompts, last):
    layer, x = vision_layer_of(double), randn(3, 17, 64)
    inputs = [x] if PROMPTS[prompts] is None else [x, randn(*PROMPTS[prompts], seed=1)]

    def plain(x, p=None):
        rows = x if p is None else torch.cat([x, p.expand(len(x), -1, -1)], dim=1)
        return huggingface(layer, rows)[:, : 1 if last else 17]

    ours = with_gradients(lambda x, p=None: layers.vision_layer(layer, x, p, last), *inputs)
    assert_close(ours, with_gradients(plain, *inputs))


@pytest.mark.parametrize("last", [False, True], ids=["all-rows", "last"])
@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("slice_bytes", [1, 40_000, 16 << 20], ids="slices-of-{}".format)
def test_single_step_blocks_equal_autograd(double, monkeypatch, plain_blocks, prompts, last, act, slice_bytes):
    from transformers.activations import ACT2FN

    layer = copy.deepcopy(vision_layer_of(double))
    layer.mlp.config = SimpleNamespace(hidden_act=act)
    layer.mlp.activation_fn = ACT2FN[act]
    monkeypatch.setattr(frozen, "SLICE_BYTES", slice_bytes)
    inputs = [randn(3, 17, 64)] + ([] if PROMPTS[prompts] is None else [randn(*PROMPTS[prompts], seed=1)])
    run = lambda x, p=None: layers.vision_layer(layer, x, p, last)
    assert layers.single_step(layer, inputs[0])
    ours = with_gradients(run, *inputs)
    with torch.no_grad():
        assert close(run(*inputs), ours[0], 1e-14)  # nothing kept, same numbers
    plain_blocks()
    assert_close(ours, with_gradients(run, *inputs))


def test_only_prompts_need_a_gradient(double, plain_blocks):
    """As in the first layer: the input is a constant, the prompts are not."""
    layer, x, p = vision_layer_of(double), randn(3, 17, 64), randn(5, 64, seed=1)
    run = lambda p: layers.vision_layer(layer, x, p, False)
    ours = with_gradients(run, p)
    plain_blocks()
    assert_close(ours, with_gradients(run, p))


def test_single_step_blocks_pass_gradcheck(double):
    layer = vision_layer_of(double)
    x, p = randn(1, 4, 64).requires_grad_(), randn(2, 64, seed=1).requires_grad_()
    small = lambda x, p: layers.vision_layer(layer, x, p, False)[..., :3]
    assert torch.autograd.gradcheck(small, (x, p), fast_mode=True)


def test_single_step_blocks_keep_little(double, plain_blocks):
    def kept(run) -> int:
        total = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.numel()) or t, lambda t: t):
            out = run()
        del out
        return sum(total)

    layer, x, p = vision_layer_of(double), randn(3, 17, 64).requires_grad_(), randn(5, 64).requires_grad_()
    run = lambda: layers.vision_layer(layer, x, p, False)
    rows, width = 3 * 17, 64
    ours = kept(run)
    # x twice, q, k and v with the prompts' rows, probabilities, fc1's output (twice the width here), statistics
    bound = rows * width * (3 + 2) + 2 * 3 * 22 * width + 3 * 2 * 17 * 22 + 4 * rows + p.numel() + 100
    assert ours <= bound
    plain_blocks()
    assert kept(run) > ours
    with torch.no_grad():
        assert kept(run) == 0


class LastLayersOnly:
    """Prompts at the layers from `first` (0-based) on; notes whether what comes in needs a gradient."""

    persistent = False

    def __init__(self, first: int, width: int):
        self.first, self.tokens = first, torch.zeros(4, width, requires_grad=True)
        self.saved: list[int] = []
        self.saved_before: int | None = None
        self.incoming: list[bool] = []

    def __call__(self, layer, hidden):
        self.incoming.append(hidden.requires_grad)
        if layer == self.first:
            self.saved_before = len(self.saved)
        return self.tokens if layer >= self.first else None


@pytest.mark.parametrize("blocks", ["single-step", "autograd"])
def test_nothing_is_kept_below_the_first_prompt(tiny_clip, plain_blocks, blocks):
    if blocks == "autograd":
        plain_blocks()
    prompts = LastLayersOnly(2, tiny_clip.vision_width)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: prompts.saved.append(t.numel()) or t, lambda t: t):
        features = tiny_clip.encode_image(pixels, prompts)
    assert prompts.saved_before == 0 and len(prompts.saved) > 0
    assert prompts.incoming == [False, False, False]
    features.sum().backward()
    assert prompts.tokens.grad.norm() > 0


def test_no_gradient_is_asked_of_an_unprompted_tower(tiny_clip):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        features = tiny_clip.encode_image(torch.randn(2, 3, 32, 32))
    assert not features.requires_grad and not saved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unprompted_towers_equal_the_model(tiny_clip, double, dtype):
    backbone = tiny_clip if dtype is torch.float32 else double
    tolerance = 1e-5 if dtype is torch.float32 else 1e-10
    pixels, texts = randn(3, 3, 32, 32, dtype=dtype), ["a photo of a cat.", "dog", "a drawing of a grey square."]
    with torch.no_grad():
        image = backbone.model.get_image_features(pixel_values=pixels)
        ids = backbone.tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt").input_ids
        text = backbone.model.get_text_features(input_ids=ids)
        image, text = (x if isinstance(x, Tensor) else x.pooler_output for x in (image, text))
        assert close(backbone.encode_image(pixels), image, tolerance)
        assert close(backbone.encode_text(texts), text, tolerance)
        assert close(backbone.encode_text(texts, batch_size=1), text, tolerance)


def test_autocast_takes_the_modules_and_stays_close(tiny_clip, monkeypatch):
    called = []
    monkeypatch.setattr(frozen.FrozenMLP, "forward", lambda *a: called.append(1))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = tiny_clip.encode_image(pixels)
    assert half.dtype == torch.bfloat16 and not called
    monkeypatch.undo()
    with torch.no_grad():
        full = tiny_clip.encode_image(pixels)
    assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.999


def test_ends_that_were_laid_out_in_inference_mode_serve_training(double):
    ends, shared, own = TextEnds(EOS.tolist()), randn(3, 48), randn(4, 6, 48, seed=1)
    with torch.inference_mode():
        first = double.encode_sequence(TextSequence(shared, own, ends))
    again = with_gradients(lambda s, o: double.encode_sequence(TextSequence(s, o, ends)), shared, own)
    assert close(again[0], first)
