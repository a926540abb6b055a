"""Targets and losses against loops that follow the text of the method."""

from __future__ import annotations

import math

import pytest
import torch

from duotune.models.glip.anchors import pyramid_anchors
from duotune.models.glip.boxes import decode_boxes, encode_boxes
from duotune.models.glip.losses import (
    assign_anchors,
    build_targets,
    centerness_targets,
    detection_losses,
    giou_loss,
    token_focal_loss,
)

STRIDES = [8, 16, 32, 64, 128]


def some_anchors(height=160, width=224):
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    return pyramid_anchors(sizes, STRIDES, 8.0)


def random_boxes(count, seed, height=160, width=224):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 30.0, height - 30])
    size = torch.rand(count, 2, generator=generator) * 90 + 8
    return torch.cat([corner, corner + size], 1)


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    area = lambda r: (r[2] - r[0] + 1) * (r[3] - r[1] + 1)
    return inter / (area(a) + area(b) - inter)


def assign_slowly(boxes, levels, topk):
    """ATSS, one box at a time, in Python floats."""
    flat = [anchor for level in levels for anchor in level.double().tolist()]
    claims = {}
    for g, box in enumerate(boxes.double().tolist()):
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for level in levels:
            distance = []
            for i in range(start, start + len(level)):
                a = flat[i]
                distance.append((math.hypot((a[0] + a[2]) / 2 - cx, (a[1] + a[3]) / 2 - cy), i))
            candidates += [i for _, i in sorted(distance)[:topk]]
            start += len(level)
        values = [iou(flat[i], box) for i in candidates]
        mean = sum(values) / len(values)
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        for i, value in zip(candidates, values):
            x, y = (flat[i][0] + flat[i][2]) / 2, (flat[i][1] + flat[i][3]) / 2
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if value >= mean + std and inside and value > claims.get(i, (-1, 0))[0]:
                claims[i] = (value, g)
    return torch.tensor([claims[i][1] if i in claims else -1 for i in range(len(flat))])


@pytest.mark.parametrize("seed", range(6))
def test_assignment_equals_a_loop(seed):
    boxes, anchors = random_boxes(1 + 2 * seed, seed), some_anchors()
    found = assign_anchors(boxes, anchors)
    assert torch.equal(found, assign_slowly(boxes, anchors, 9))
    assert (found >= 0).sum() > 0


def test_an_anchor_wanted_twice_goes_to_the_larger_overlap():
    boxes = torch.tensor([[40.0, 40, 100, 100], [42, 42, 110, 110]])
    anchors = some_anchors()
    found = assign_anchors(boxes, anchors)
    alone = [assign_anchors(box[None], anchors) >= 0 for box in boxes]
    contested = alone[0] & alone[1]
    assert contested.any() and set(found[contested].tolist()) == {0, 1}
    assert torch.equal(found, assign_slowly(boxes, anchors, 9))


def test_targets_of_an_image():
    boxes, anchors = random_boxes(3, 1), some_anchors()
    positive_map = torch.zeros(3, 12)
    positive_map[0, 1] = positive_map[1, 3] = 1
    positive_map[2, 5:8] = 1 / 3
    targets = build_targets(boxes, positive_map, anchors, length=9, max_text_tokens=256)
    every = torch.cat(anchors)
    for row, matched in enumerate(targets.matched.tolist()):
        if matched < 0:
            assert targets.tokens[row].sum() == 0 and targets.deltas[row].abs().sum() == 0
        else:
            assert torch.equal(targets.tokens[row], (positive_map[matched, :9] > 0).float())
            torch.testing.assert_close(targets.deltas[row], encode_boxes(boxes[matched][None], every[row][None])[0])


def test_only_captions_of_full_length_have_a_no_object_token():
    boxes, anchors, positive_map = random_boxes(1, 0), some_anchors(), torch.eye(8)[2:3]
    background = assign_anchors(boxes, anchors) < 0
    short = build_targets(boxes, positive_map, anchors, length=8, max_text_tokens=16)
    full = build_targets(boxes, positive_map, anchors, length=16, max_text_tokens=16)
    assert short.tokens[background].sum() == 0
    assert torch.equal(full.tokens[background], torch.eye(16)[15].expand(int(background.sum()), 16))
    assert full.tokens[~background][:, 15].sum() == 0


def test_an_image_without_boxes_is_all_background():
    targets = build_targets(torch.zeros(0, 4), torch.zeros(0, 5), some_anchors(), 5, 256)
    assert (targets.matched == -1).all() and targets.tokens.sum() == 0 and targets.deltas.sum() == 0


