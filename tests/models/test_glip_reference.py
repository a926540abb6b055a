"""GLIP-T at full size against the official code's numbers.

Tolerances are those that two correct float32 implementations meet: forward 2e-4 of a tensor's standard deviation,
losses 1e-4 relative, gradients 2e-2 (ReLU and sampling-cell flips).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from det_init import det_image
from glip_reference import CLASS_TOKENS, error_in_stds, load_reference, padded_caption, seeded_glip_t

from closeness import same_boxes
from duotune.models.glip.conversion import official_name
from duotune.models.glip.detection import detect
from duotune.models.glip.losses import build_targets

FORWARD, LOSS, GRADIENT = 2e-4, 1e-4, 2e-2


@pytest.fixture(scope="module")
def reference():
    return load_reference()


@pytest.fixture(scope="module")
def model():
    return seeded_glip_t()


@pytest.fixture(scope="module")
def evaluated(model):
    """Every stage of a forward pass under the reference's keys, and the inputs of `detect`."""
    found = {}
    ids, mask = padded_caption()
    with torch.no_grad():
        stages = model.model.vision.swin(det_image())
        found |= {f"eval.swin.stage{i}": stage for i, stage in enumerate(stages, 2)}
        maps = model.model.vision.fpn(stages[1:])
        found |= {f"eval.fpn.p{level}": x for level, x in enumerate(maps, 3)}
        text, _ = model.model.encode_text(ids, mask, trim_text=False)
        found["eval.bert.hidden"] = text
        for index, block in enumerate(model.model.tower.blocks):
            maps, text = block.fusion(maps, text, mask)
            name = f"eval.tower.{3 * index:02}.VLFuse"
            found |= {f"{name}.p{level}": x for level, x in enumerate(maps, 3)} | {f"{name}.hidden": text}
            text = block.text(text, mask)
            found[f"eval.tower.{3 * index + 1:02}.BertEncoderLayer.hidden"] = text
            maps = block.image(maps)
            found |= {f"eval.tower.{3 * index + 2:02}.DyConv.p{level}": x for level, x in enumerate(maps, 3)}
        logits, deltas, centerness = model.head(maps, text)
    sizes = [tuple(m.shape[-2:]) for m in maps]
    cells = [h * w for h, w in sizes]
    anchors = model.anchors(sizes)
    per_level = [logits[0].split(cells), deltas[0].split(cells), centerness[0].split(cells), anchors]
    for level, (height, width) in enumerate(sizes):
        found[f"eval.head.token_logits.p{level + 3}"] = per_level[0][level][None]
        found[f"eval.head.bbox_reg.p{level + 3}"] = per_level[1][level].T.reshape(1, 4, height, width)
        found[f"eval.head.centerness.p{level + 3}"] = per_level[2][level].reshape(1, 1, height, width)
        found[f"eval.head.cls_logits.p{level + 3}"] = model.head.cls_logits(maps[level])
        found[f"anchors.p{level + 3}"] = anchors[level]
    return found, per_level


def test_every_stage_equals_the_official_code(reference, evaluated):
    found, _ = evaluated
    keys = {k for k in reference if k.startswith(("eval.", "anchors.")) and "#" not in k}
    keys -= {"eval.bert.masks", "eval.det.boxes", "eval.det.scores", "eval.det.labels"}
    assert keys == set(found)
    errors = {key: error_in_stds(reference, key, found[key]) for key in keys}
    print(f"largest forward error {max(errors.values()):.2e} ({max(errors, key=errors.get)})")
    assert {k: e for k, e in errors.items() if not e <= FORWARD} == {}


def test_detections_equal_the_official_code(reference, evaluated):
    _, per_level = evaluated
    found = detect(*per_level, CLASS_TOKENS, image_size=(224, 288)).sorted()
    order = np.argsort(-reference["eval.det.scores"], kind="stable")
    official = {name: reference[f"eval.det.{name}"][order] for name in ("boxes", "scores", "labels")}
    assert len(found.scores) == len(order) == 100
    assert same_boxes(vars(found) | {"labels": found.labels + 1}, official, scores=1e-4, pixels=2e-2)


def labels(reference):
    boxes = torch.tensor([[20.0, 30, 120, 150], [100, 60, 250, 200]])
    return {"boxes": boxes, "positive_map": torch.from_numpy(reference["train.positive_map"])}


def test_targets_equal_the_official_code(reference, evaluated):
    _, per_level = evaluated
    label = labels(reference)
    targets = build_targets(label["boxes"], label["positive_map"], per_level[3], 256, 256)
    classes = torch.tensor([1, 3, 0])[targets.matched]
    np.testing.assert_array_equal(classes, reference["train.cls_labels"])
    assert error_in_stds(reference, "train.token_labels", targets.tokens) == 0
    positive = targets.matched >= 0
    assert positive.sum() > 5
    # The official code encodes a box for background too; nothing reads those rows.
    at = torch.from_numpy(reference["train.reg_targets#at"]).long()
    sampled = positive[at // 4]
    assert sampled.sum() >= 1
    ours, theirs = targets.deltas.reshape(-1)[at], torch.from_numpy(reference["train.reg_targets"])
    torch.testing.assert_close(ours[sampled], theirs[sampled], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("trim_text", [False, True], ids=["padded", "trimmed"])
def test_losses_and_gradients_equal_the_official_code(reference, model, trim_text):
    """Dropout, drop-path and DropBlock off, as in the reference; padding of the caption makes no difference."""
    ids, mask = padded_caption()
    model.zero_grad()
    output = model(det_image(), ids, mask, labels=[labels(reference)], trim_text=trim_text)
    for ours, theirs in (("token", "dot_product_token"), ("box", "reg"), ("centerness", "centerness")):
        assert output.losses[f"loss_{ours}"].item() == pytest.approx(
            float(reference[f"train.loss.loss_{theirs}"]), rel=LOSS
        )
    assert float(reference["train.loss.loss_cls"]) == 0  # so it is not computed here
    output.loss.backward()
    gradients = {official_name(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = reference["train.grad_names"].tolist()
    # With the caption trimmed, unused position embeddings still have (zero) gradients; cls_logits has none in either.
    assert set(names) == set(gradients)
    norms = {name: gradients[name].double().norm().item() for name in names}
    largest = max(norms.values())
    for name, norm in zip(names, reference["train.grad_norms"].tolist()):
        assert norms[name] == pytest.approx(norm, rel=GRADIENT, abs=1e-5 * largest), name
    checked = [k for k in reference if k.startswith("train.grad.") and "#" not in k]
    assert len(checked) > 10
    for key in checked:
        if reference[f"{key}#std"] > 0:
            assert error_in_stds(reference, key, gradients[key.removeprefix("train.grad.")]) <= GRADIENT, key
    model.zero_grad()
