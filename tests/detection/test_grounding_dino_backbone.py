"""Grounding DINO's ports against transformers' own forward pass, and what is chosen where that says nothing."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_grounding_dino import KINDS, equal_to_transformers, make_model, make_tokenizer, write_folder

from closeness import close
from duotune import attach, load_backbone
from duotune.backbones import BACKBONES, adapter_of
from duotune.backbones.base import REMEMBERED_TEXTS, CaptionFeatures, Detector, DetectorOutput, Port
from duotune.backbones.grounding_dino import GroundingDinoBackbone
from duotune.errors import ClassNamesError, ConfigError, DataError, PortError
from duotune.models.grounding_dino import GroundingDinoOutput, Pictures, sentence_starts
from duotune.models.grounding_dino.image import _swin_block, swin_features
from duotune.models.grounding_dino.text import sentence_mask, sentence_positions

NAMES = ["cat", "red square", "hair drier", "house boats"]
CAPTIONS = (NAMES, ["dog"])
SIZES = torch.tensor([[70, 60], [50, 93]])
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def backbone(tokenizer):
    """Of the kind that has more to it; tests must not change it."""
    return GroundingDinoBackbone("tiny", make_model("mm_grounding_dino"), tokenizer)


@pytest.fixture
def one(tokenizer):
    """A backbone of the test's own."""
    return GroundingDinoBackbone("tiny", make_model(), tokenizer)


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