def test_focal_loss_by_its_formula():
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 4, dtype=torch.double) * 3, (torch.rand(5, 4) < 0.4).double()
    expected = torch.zeros_like(logits)
    for index in range(20):
        x, y = logits.flatten()[index].item(), targets.flatten()[index].item()
        p = 1 / (1 + math.exp(-x))
        pt, alpha = (p, 0.25) if y else (1 - p, 0.75)
        expected.view(-1)[index] = -alpha * (1 - pt) ** 2 * math.log(pt)
    torch.testing.assert_close(token_focal_loss(logits, targets), expected)


def test_giou_by_its_formula():
    boxes, others = random_boxes(8, 3).double(), random_boxes(8, 4).double()
    others[0] = boxes[0]
    boxes[1] = torch.tensor([50.0, 60, 20, 30])  # inverted: empty
    expected = []
    for a, b in zip(boxes.tolist(), others.tolist()):
        a = [a[0], a[1], max(a[0], a[2]), max(a[1], a[3])]
        inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter + 1e-7
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1])) + 1e-7
        expected.append(1 - (inter / union - (hull - union) / hull))
    found = giou_loss(boxes, others)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.double))
    assert found[0] == pytest.approx(0, abs=1e-9) and found.max() > 1


def test_centerness_by_its_formula():
    anchors = torch.tensor([[0.0, 0, 63, 63], [0, 0, 63, 63]])  # centres (31.5, 31.5)
    boxes = torch.tensor([[1.5, 11.5, 61.5, 51.5], [21.5, 21.5, 71.5, 121.5]])
    # left, right, top, bottom: (30, 30, 20, 20) and (10, 40, 10, 90)
    found = centerness_targets(encode_boxes(boxes, anchors), anchors)
    torch.testing.assert_close(found, torch.tensor([1.0, math.sqrt(10 / 40 * 10 / 90)]))


def outputs(anchors, count=2, tokens=6, seed=0):
    torch.manual_seed(seed)
    rows = sum(len(level) for level in anchors)
    shapes = ((count, rows, tokens), (count, rows, 4), (count, rows))
    return [torch.randn(shape, dtype=torch.double).float().requires_grad_() for shape in shapes]


def test_losses_against_loops():
    anchors = some_anchors(64, 96)
    every = torch.cat(anchors)
    logits, deltas, centerness = outputs(anchors)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    labels = [(random_boxes(2, 5, 64, 96), torch.eye(6)[1:3]), (random_boxes(1, 6, 64, 96), torch.eye(6)[2:3])]
    targets = [build_targets(boxes, rows, anchors, 6, 256) for boxes, rows in labels]
    losses = detection_losses(logits, deltas, centerness, every, targets, mask)
    count = sum(int((t.matched >= 0).sum()) for t in targets)
    assert count > 3
    token = box = weights = centre = 0.0
    for b, target in enumerate(targets):
        valid = int(mask[b].sum())
        token += token_focal_loss(logits[b, :, :valid], target.tokens[:, :valid]).sum()
        for row in (target.matched >= 0).nonzero().flatten().tolist():
            anchor, goal = every[row][None], target.deltas[row][None]
            weight = centerness_targets(goal, anchor)
            box += (giou_loss(decode_boxes(deltas[b, row][None], anchor), decode_boxes(goal, anchor)) * weight).sum()
            p = centerness[b, row].sigmoid()
            centre -= (weight * p.log() + (1 - weight) * (1 - p).log()).sum()
            weights += weight.sum()
    torch.testing.assert_close(losses["loss_token"], token / count)
    torch.testing.assert_close(losses["loss_box"], 2 * box / weights)
    torch.testing.assert_close(losses["loss_centerness"], centre / count)


def test_without_boxes_only_the_token_loss_counts_and_gradients_are_finite():
    anchors = some_anchors(64, 64)
    logits, deltas, centerness = outputs(anchors, count=1)
    targets = [build_targets(torch.zeros(0, 4), torch.zeros(0, 6), anchors, 6, 256)]
    losses = detection_losses(logits, deltas, centerness, torch.cat(anchors), targets, torch.ones(1, 6))
    assert losses["loss_box"] == 0 and losses["loss_centerness"] == 0 and losses["loss_token"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(t.grad).all() for t in (logits, deltas, centerness))
    assert deltas.grad.abs().sum() == 0


def test_half_precision_outputs_give_float32_losses():
    anchors = some_anchors(64, 64)
    outs = [t.detach().half() for t in outputs(anchors, count=1)]
    targets = [build_targets(random_boxes(1, 0, 64, 64), torch.eye(6)[:1], anchors, 6, 256)]
    losses = detection_losses(*outs, torch.cat(anchors), targets, torch.ones(1, 6))
    assert {v.dtype for v in losses.values()} == {torch.float32}
