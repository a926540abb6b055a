"""Classes that one caption cannot hold: several captions, the same boxes."""

from __future__ import annotations

import pytest
import torch

from closeness import same_boxes
from duotune import attach
from duotune.errors import ClassNamesError, ConfigError
from duotune.methods.detection import merge_captions

NAMES = ["cat", "dog", "tree", "boat", "house", "red cell", "hair drier", "square"]
LIMITS = {"score_threshold": 0.02, "max_detections": 60}


@pytest.fixture
def blind(backbone):
    """The backbone made so that what a token says depends on nothing beside it: then captions may be cut anywhere.

    Text never reads text (attention of both text towers adds nothing, positions are alike) and the image never reads
    text; the text still reads the image, and heads read both.
    """
    model = backbone.model.model
    with torch.no_grad():
        model.text.embeddings.position_embeddings.weight.zero_()
        for layer in model.text.encoder.layer:
            layer.attention.output.dense.weight.zero_()
            layer.attention.output.dense.bias.zero_()
        for block in model.tower.blocks:
            block.text.attention.output.dense.weight.zero_()
            block.text.attention.output.dense.bias.zero_()
            block.fusion.gamma_v.zero_()
    backbone._texts.clear()
    return backbone


def same(found, expected) -> None:
    """The same boxes; ties in score may stand in another order."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert same_boxes(a, b) and [NAMES[k] for k in a["labels"].tolist()] == a["names"]


@pytest.mark.parametrize("method", ["zero_shot", "sdpt", "linear_probe", "vpt", "full"])
def test_chunks_find_what_one_caption_finds(blind, pictures, method):
    whole = attach(blind, method, NAMES)
    assert len(whole.method.all_captions) == 1
    expected = whole.detect(pictures, **LIMITS)
    assert {int(label) for row in expected for label in row["labels"]} >= {0, 5, 7}, "classes of several captions"
    blind.max_text_tokens = 8
    cut = attach(blind, method, NAMES)
    cut.method.load_state_dict(whole.method.state_dict())
    assert len(cut.method.all_captions) > 2 and all(c.length <= 8 for c in cut.method.all_captions)
    assert [label for c in cut.method.all_captions for label in c.labels] == list(range(len(NAMES)))
    same(cut.detect(pictures, **LIMITS), expected)
    same(cut.detect(pictures, batch_size=2, **LIMITS), whole.detect(pictures, batch_size=2, **LIMITS))


def test_classes_that_fit_take_the_plain_way(shared_backbone, pictures):
    """With one caption `find` is what the backbone itself decodes, box by box."""
    model = attach(shared_backbone, "sdpt", NAMES)
    pixels, sizes = shared_backbone.prepare(pictures)
    originals = torch.tensor([(p.height, p.width) for p in pictures])
    with torch.no_grad():
        output = model.eval()(pixels)["output"]
    plain = shared_backbone.detections(output, [model.method.caption] * 2, sizes, originals, **LIMITS)
    for a, b in zip(model.find(pixels, image_sizes=sizes, original_sizes=originals, **LIMITS), plain, strict=True):
        assert same_boxes(a, b) and a["names"] == [NAMES[label] for label in a["labels"]]


def test_a_chunk_finds_what_it_finds_alone(backbone, pictures):
    """Captions with context: each chunk's boxes are those of a model of just its classes, merged by score."""
    backbone.max_text_tokens = 10
    model = attach(backbone, "zero_shot", NAMES)
    chunks = model.method.all_captions
    alone = []
    for caption in chunks:
        names = [NAMES[label] for label in caption.labels]
        alone.append(attach(backbone, "zero_shot", names).detect(pictures, **LIMITS))
    for i, found in enumerate(model.detect(pictures, **LIMITS)):
        rows = [
            (float(score), names[k], box)
            for caption, part in zip(chunks, alone)
            for names in [[NAMES[label] for label in caption.labels]]
            for score, k, box in zip(part[i]["scores"], part[i]["labels"].tolist(), part[i]["boxes"].tolist())
        ]
        rows.sort(key=lambda row: -row[0])
        limit = LIMITS["max_detections"]
        assert len(rows) > limit and len(found["scores"]) >= limit
        kept = [row for row in rows if row[0] >= rows[limit - 1][0]]
        assert sorted(kept) == sorted(zip(found["scores"].tolist(), found["names"], found["boxes"].tolist()))


def test_the_image_tower_runs_once_for_all_captions(backbone, pictures, monkeypatch):
    backbone.max_text_tokens = 8
    model, seen = attach(backbone, "sdpt", NAMES), []
    original = backbone.model.model.encode_image
    monkeypatch.setattr(backbone.model.model, "encode_image", lambda *a: seen.append(1) or original(*a))
    model.detect(pictures)
    assert len(seen) == len(pictures) and len(model.method.all_captions) > 2


def test_ties_with_the_last_stay():
    class Cap:
        labels, names = (3, 1), ("a", "b")

    class Other:
        labels, names = (0,), ("c",)

    row = lambda scores, labels: {
        "boxes": torch.tensor([[s, 0.0, 1, 1] for s in scores]), "scores": torch.tensor(scores),
        "labels": torch.tensor(labels),
    }  # fmt: skip
    found = merge_captions([row([0.9, 0.5], [1, 0]), row([0.7, 0.5], [0, 0])], [Cap, Other], "wxyz", 3)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.5, 0.5]))
    assert found["labels"].tolist() == [1, 0, 3, 0] and found["names"] == ["x", "w", "z", "w"]
    few = merge_captions([row([0.9, 0.5], [1, 0]), row([0.7, 0.5], [0, 0])], [Cap, Other], "wxyz", 2)
    assert few["names"] == ["x", "w"]


def test_several_captions_say_what_to_do(backbone, pixels, labels):
    backbone.max_text_tokens = 10
    model = attach(backbone, "sdpt", NAMES)
    with pytest.raises(ConfigError, match="the 8 classes take 3 captions; give each image one of them, or find"):
        model(pixels)
    captions = [model.method.all_captions[0]] * 2
    label = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "positive_map": captions[0].positive_map([0])}] * 2
    assert torch.isfinite(model(pixels, captions=captions, labels=label)["loss"])
    with pytest.raises(ClassNamesError, match="class 'hair drier' alone takes 3 tokens"):
        backbone.max_text_tokens = 4
        attach(backbone, "sdpt", NAMES)


def test_a_class_without_a_token_is_told(shared_backbone):
    with pytest.raises(ClassNamesError, match="no token of a caption stands for '\\\\u200b'; rename it"):
        attach(shared_backbone, "sdpt", ["cat", "\u200b"])


def test_templates_go_into_every_caption(backbone):
    backbone.max_text_tokens = 12
    model = attach(backbone, "zero_shot", NAMES, "a {} in a smear")
    assert len(model.method.all_captions) > 1
    for caption in model.method.all_captions:
        assert caption.text == ". ".join(f"a {NAMES[label]} in a smear" for label in caption.labels)