def batch(dtype=torch.float32):
    """Two pictures of different sizes, padded, and the mask that transformers wants."""
    pixels = torch.randn(2, 3, 70, 93, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    mask = torch.zeros(2, 70, 93, dtype=torch.long)
    for i, (height, width) in enumerate(SIZES.tolist()):
        mask[i, :height, :width] = 1
    return pixels * mask[:, None], mask


def whole(backbone, pixels, texts, mask=None, **padding):
    ids = backbone.tokenizer(list(texts), return_tensors="pt", **(padding or {"padding": True}))
    return backbone.model(pixels, **ids, pixel_mask=mask)


def parts(backbone, pixels, captions, sizes=None):
    text = backbone.encode_captions(captions)
    return backbone.read(*backbone.fuse(backbone.encode_image(pixels, image_sizes=sizes), text))


# ------------------------------------------------------------------ equal to transformers


@equal_to_transformers
@pytest.mark.parametrize("padding", [{"padding": True}, {"padding": "max_length", "max_length": 32}], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padded_pictures_and_captions_of_different_lengths(default_dtype, tokenizer, kind, dtype, padding):
    default_dtype(dtype)  # transformers writes its logits into a tensor of the default precision
    b = GroundingDinoBackbone("tiny", make_model(kind).to(dtype), tokenizer)
    (pixels, mask), captions = batch(dtype), [b.caption(names) for names in CAPTIONS]
    expected = whole(b, pixels, [c.text for c in captions], mask, **padding)
    maps, text = b.fuse(b.encode_image(pixels, image_sizes=SIZES), b.encode_captions(captions))
    out = b.read(maps, text)
    visual = torch.cat([m.flatten(2).transpose(1, 2) for m in maps[:-1]], 1)
    pairs = [(visual, expected.encoder_last_hidden_state_vision), (out.raw.boxes, expected.pred_boxes)]
    for i, caption in enumerate(captions):
        valid = slice(caption.length)
        pairs.append((text.hidden[i, valid], expected.encoder_last_hidden_state_text[i, valid]))
        pairs.append((out.logits[i, :, valid], expected.logits[i, :, valid]))
    for own, other in pairs:
        assert own.dtype == dtype and (own - other).abs().max() <= TOLERANCE[dtype] * other.abs().max()
    assert out.text_mask.sum(1).tolist() == [c.length for c in captions] and out.logits.shape[2] == captions[0].length
    assert expected.pred_boxes.std(1).min() > 0.05, "the boxes differ, so that their order is seen"


@equal_to_transformers
@torch.no_grad()
def test_pictures_without_padding_need_no_sizes(backbone):
    pixels, caption = batch()[0], backbone.caption(NAMES)
    expected = whole(backbone, pixels, [caption.text] * 2)
    out = parts(backbone, pixels, [caption] * 2)
    assert (out.logits - expected.logits[:, :, : caption.length]).abs().max() <= 1e-5 * out.logits.abs().max()
    torch.testing.assert_close(out.raw.boxes, expected.pred_boxes, rtol=1e-5, atol=1e-6)
    run = backbone.run(backbone.model, pixels, [caption] * 2)
    assert close(run.logits, out.logits)


@equal_to_transformers
@pytest.mark.parametrize(
    "kind, settings",
    [
        (KINDS[0], {"decoder_bbox_embed_share": False}),
        (KINDS[1], {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}),
        (KINDS[0], {"position_embedding_type": "learned"}),
    ],
    ids=str,
)
@torch.no_grad()
def test_other_forms_of_the_model(tokenizer, kind, settings):
    b = GroundingDinoBackbone("tiny", make_model(kind, **settings), tokenizer)
    caption, pixels = b.caption(NAMES), batch()[0]
    expected = whole(b, pixels, [caption.text] * 2)
    out = parts(b, pixels, [caption] * 2)
    torch.testing.assert_close(out.raw.boxes, expected.pred_boxes, rtol=1e-5, atol=1e-6)
    assert (out.logits - expected.logits[:, :, : caption.length]).abs().max() <= 1e-5 * out.logits.abs().max()


@equal_to_transformers
def test_another_image_tower(tokenizer):
    """A ResNet has no windows: vpt is refused, the rest works; its batch norms are frozen by transformers."""
    from transformers import ResNetConfig

    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic", out_indices=[2, 3, 4]
    )
    b = GroundingDinoBackbone("resnet", make_model(backbone_config=config), tokenizer)
    assert b.ports == Detector.ports - {Port.VISION_WINDOWS}
    pixels, caption = batch()[0], b.caption(NAMES)
    with torch.no_grad():
        expected = whole(b, pixels, [caption.text] * 2)
        torch.testing.assert_close(parts(b, pixels, [caption] * 2).raw.boxes, expected.pred_boxes, rtol=1e-5, atol=1e-6)
    attach(b, "sdpt", NAMES)(pixels)["logits"].sum().backward()
    with pytest.raises(PortError, match="vpt needs vision windows; resnet offers .*fusion layers"):
        attach(b, "vpt", NAMES)
    with pytest.raises(PortError, match="a resnet, which has no windows; try sdpt"):
        b.encode_image(pixels, lambda *a: None)


# ------------------------------------------------------------------ text


TEXTS = ["cat. hair drier. dog.", "cat", "a cat in a red hat", "a cat? dog. red", ".", "cat.. dog?", "red square."]


@equal_to_transformers
@pytest.mark.parametrize("text", TEXTS)
def test_sentences_are_those_of_transformers(tokenizer, text):
    from transformers.models.grounding_dino import modeling_grounding_dino as theirs

    ids = tokenizer([text], return_tensors="pt")["input_ids"]
    mask, positions = theirs.generate_masks_with_special_tokens_and_transfer_map(
        ids, torch.tensor(theirs.SPECIAL_TOKENS)
    )
    starts = sentence_starts(ids[0])[None]
    assert torch.equal(sentence_mask(starts), mask) and torch.equal(sentence_positions(starts), positions)


def test_the_positions_of_the_official_code(tokenizer):
    """By hand, since transformers has had them wrong: a sentence's period counts on, and [CLS] and [SEP] are alone."""
    ids = torch.tensor(tokenizer("cat. hair drier.")["input_ids"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "cat", ".", "hair", "dr", "##ier", ".", "[SEP]"]
    starts = sentence_starts(ids)
    assert starts.tolist() == [0, 1, 1, 3, 3, 3, 3, 7]
    assert sentence_positions(starts[None])[0].tolist() == [0, 0, 1, 0, 1, 2, 3, 0]


def test_captions_and_positive_maps(backbone):
    caption = backbone.caption(["cat", "Hair_Drier", "st. house"])
    assert caption.text == "cat. Hair Drier. st. house."
    words = backbone.tokenizer.convert_ids_to_tokens(backbone.tokenizer(caption.text)["input_ids"])
    read = [[words[t] for t in tokens] for tokens in caption.tokens]
    assert read == [["cat"], ["hair", "dr", "##ier"], ["[UNK]", ".", "house"]]
    rows = caption.positive_map([1, 0])
    assert rows.shape == (2, len(words)) and rows.sum(1).tolist() == [3, 1] and rows[0, 3:6].all()
    with pytest.raises(ClassNamesError, match="takes .* tokens, the model reads 32"):
        backbone.caption([f"{a} {b} {c}" for a in ("cat", "dog") for b in ("red", "in") for c in ("cell", "a")])
    assert len(backbone.captions([f"{a} {b}" for a in ("cat", "dog", "red") for b in ("in", "a", "on", "cell")])) == 2


def test_captions_are_read_once_and_batches_do_not_matter(one):
    captions = [one.caption(NAMES), one.caption(["dog"]), one.caption(NAMES)]
    counted = []
    one.model.model.text_backbone.register_forward_hook(lambda *_: counted.append(1))
    together = one.encode_captions(captions)
    assert together.mask.sum(1).tolist() == [c.length for c in captions] and len(counted) == 2
    alone = one.encode_captions(captions[1:2])
    assert len(counted) == 2 and torch.equal(alone.hidden[0], together.hidden[1, : captions[1].length])
    assert torch.equal(alone.starts[0], together.starts[1, : captions[1].length])
    one.double()
    assert one.encode_captions(captions[:1]).hidden.dtype == torch.float64 and len(counted) == 3
    for i in range(REMEMBERED_TEXTS + 3):  # the oldest make room
        one._encode(f"cat {i}")
    assert len(one._texts) == REMEMBERED_TEXTS and "cat 0" not in one._texts


def test_remembered_features_serve_where_gradients_are_wanted(one):
    with torch.inference_mode():
        one.encode_captions([one.caption(NAMES)])
    text = one.encode_captions([one.caption(NAMES)] * 2)
    shift = torch.zeros_like(text.hidden, requires_grad=True)
    maps = one.encode_image(batch()[0], image_sizes=SIZES)
    tuned = CaptionFeatures(text.hidden + shift, text.mask, text.starts)
    one.read(*one.fuse(maps, tuned)).logits.sum().backward()
    assert shift.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="features of captions need `starts`"):
        one.fuse(maps, CaptionFeatures(text.hidden, text.mask))


# ------------------------------------------------------------------ image


@torch.no_grad()
def test_blocks_run_one_by_one_are_the_swin(backbone):
    pixels = batch()[0]
    swin = backbone.model.model.backbone.conv_encoder.model
    asked = []
    maps = swin_features(swin, pixels, lambda stage, block, hidden: asked.append((stage, block, tuple(hidden.shape))))
    for own, other in zip(maps, swin(pixels).feature_maps, strict=True):
        assert close(own, other)
    assert [a[:2] for a in asked] == [(0, 0), (1, 0), (1, 1), (2, 0), (3, 0)]
    assert [a[2] for a in asked][:2] == [(2, 18, 24, 8), (2, 9, 12, 16)]
    assert backbone.block_widths == ((8,), (16, 16), (32,), (64,))


@pytest.mark.parametrize("block", [0, 1], ids=["plain", "shifted"])
def test_tokens_in_windows_against_a_loop(one, block):
    """Window by window: its rows and the tokens are keys and values, its rows alone are queries."""
    layer = one.model.double().model.backbone.conv_encoder.model.swin.encoder.layers[1].blocks[block]
    assert layer.shift_size == (2 if block else 0) and layer.window_size == 4
    draw = torch.Generator().manual_seed(6)
    hidden = torch.randn(2, 7 * 10, 16, generator=draw, dtype=torch.float64)
    tokens = torch.randn(2, 3, 16, generator=draw, dtype=torch.float64)
    out = _swin_block(layer, hidden, (7, 10), tokens)

    attention, shift, window = layer.attention, layer.shift_size, 4
    padded = torch.zeros(2, 8, 12, 16, dtype=torch.float64)
    padded[:, :7, :10] = layer.layernorm_before(hidden).view(2, 7, 10, 16)
    extra = layer.layernorm_before(tokens)
    updated = torch.zeros_like(padded)
    region = lambda at, size: 0 if not shift or at < size - window else 1 if at < size - shift else 2
    for image in range(2):
        for top in range(0, 8, window):
            for left in range(0, 12, window):
                # cells of the shifted picture, where they come from, and which side of the seam they are on
                cells = [(top + i, left + j) for i in range(window) for j in range(window)]
                rows = torch.stack([padded[image, (y + shift) % 8, (x + shift) % 12] for y, x in cells])
                sides = [(region(y, 8), region(x, 12)) for y, x in cells]
                keys = torch.cat([attention.k_proj(rows), attention.k_proj(extra[image])])
                values = torch.cat([attention.v_proj(rows), attention.v_proj(extra[image])])
                queries = attention.q_proj(rows)
                table = attention.relative_position_bias.relative_position_bias_table
                for q, (y, x) in enumerate(cells):
                    heads = []
                    for head in range(attention.num_attention_heads):
                        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
                        scores = keys[:, part] @ queries[q, part] / attention.head_dim**0.5
                        bias = [table[(y - v + 3) * 7 + (x - u + 3), head] for v, u in cells]
                        bias = [b - 100 * (sides[q] != sides[k]) for k, b in enumerate(bias)] + [torch.zeros(())] * 3
                        heads.append((scores + torch.stack([b.double() for b in bias])).softmax(0) @ values[:, part])
                    updated[image, (y + shift) % 8, (x + shift) % 12] = attention.o_proj(torch.cat(heads))
    expected = hidden + updated[:, :7, :10].reshape(2, 70, 16)
    expected = expected + layer.mlp(layer.layernorm_after(expected))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_pixels_are_those_of_transformers(pictures, tmp_path):
    from transformers import GroundingDinoImageProcessorPil

    processor = GroundingDinoImageProcessorPil(
        size={"shortest_edge": 64, "longest_edge": 96}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    )
    processor.save_pretrained(tmp_path)
    own = Pictures.from_pretrained(tmp_path)
    assert own == Pictures(64, 96, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    expected = processor(pictures, return_tensors="pt")
    rows = [own.normalize(own.resize(picture)) for picture in pictures]
    torch.testing.assert_close(own.pad(rows), expected["pixel_values"], rtol=1e-5, atol=1e-5)
    assert [[*row.shape[1:]] for row in rows] == [[m.any(1).sum(), m.any(0).sum()] for m in expected["pixel_mask"]]
    with pytest.raises(DataError, match="resizes by"):
        GroundingDinoImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(tmp_path)
        Pictures.from_pretrained(tmp_path)


def test_sizes_that_do_not_fit(backbone):
    for sizes in ([[70, 94], [50, 93]], [[70, 60]], [[0, 60], [50, 93]]):
        with pytest.raises(DataError, match=r"within \[70, 93\] per picture, got"):
            backbone.encode_image(batch()[0], image_sizes=torch.tensor(sizes))
    with pytest.raises(DataError, match="16 x 96 pixels give 35 positions, the model chooses 40; use larger ones"):
        b = GroundingDinoBackbone("tiny", make_model(num_queries=40), backbone.tokenizer)
        parts(b, torch.randn(1, 3, 16, 96), [b.caption(NAMES)])


# ------------------------------------------------------------------ boxes


@torch.no_grad()
def test_detections_by_hand(backbone):
    pixels, caption = batch()[0], backbone.caption(NAMES)
    out = parts(backbone, pixels, [caption] * 2, SIZES)
    originals = torch.tensor([[140, 30], [100, 186]])
    found = backbone.detections(out, [caption] * 2, SIZES, originals, max_detections=1000)
    assert backbone.max_detections == 300
    for i, (row, (height, width)) in enumerate(zip(found, originals.tolist())):
        probability = out.logits[i].sigmoid()
        expected = []
        for query in range(10):
            x, y, w, h = out.raw.boxes[i, query].tolist()
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * [width, height, width, height]
            corners = np.clip(corners, 0, [width, height, width, height])
            for label, tokens in enumerate(caption.tokens):
                expected.append((probability[query, list(tokens)].mean().item(), label, *corners))
        expected.sort(key=lambda e: -e[0])
        assert len(row["scores"]) == len(expected) == 40
        np.testing.assert_allclose(row["scores"], [e[0] for e in expected], rtol=1e-5)
        np.testing.assert_allclose(row["boxes"], [e[2:] for e in expected], rtol=1e-4, atol=1e-3)
        assert row["labels"].tolist() == [e[1] for e in expected]
        assert row["names"] == [NAMES[label] for label in row["labels"].tolist()]
    limit = found[0]["scores"][20].item()
    few = backbone.detections(out, [caption] * 2, SIZES, score_threshold=limit)
    assert torch.equal(few[0]["scores"], found[0]["scores"][:20])
    (best, _) = backbone.detections(out, [caption] * 2, SIZES, max_detections=5)
    assert torch.equal(best["scores"], found[0]["scores"][:5])
    with pytest.raises(ConfigError, match="unknown limits .'threshold'.; known: score_threshold"):
        backbone.detections(out, [caption] * 2, SIZES, threshold=0.5)


def test_suppression_on_demand(one):
    caption = one.caption(["cat", "dog"])
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.38], [0.2, 0.2, 0.1, 0.1]]])
    logits = torch.full((1, 3, caption.length), -9.0)
    logits[0, :, caption.tokens[0][0]] = torch.tensor([1.0, 2.0, 0.0])
    logits[0, 0, caption.tokens[1][0]] = 0.5
    out = DetectorOutput(logits, None, GroundingDinoOutput(logits, boxes, torch.tensor([[100, 200, 100, 200]])))
    size = torch.tensor([[100, 200]])
    (every,) = one.detections(out, [caption], size, score_threshold=0.1)
    (kept,) = one.detections(out, [caption], size, score_threshold=0.1, nms_threshold=0.5)
    assert every["names"] == ["cat", "cat", "dog", "cat"] and kept["names"] == ["cat", "dog", "cat"]
    torch.testing.assert_close(kept["scores"], torch.tensor([2.0, 0.5, 0.0]).sigmoid())
    torch.testing.assert_close(kept["boxes"][0], torch.tensor([60.0, 31, 140, 69]))


