"""Grounding DINO's loss and SDPT on it against an independent transcription, gradients included."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from closeness import all_close

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from grounding_dino_transcription import PlainAttention, best_matching, output_losses  # noqa: E402
from tiny_grounding_dino import KINDS, equal_to_transformers, make_model, make_tokenizer  # noqa: E402

from duotune import attach  # noqa: E402
from duotune.backbones.grounding_dino import GroundingDinoBackbone  # noqa: E402
from duotune.methods.detection import DetectionBatch  # noqa: E402
from duotune.models.grounding_dino import LossWeights, Prediction, Target, detection_losses  # noqa: E402
from duotune.models.grounding_dino.losses import match  # noqa: E402

CLASSES = (["cat", "red square", "dog"], ["boat"])
SIZES = torch.tensor([[70, 60], [50, 93]])


@pytest.fixture(autouse=True)
def double():
    """transformers writes its logits into a tensor of the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


# ------------------------------------------------------------------ the loss

QUERIES, TOKENS = 5, 7
VALID = (7, 4, 6)
# picture -> (box, tokens of its phrase): one and several tokens, two boxes of one phrase, a picture of nothing
WANTED = [
    [([0.3, 0.4, 0.2, 0.3], {1}), ([0.7, 0.6, 0.3, 0.2], {3, 4}), ([0.32, 0.41, 0.3, 0.3], {3, 4})],
    [],
    [([0.5, 0.5, 0.9, 0.8], {1, 2, 3})],
]


def draw_outputs(count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [
        Prediction(
            2 * torch.randn(len(WANTED), QUERIES, TOKENS, generator=generator),
            torch.rand(len(WANTED), QUERIES, 4, generator=generator) * 0.6 + 0.2,
        )
        for _ in range(count)
    ]


def targets():
    found = []
    for wanted in WANTED:
        tokens = torch.zeros(len(wanted), TOKENS)
        for row, (_, positive) in zip(tokens, wanted):
            row[list(positive)] = 1
        found.append(Target(torch.tensor([box for box, _ in wanted]).reshape(-1, 4), tokens))
    return found


def text_mask():
    return (torch.arange(TOKENS)[None] < torch.tensor(VALID)[:, None]).long()


WEIGHTS = LossWeights(token_cost=1.5, box_cost=5.0, giou_cost=2.0, token=2.0, box=4.0, giou=3.0)


def plainly(output: Prediction, scale: tuple[float, float, float] = (2.0, 4.0, 3.0)) -> list[float]:
    sums = output_losses(output.logits.tolist(), output.boxes.tolist(), WANTED, VALID, (1.5, 5.0, 2.0))
    return [weight * value / 4 for weight, value in zip(scale, sums)]  # four boxes in the batch


@pytest.mark.parametrize("seed", range(3))
def test_losses_of_every_output(seed):
    first, second, last, encoder = draw_outputs(4, seed)
    ours = detection_losses([first, second, last], encoder, targets(), text_mask(), WEIGHTS)
    token, box, giou = plainly(last)
    expected = {
        "loss_token": token,
        "loss_box": box,
        "loss_giou": giou,
        "loss_auxiliary": sum(plainly(first)) + sum(plainly(second)),
        "loss_encoder": sum(plainly(encoder)),
    }
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name].item() == pytest.approx(value, rel=1e-12), name


def test_gradients_by_differences():
    (output,) = draw_outputs(1, 7)
    output.logits.requires_grad_(), output.boxes.requires_grad_()
    sum(detection_losses([output], None, targets(), text_mask(), WEIGHTS).values()).backward()
    step = 1e-6
    for tensor, places in ((output.logits, [(0, 1, 1), (0, 2, 3), (2, 4, 5), (1, 0, 2)]), (output.boxes, [(0, 0, 2)])):
        # the box of the best query, whichever that is
        places = places if tensor is output.logits else tensor.grad.abs().sum(-1).nonzero().tolist()
        for place in places:
            place = tuple(place) if len(place) == 3 else (*place, 1)
            values = []
            for sign in (1, -1):
                moved = Prediction(output.logits.detach().clone(), output.boxes.detach().clone())
                (moved.logits if tensor is output.logits else moved.boxes)[place] += sign * step
                values.append(sum(plainly(moved)))
            assert tensor.grad[place].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-8)
    assert (output.logits.grad[1, :, 4:] == 0).all() and (output.logits.grad[2, :, 6:] == 0).all(), "padding learns"


def test_nothing_in_any_picture():
    output, encoder = draw_outputs(2)
    nothing = [Target(torch.zeros(0, 4), torch.zeros(0, TOKENS))] * 3
    ours = detection_losses([output], encoder, nothing, text_mask(), WEIGHTS)
    sums = output_losses(output.logits.tolist(), output.boxes.tolist(), [[], [], []], VALID, (1.5, 5.0, 2.0))
    assert ours["loss_token"].item() == pytest.approx(2 * sums[0], rel=1e-12)  # divided by one, not by nothing
    assert ours["loss_box"].item() == ours["loss_giou"].item() == 0


def test_padded_text_and_its_logits_change_nothing():
    (output,) = draw_outputs(1)
    before = detection_losses([output], None, targets(), text_mask(), WEIGHTS)
    output.logits[1, :, 4:], output.logits[2, :, 6:] = 50.0, -50.0
    after = detection_losses([output], None, targets(), text_mask(), WEIGHTS)
    assert all_close(after, before)


