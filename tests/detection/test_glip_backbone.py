"""GLIP's ports against the model called as a whole."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from closeness import close, same_boxes
from duotune import load_backbone
from duotune.backbones import BACKBONES, adapter_of
from duotune.backbones.base import REMEMBERED_TEXTS, CaptionFeatures, Detector, Port
from duotune.backbones.glip import glip_labels
from duotune.errors import ClassNamesError, ConfigError, DataError

NAMES = ["cat", "red square", "hair drier", "house boats"]
LIMITS = {"score_threshold": 0.01, "max_detections": 20}


def whole(backbone, pixels, names, labels=None):
    ids = backbone.processor.tokenize([backbone.caption(names).text] * len(pixels))
    return backbone.model(pixels, **ids, labels=labels)


def test_ports_and_sizes(shared_backbone):
    b = shared_backbone
    assert isinstance(b, Detector) and {Port.FUSION_LAYERS, Port.DETECT_HEAD} < b.ports
    assert (b.num_fusion_layers, b.fusion_width, b.visual_width, b.text_width) == (3, 64, 32, 32)
    assert b.block_widths == ((16,), (32, 32), (64, 64), (128,))
    for layer in range(3):
        visual, text = b.fusion_projections(layer)
        assert visual.weight.shape == (64, 32) and text.weight.shape == (64, 32) and visual is not text
    assert not any(p.requires_grad for p in b.parameters()) and not any(m.training for m in b.train().modules())


def test_the_ports_in_sequence_are_the_model(shared_backbone, pixels, labels):
    b, caption = shared_backbone, shared_backbone.caption(NAMES)
    with torch.no_grad():
        text = b.encode_captions([caption] * 2)
        out = b.read(*b.fuse(b.encode_image(pixels), text), labels)
        expected = whole(b, pixels, NAMES, [glip_labels(label) for label in labels])
    for name in ("logits", "box_deltas", "centerness"):
        torch.testing.assert_close(out.raw[name], expected[name], rtol=1e-5, atol=1e-5)
    assert out.logits is out.raw.logits and out.losses.keys() == expected.losses.keys()
    for name, value in expected.losses.items():
        torch.testing.assert_close(out.losses[name], value, rtol=1e-5, atol=1e-6)
    run = b.run(b.model, pixels, [caption] * 2, labels)
    assert close(run.logits, expected.logits) and close(run.losses["loss_box"], expected.losses["loss_box"])


def test_captions_are_read_once_and_batches_do_not_matter(backbone):
    captions = [backbone.caption(NAMES), backbone.caption(["dog"]), backbone.caption(NAMES)]
    backbone._texts.clear()
    counted = []
    backbone.model.model.text.register_forward_hook(lambda *_: counted.append(1))
    together = backbone.encode_captions(captions)
    assert together.mask.sum(1).tolist() == [c.length for c in captions] and len(counted) == 2
    alone = backbone.encode_captions(captions[1:2])
    assert len(counted) == 2 and alone.hidden.shape[1] == captions[1].length
    assert torch.equal(alone.hidden[0], together.hidden[1, : captions[1].length])
    backbone.double()
    assert backbone.encode_captions(captions[:1]).hidden.dtype == torch.float64 and len(counted) == 3
    for i in range(REMEMBERED_TEXTS + 3):  # the oldest make room
        backbone._encode(f"cat {i}")
    assert len(backbone._texts) == REMEMBERED_TEXTS
    assert "cat 0" not in backbone._texts and f"cat {REMEMBERED_TEXTS + 2}" in backbone._texts


def test_remembered_features_serve_where_gradients_are_wanted(backbone, pixels):
    with torch.inference_mode():
        backbone.encode_captions([backbone.caption(NAMES)])
    text = backbone.encode_captions([backbone.caption(NAMES)] * 2)
    shift = torch.zeros_like(text.hidden, requires_grad=True)
    maps = backbone.encode_image(pixels)
    out = backbone.read(*backbone.fuse(maps, CaptionFeatures(text.hidden + shift, text.mask)))
    out.logits.sum().backward()
    assert shift.grad.abs().sum() > 0


def test_an_image_does_not_depend_on_captions_beside_it(shared_backbone, pixels):
    b = shared_backbone
    long, short = b.caption(NAMES), b.caption(["dog"])
    with torch.no_grad():
        maps = b.encode_image(pixels)
        both = b.read(*b.fuse(maps, b.encode_captions([short, long])))
        single = b.read(*b.fuse([m[:1] for m in maps], b.encode_captions([short])))
    torch.testing.assert_close(both.logits[:1, :, : short.length], single.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.raw.box_deltas[:1], single.raw.box_deltas, rtol=1e-5, atol=1e-5)


def test_boxes_lose_one_original_pixel_and_get_it_back():
    label = {"boxes": torch.tensor([[10.0, 20, 30, 60], [5, 5, 5.5, 5.5]]), "positive_map": torch.eye(2)}
    assert glip_labels(label)["boxes"].tolist() == [[10, 20, 29, 59], [5, 5, 5, 5]]
    scaled = glip_labels({**label, "scale": torch.tensor([2.0, 0.5])})
    assert scaled["boxes"].tolist() == [[10, 20, 28, 59.5], [5, 5, 5, 5]]


def test_detections_are_those_of_the_processor_with_exclusive_corners(shared_backbone, pictures):
    b, caption = shared_backbone, shared_backbone.caption(NAMES)
    pixels, sizes = b.prepare(pictures)
    assert sizes.tolist() == [[64, 85], [85, 64]] and pixels.shape == (2, 3, 96, 96)
    originals = torch.tensor([[60, 80], [120, 90]])
    with torch.no_grad():
        out = b.read(*b.fuse(b.encode_image(pixels), b.encode_captions([caption] * 2)))
    found = b.detections(out, [caption] * 2, sizes, originals, **LIMITS)
    plain = b.processor.post_process_object_detection(out.raw, caption, sizes, originals, **LIMITS)
    for row, expected, (height, width) in zip(found, plain, originals.tolist()):
        assert len(row["boxes"]) == len(expected["boxes"]) > 0
        assert row["names"] == [NAMES[label] for label in row["labels"]]
        corners = torch.minimum(expected["boxes"][:, 2:] + 1, torch.tensor([width, height]))
        assert same_boxes(row, {**expected, "boxes": torch.cat([expected["boxes"][:, :2], corners], dim=1)})
        assert (row["boxes"] >= 0).all()
    with pytest.raises(ConfigError, match="unknown limits .'threshold'.; known: score_threshold"):
        b.detections(out, [caption] * 2, sizes, threshold=0.5)


def test_copies_are_copies(backbone):
    head, model = backbone.copy_head(), backbone.copy_model()
    trained = {name for name, p in head.named_parameters() if p.requires_grad}
    frozen = {name for name, _ in head.named_parameters()} - trained
    assert all(name.startswith(("cls_logits", "scales")) for name in frozen) and len(frozen) == 7
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "head.cls_logits.weight",
        "head.cls_logits.bias",
    }
    before = copy.deepcopy(backbone.model.state_dict())
    with torch.no_grad():
        for p in (*head.parameters(), *model.parameters()):
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_ports_are_known_before_weights_are_read(glip_folder, tmp_path):
    assert adapter_of(str(glip_folder)) is BACKBONES.get("glip")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "glip"}))
    assert Port.FUSION_LAYERS in adapter_of(str(tmp_path)).ports  # no weights there
    for kind in BACKBONES:
        assert BACKBONES.get(kind).ports and callable(BACKBONES.get(kind).load)


def test_folders_that_are_no_glip(glip_folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((glip_folder / "config.json").read_text())
    with pytest.raises(DataError, match="cannot load the GLIP model"):
        load_backbone(str(broken))
    from safetensors.torch import load_file, save_file

    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((glip_folder / name).read_bytes())
    state = load_file(glip_folder / "model.safetensors")
    state.pop("head.bias_lang")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lacks 1 weights of a GLIP .first: head.bias_lang."):
        load_backbone(str(broken))


def test_captions_that_do_not_fit(shared_backbone):
    with pytest.raises(ClassNamesError, match="takes .* tokens, the model reads 32"):
        shared_backbone.caption([f"{a} {b} {c}" for a in ("cat", "dog") for b in ("red", "in") for c in ("cell", "a")])


def test_half_precision_reads_in_float32(backbone, pixels):
    backbone.to(torch.bfloat16)
    text = backbone.encode_captions([backbone.caption(NAMES)] * 2)
    maps = backbone.encode_image(pixels)
    assert isinstance(backbone.model.head, nn.Module)
    assert backbone.read(*backbone.fuse(maps, text)).logits.dtype == torch.float32
    assert backbone.read(*backbone.fuse(maps, text), head=backbone.copy_head()).logits.dtype == torch.float32