@torch.no_grad()
def test_boxes_fit_the_picture_whether_the_model_knew_its_size_or_not(backbone):
    """Without sizes the padded batch is the picture, and boxes are still in the pixels of the real one."""
    pixels, caption = batch()[0], backbone.caption(NAMES)
    out = parts(backbone, pixels, [caption] * 2)
    (row, _) = backbone.detections(out, [caption] * 2, SIZES, max_detections=1000)
    x, y, w, h = out.raw.boxes[0].unbind(1)
    right = ((x + w / 2) * 93).clamp(0, 60)
    assert set(row["boxes"][:, 2].tolist()) <= set(right.tolist())


def test_detect_finds_boxes_in_pictures(tmp_path, pictures):
    model = attach(str(write_folder(tmp_path, short_side=64, long_side=96)), "sdpt", NAMES)
    assert model.backbone.short_side == 64 and model.backbone.long_side == 96
    together, alone = (model.detect(pictures, batch_size=size, max_detections=8) for size in (2, 1))
    for row, single, picture in zip(together, alone, pictures):
        assert len(row["boxes"]) == len(single["boxes"]) == 8
        assert (row["boxes"] >= 0).all() and (row["boxes"] <= torch.tensor(picture.size * 2)).all()
    model.set_classes([f"{a} {b}" for a in ("cat", "dog", "red") for b in ("in", "a", "on", "cell")])
    assert len(model.method.all_captions) == 2 and len(model.detect(pictures[:1], max_detections=8)[0]["names"]) == 8


