"""Logits and losses are float32 whatever weights and autocast have, for every method on every backbone.

bfloat16 keeps 8 significant bits, so a number that was computed in it is exactly one of its numbers, which one of
float32 is once in 65,536 times. That tells, without looking into the code, in which precision a logit was made. What
the head makes of features is compared with the same equations in float64, from those features on.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from subjects import NAMES, inputs, labels

from closeness import same_boxes
from duotune import Progress, attach, load_backbone
from duotune.backbones import grounding_dino
from duotune.backbones.base import Detector

WAYS = {"autocast": ("float32", True), "bfloat16": ("bfloat16", False), "both": ("bfloat16", True)}
WAYS["float16"] = ("float16", False)
FLOAT32 = 2e-5
"""Of the largest logit: 32 to 64 products are summed in float32, each rounded by 6e-8, in an order of the library's."""


@pytest.fixture(scope="module")
def by_dtype(folders):
    """(folder, dtype) -> a backbone of its own, loaded once."""
    loaded = {}

    def get(folder: str, dtype: str):
        if (folder, dtype) not in loaded:
            loaded[folder, dtype] = load_backbone(str(folders[folder]), dtype=dtype, device="cpu")
        return loaded[folder, dtype]

    return get


def watch(monkeypatch, owner, name: str) -> list:
    """What every call of a function gave, the arguments first."""
    calls, original = [], getattr(owner, name)

    def call(*args, **kwargs):
        calls.append((*args, original(*args, **kwargs)))
        return calls[-1][-1]

    monkeypatch.setattr(owner, name, call)
    return calls


def unit(x: torch.Tensor) -> torch.Tensor:
    return x.double() / x.double().norm(dim=-1, keepdim=True)


def classifier_head(model, images, texts) -> torch.Tensor:
    """Logits in float64 from the features that the towers gave."""
    method, scale = model.method, model.backbone.model.logit_scale.double().exp()
    image = unit(images[-1][-1])
    if hasattr(method, "head"):
        return scale * image @ method.head.weight.double().T + method.head.bias.double()
    if texts:  # a learnt context went through the tower
        return scale * image @ unit(texts[-1][-1]).T
    text = method.template_text if hasattr(method, "template_text") else method.text
    if hasattr(method, "residual"):
        text = text.double() + method.config.scale * method.residual.double()
    return scale * image @ unit(text).T


def glip_head(head, maps, text) -> torch.Tensor:
    head = copy.deepcopy(head).double()
    flat = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1).double()
    words = unit(text)
    projected = (words / 2) @ head.dot_product_projection_text.weight.T + head.dot_product_projection_text.bias
    return flat @ projected.mT / head.log_scale.exp() + (words @ head.bias_lang + head.bias0)[:, None]


def dino_head(model, states, text) -> torch.Tensor:
    method, own = model.method, model.backbone.model
    text, queries = text.double(), states.hidden[:, -1].double()
    if hasattr(method, "head"):
        text = text @ method.head.text.weight.double().T + method.head.text.bias.double()
    head = getattr(method, "head", getattr(method, "model", own)).class_embed[-1]
    logits = queries @ text.mT
    return logits if getattr(head, "bias", None) is None else logits / queries.shape[-1] ** 0.5 + head.bias.double()