def test_more_boxes_than_queries_and_what_is_no_number():
    (output,) = draw_outputs(1)
    many = Target(torch.rand(8, 4) * 0.5 + 0.2, torch.eye(8, TOKENS))
    rows, columns = match(output.logits[0], output.boxes[0], many, text_mask()[0], WEIGHTS)
    assert sorted(rows.tolist()) == list(range(QUERIES)) and len(set(columns.tolist())) == QUERIES
    logits = output.logits[0].clone()
    logits[0] = torch.nan
    rows, _ = match(logits, output.boxes[0], targets()[0], text_mask()[0], WEIGHTS)
    assert 0 not in rows.tolist() and len(rows) == 3


def test_all_matchings_are_tried():
    assert best_matching([[1, 2, 9], [1, 5, 9]]) == (1, 0) and best_matching([]) == ()


def test_pixels_become_parts_of_the_picture():
    boxes = torch.tensor([[10.0, 20, 50, 40]])
    target = Target.of(boxes, torch.tensor([[0.0, 1, 2]]), torch.tensor([80, 100]), 5)
    assert target.boxes.tolist() == [[0.3, 0.375, 0.4, 0.25]] and target.tokens.tolist() == [[0, 1, 1, 0, 0]]
    assert Target.of(boxes, torch.ones(1, 9), torch.tensor([80, 100]), 2).tokens.tolist() == [[1, 1]]


@equal_to_transformers
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_transformers_where_it_has_no_fault(tokenizer, kind):
    """One picture, the last layer: its matching, focal, L1 and GIoU losses are ours."""
    b = GroundingDinoBackbone("tiny", make_model(kind).double(), tokenizer)
    caption = b.caption(CLASSES[0])
    pixels = torch.randn(1, 3, 70, 93, generator=torch.Generator().manual_seed(3))
    boxes = torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60]])
    text = b.encode_captions([caption])
    own = b.read(
        *b.fuse(b.encode_image(pixels), text), [{"boxes": boxes, "positive_map": caption.positive_map([0, 1])}]
    )
    centres = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    labels = [{"class_labels": torch.tensor([0, 1]), "boxes": centres / torch.tensor([93.0, 70, 93, 70])}]
    theirs = b.model(pixels, **tokenizer([caption.text], return_tensors="pt"), labels=labels).loss_dict
    for name, other, weight in (("token", "ce", 2), ("box", "bbox", 5), ("giou", "giou", 2)):
        assert own.losses[f"loss_{name}"].item() == pytest.approx(weight * theirs[f"loss_{other}"].item(), rel=1e-6)


# ------------------------------------------------------------------ SDPT


def sdpt(tokenizer, kind, **settings):
    b = GroundingDinoBackbone("tiny", make_model(kind).double(), tokenizer)
    model = attach(b, "sdpt", CLASSES[0], num_prototype_tokens=4, **settings)
    model.method.double()
    return model


def inputs(backbone):
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(2, 70, 93, dtype=torch.long)
    for i, (height, width) in enumerate(SIZES.tolist()):
        mask[i, :height, :width] = 1
    pixels = torch.randn(2, 3, 70, 93, generator=generator) * mask[:, None]
    return pixels, mask, [backbone.caption(names) for names in CLASSES]


def ours(model):
    pixels, _, captions = inputs(model.backbone)
    raw = model.method(model.backbone, DetectionBatch(pixels, captions=captions, image_sizes=SIZES)).raw
    return [*(row[:, : c.length] for row, c in zip(raw.logits, captions)), raw.boxes]


def theirs(model, prototypes, visible):
    """transformers' own forward pass of the whole model, its fusion attentions replaced by plain ones with tokens."""
    whole = copy.deepcopy(model.backbone.model)
    for number, layer in enumerate(whole.model.encoder.layers):
        layer.fusion_layer.attn = PlainAttention(layer.fusion_layer.attn, prototypes.get(number), visible)
    pixels, mask, captions = inputs(model.backbone)
    ids = model.backbone.tokenizer([c.text for c in captions], padding="max_length", max_length=32, return_tensors="pt")
    out = whole(pixels, **ids, pixel_mask=mask)
    return [*(row[:, : c.length] for row, c in zip(out.logits, captions)), out.pred_boxes]


def largest_difference(first, second) -> float:
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(first, second))


@equal_to_transformers
@pytest.mark.parametrize(
    "kind, visible, layers",
    [
        (KINDS[0], "both", None),
        (KINDS[0], "text_queries", None),
        (KINDS[0], "both", [1]),
        (KINDS[1], "both", None),
        (KINDS[1], "text_queries", [0]),
    ],
)
def test_outputs_and_gradients(tokenizer, kind, visible, layers):
    model = sdpt(tokenizer, kind, visible=visible, layers=layers)
    parameter = model.method.prototypes.tokens
    plain = {layer: parameter[i] for i, layer in enumerate(layers or range(2))}
    own, expected = ours(model), theirs(model, plain, visible)
    assert largest_difference(own, expected) < 1e-10
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(part.shape, generator=generator) for part in expected]
    total = lambda parts: sum((w * p).sum() for w, p in zip(weights, parts))
    (gradient,) = torch.autograd.grad(total(own), parameter)
    (wanted,) = torch.autograd.grad(total(expected), parameter)
    assert wanted.abs().amax(2).min() > 1e-4, "every token of every layer matters"
    assert (gradient - wanted).abs().max() <= 1e-9 * wanted.abs().max()


@torch.no_grad()
def test_the_prototypes_matter(tokenizer):
    """A guard of the test above: without tokens, or seen by the wrong queries, the numbers are others."""
    model = sdpt(tokenizer, KINDS[0], visible="both")
    plain = dict(enumerate(model.method.prototypes.tokens))
    assert largest_difference(theirs(model, {}, "both"), ours(model)) > 1e-3
    assert largest_difference(theirs(model, plain, "text_queries"), ours(model)) > 1e-3