# ------------------------------------------------------------------ copies, loading, precision, memory


def test_copies_are_copies(backbone):
    head, model = backbone.copy_head(), backbone.copy_model()
    trained = {name for name, p in head.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in trained} <= {"text", "bbox_embed", "class_embed"}
    assert {n for n in trained if n.startswith("bbox")} == {f"bbox_embed.0.layers.2.{n}" for n in ("weight", "bias")}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        f"model.backbone.conv_encoder.model.swin.layernorm.{n}" for n in ("weight", "bias")
    }
    text = {id(p) for p in backbone.text_encoder(model).parameters()}
    assert text and text <= {id(p) for p in model.parameters()}
    before = copy.deepcopy(backbone.model.state_dict())
    with torch.no_grad():
        for p in (*head.parameters(), *model.parameters()):
            p.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())
    assert not any(p.requires_grad for p in backbone.parameters())


def test_ports_and_sizes(backbone):
    assert isinstance(backbone, Detector) and backbone.ports == Detector.ports
    assert (backbone.num_fusion_layers, backbone.fusion_width, backbone.text_width) == (2, 64, 32)
    for layer in range(2):
        visual, text = backbone.fusion_projections(layer)
        assert visual.weight.shape == text.weight.shape == (64, 32) and visual is not text
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.train().modules())