@pytest.mark.parametrize("way", WAYS)
def test_logits_and_losses_are_float32(by_dtype, case, way, monkeypatch):
    dtype, autocast = WAYS[way]
    backbone = by_dtype(case.folder, dtype)
    model = attach(backbone, case.method, NAMES).train()
    if case.method == "linear_probe" and hasattr(model.method.head, "out_features"):
        torch.nn.init.normal_(model.method.head.weight, generator=torch.Generator().manual_seed(0))
    detector = isinstance(backbone, Detector)
    if detector:
        target = grounding_dino if "dino" in case.folder else getattr(model.method, "head", None)
        target = target or getattr(model.method, "model", backbone.model).head
        calls = watch(monkeypatch, target, "decode" if "dino" in case.folder else "forward")
    else:
        images, texts = watch(monkeypatch, backbone, "encode_image"), watch(monkeypatch, backbone, "_encode_texts")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(**inputs(backbone), labels=labels(backbone), progress=Progress(0, 60))
    losses = [out["loss"], *(out.get("losses") or {}).values()]
    assert {x.dtype for x in (out["logits"], *losses)} == {torch.float32}
    assert (out["logits"].bfloat16().float() == out["logits"]).float().mean() < 0.05
    with torch.no_grad():
        if not detector:
            expected = classifier_head(model, images, texts)
        elif case.folder == "glip":
            expected = glip_head(target, *calls[-1][:2])
        else:
            expected = dino_head(model, calls[-1][-1], calls[-1][3])
        assert (out["logits"] - expected).abs().max() <= FLOAT32 * expected.abs().max()
        if not detector and case.method not in ("dpt", "zero_shot"):
            assert abs(out["loss"] - F.cross_entropy(expected, labels(backbone))) <= 1e-4 * out["loss"]
    if out["loss"].requires_grad:
        out["loss"].backward()
        assert all(p.grad.isfinite().all() for p in model.method.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_candidates_are_the_same_in_training_and_in_testing(by_dtype, dtype):
    backbone = by_dtype("clip", dtype)
    names = [
        f"{a} {b}" for a in ("cat", "dog", "bird", "boat", "tree") for b in ("one", "two", "red", "green", "house")
    ]
    pixels = torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    model = attach(backbone, "dpt", names, num_candidates=3)
    with torch.autocast("cpu", torch.bfloat16):
        learning = model.train()(pixels)["candidates"]
    with torch.no_grad():
        testing = model.eval()(pixels)["candidates"]
        kept = model(pixels, frozen_features=backbone.encode_image(pixels))["candidates"]
    assert learning.shape == (48, 3) and torch.equal(learning, testing) and torch.equal(kept, testing)


@pytest.mark.parametrize("folder", ["glip", "grounding_dino"])
def test_captions_are_read_outside_of_autocast_and_serve_inside(by_dtype, folder):
    for dtype in ("float32", "bfloat16"):
        backbone = by_dtype(folder, dtype)
        caption = backbone.caption(["cat", "house boat"])
        plain = backbone.encode_captions([caption]).hidden
        backbone._texts.clear()
        with torch.autocast("cpu", torch.float16 if dtype == "bfloat16" else torch.bfloat16):
            inside = backbone.encode_captions([caption]).hidden
        assert inside.dtype == plain.dtype == getattr(torch, dtype)
        assert len(backbone._texts) == 1 and torch.equal(backbone.encode_captions([caption]).hidden, inside)
        tolerance = 1e-6 if dtype == "float32" else 2**-7  # the same arithmetic at other addresses
        torch.testing.assert_close(inside, plain, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("folder", ["glip", "grounding_dino"])
def test_boxes_are_decoded_outside_of_autocast(by_dtype, folder, monkeypatch):
    """Products of scores and classes would be bfloat16 inside."""
    backbone = by_dtype(folder, "float32")
    model, given = attach(backbone, "zero_shot", NAMES).eval(), inputs(backbone)
    with torch.no_grad():
        output = model(**given)["output"]
    sizes, seen = torch.tensor([given["pixel_values"].shape[-2:]] * len(given["pixel_values"])), []
    original = backbone._decode
    spy = lambda *args: seen.append(torch.is_autocast_enabled("cpu")) or original(*args)
    monkeypatch.setattr(backbone, "_decode", spy)
    limits = {"score_threshold": 0.0, "max_detections": 20}
    plain = backbone.detections(output, model.method.all_captions[:1] * len(sizes), sizes, **limits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = backbone.detections(output, model.method.all_captions[:1] * len(sizes), sizes, **limits)
    assert seen == [False, False]
    assert all(same_boxes(a, b) for a, b in zip(inside, plain, strict=True)) and len(plain[0]["scores"])