@pytest.mark.parametrize("kind", KINDS)
def test_loading(tmp_path, tokenizer, kind):
    folder = write_folder(tmp_path / "model", kind)
    assert adapter_of(str(folder)) is BACKBONES.get("grounding_dino") is GroundingDinoBackbone
    b = load_backbone(str(folder), device="cpu")
    assert b.fingerprint() == GroundingDinoBackbone("x", make_model(kind), tokenizer).fingerprint()
    assert (b.max_text_tokens, b.caption_style) == (32, "sentences")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert Port.FUSION_LAYERS in adapter_of(str(empty)).ports  # no weights there
    with pytest.raises(DataError, match="cannot load the Grounding DINO model"):
        load_backbone(str(empty))


def test_folders_that_are_no_grounding_dino(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_folder(tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state.pop("model.level_embed")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="lacks 1 weights of a Grounding DINO .first: model.level_embed."):
        load_backbone(str(folder))
    folder = write_folder(tmp_path / "other")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["."], vocabulary["cat"] = vocabulary["cat"], vocabulary["."]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"writes \[CLS\], .* as \[101, 102, 200, 1029\]; .*bert-base-uncased"):
        load_backbone(str(folder))


def test_half_precision(one):
    one.to(torch.bfloat16)
    caption = one.caption(NAMES)
    maps, text = one.fuse(one.encode_image(batch()[0], image_sizes=SIZES), one.encode_captions([caption] * 2))
    labels = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "positive_map": caption.positive_map([0])}] * 2
    out = one.read(maps, text, labels)
    assert out.logits.dtype == torch.float32 and out.losses["loss_token"].dtype == torch.float32
    assert all(value.isfinite() for value in out.losses.values())
    assert one.read(maps, text, head=one.copy_head()).logits.dtype == torch.float32


def test_mixed_precision(one):
    model, pixels = attach(one, "sdpt", NAMES).train(), batch()[0]
    caption = one.caption(NAMES)
    labels = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "positive_map": caption.positive_map([0])}] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(pixels, labels=labels, image_sizes=SIZES)
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32 and model.method.prototypes.tokens.grad.isfinite().all()
    assert one.encode_captions([caption]).hidden.dtype == torch.float32
    exact = model(pixels, labels=labels, image_sizes=SIZES)["loss"]
    assert out["loss"].item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("method", ["sdpt", "full"])
def test_checkpointing_changes_no_gradient(one, method):
    model, pixels = attach(one, method, NAMES).eval(), batch()[0]
    parameter = model.method.prototypes.tokens if method == "sdpt" else model.method.model.model.level_embed
    gradients = []
    for one.gradient_checkpointing in (False, True):
        model.method.zero_grad()
        model(pixels, image_sizes=SIZES)["logits"].sum().backward()
        gradients.append(parameter.grad.clone())
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_pictures_are_read_in_any_mode(one):
    pixels, sizes = one.prepare([Image.new("L", (90, 60)), Image.new("RGBA", (1000, 700))])
    assert pixels.shape[:2] == (2, 3) and sizes.shape == (2, 2)
