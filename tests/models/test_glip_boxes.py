"""Anchors, box coding, suppression and decoding."""

from __future__ import annotations

import math

import pytest
import torch

from duotune.models.glip.anchors import cell_anchor, level_anchors
from duotune.models.glip.boxes import (
    boxes_to_xywh,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    multiclass_nms,
    pairwise_iou,
    xywh_to_boxes,
)
from duotune.models.glip.detection import Detections, class_scores, detect, keep_best


def random_boxes(count, seed=0, spread=60.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * spread
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 30], 1)


def slow_iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    area = lambda r: (r[2] - r[0] + 1) * (r[3] - r[1] + 1)
    return inter / (area(a) + area(b) - inter)


def slow_nms(boxes, scores, labels, threshold):
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    for i in order:
        if all(labels[i] != labels[j] or slow_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return sorted(kept)


def test_anchors_of_the_first_level():
    assert cell_anchor(8, 8.0) == (-28, -28, 35, 35)
    anchors = level_anchors(2, 3, 8, 8.0)
    assert anchors[4].tolist() == [-28 + 8, -28 + 8, 35 + 8, 35 + 8]
    assert anchors[2].tolist() == [-28 + 16, -28, 35 + 16, 35]


def test_coding_by_its_formula_and_back():
    boxes, anchors = random_boxes(50, 1), random_boxes(50, 2)
    deltas = encode_boxes(boxes, anchors)
    (x1, y1, x2, y2), (ax1, ay1, ax2, ay2) = boxes[0].tolist(), anchors[0].tolist()
    width, height = ax2 - ax1 + 1, ay2 - ay1 + 1
    by_hand = [
        10 * ((x1 + x2) / 2 - (ax1 + ax2) / 2) / width,
        10 * ((y1 + y2) / 2 - (ay1 + ay2) / 2) / height,
        5 * math.log((x2 - x1 + 1) / width),
        5 * math.log((y2 - y1 + 1) / height),
    ]
    assert deltas[0].tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(decode_boxes(deltas, anchors), boxes, rtol=1e-5, atol=1e-4)


def test_decoded_sizes_are_limited():
    box = decode_boxes(torch.tensor([[0.0, 0, 1e4, 1e4]]), torch.tensor([[0.0, 0, 15, 15]]))[0]
    assert (box[2] - box[0] + 1).item() == pytest.approx(1000, rel=1e-4)


def test_coco_boxes_there_and_back():
    xywh = torch.tensor([[10.0, 20, 30, 40]])
    assert xywh_to_boxes(xywh).tolist() == [[10, 20, 39, 59]]
    assert torch.equal(boxes_to_xywh(xywh_to_boxes(xywh)), xywh)


def test_clipping_stays_within_the_last_pixel():
    assert clip_boxes(torch.tensor([[-5.0, -5, 500, 500]]), 100, 200).tolist() == [[0, 0, 199, 99]]


def test_iou_by_its_formula():
    a, b = random_boxes(9, 1), random_boxes(7, 2)
    expected = [[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(pairwise_iou(a, b), torch.tensor(expected))


@pytest.mark.parametrize("seed", range(5))
def test_suppression_equals_a_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes, scores = random_boxes(120, seed), torch.rand(120, generator=generator)
    labels = torch.randint(0, 3, (120,), generator=generator)
    kept = multiclass_nms(boxes, scores, labels, 0.4)
    assert kept.tolist() == slow_nms(boxes.tolist(), scores.tolist(), labels.tolist(), 0.4)
    assert 3 < len(kept) < 120


def test_chains_of_suppression():
    """Each box overlaps its neighbours alone: every second one survives, however long the chain."""
    boxes = torch.tensor([[4.0 * i, 0, 4 * i + 9, 9] for i in range(40)])
    kept = multiclass_nms(boxes, torch.linspace(1, 0, 40), torch.zeros(40, dtype=torch.long), 0.3)
    assert kept.tolist() == list(range(0, 40, 2))


def test_suppression_needs_more_than_the_threshold():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4]])  # IoU exactly a half, with inclusive corners
    arguments = boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long)
    assert multiclass_nms(*arguments, 0.5).tolist() == [0, 1]
    assert multiclass_nms(*arguments, 0.49).tolist() == [0]


def test_nothing_to_suppress():
    assert multiclass_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5).tolist() == []


def test_class_scores_average_probabilities():
    logits = torch.tensor([[0.0, 2.0, -2.0, 4.0]])
    scores = class_scores(logits, [[1], [], [0, 3]])
    p = logits[0].sigmoid()
    torch.testing.assert_close(scores, torch.stack([p[1], torch.tensor(0.0), (p[0] + p[3]) / 2])[None])


def test_ties_with_the_last_kept_box_stay():
    found = Detections(torch.zeros(5, 4), torch.tensor([0.5, 0.9, 0.5, 0.1, 0.5]), torch.arange(5))
    assert keep_best(found, 2).labels.tolist() == [0, 1, 2, 4]
    assert keep_best(found, 5) is found


def detect_slowly(logits, deltas, centerness, anchors, classes, size, threshold, top, nms, limit):
    boxes, scores, labels = [], [], []
    for level in range(len(logits)):
        pairs = []
        for row, probs in enumerate(logits[level].sigmoid().tolist()):
            for label, tokens in enumerate(classes):
                score = sum(probs[t] for t in tokens) / max(len(tokens), 1)
                if score > threshold:
                    pairs.append((score * centerness[level][row].sigmoid().item(), row, label))
        for product, row, label in sorted(pairs, reverse=True)[:top]:
            box = decode_boxes(deltas[level][row][None], anchors[level][row][None])[0].tolist()
            limits = [size[1] - 1, size[0] - 1] * 2
            boxes.append([min(max(v, 0), m) for v, m in zip(box, limits)])
            scores.append(math.sqrt(product))
            labels.append(label)
    kept = slow_nms(boxes, scores, labels, nms)
    kept = sorted(kept, key=lambda i: -scores[i])[:limit]
    return [(scores[i], labels[i], boxes[i]) for i in kept]


def test_decoding_against_a_loop():
    torch.manual_seed(0)
    anchors = [level_anchors(5, 6, 8, 8.0), level_anchors(3, 3, 16, 8.0)]
    logits = [torch.randn(len(a), 7) for a in anchors]
    deltas = [torch.randn(len(a), 4) for a in anchors]
    centerness = [torch.randn(len(a)) * 3 for a in anchors]
    arguments = [[1], [3, 4], []], (67, 75), 0.5, 12, 0.6, 5
    found = detect(logits, deltas, centerness, anchors, *arguments).sorted()
    expected = detect_slowly(logits, deltas, centerness, anchors, *arguments)
    assert len(expected) == 5 < len(detect_slowly(logits, deltas, centerness, anchors, *arguments[:-1], 99))
    torch.testing.assert_close(found.scores, torch.tensor([s for s, _, _ in expected]))
    assert found.labels.tolist() == [label for _, label, _ in expected]
    torch.testing.assert_close(found.boxes, torch.tensor([b for _, _, b in expected]), rtol=1e-5, atol=1e-4)


def test_the_threshold_is_on_the_class_score_alone():
    anchors = [level_anchors(1, 1, 8, 8.0)]
    logits, deltas = [torch.tensor([[0.0]])], [torch.zeros(1, 4)]
    found = detect(logits, deltas, [torch.tensor([-9.0])], anchors, [[0]], (64, 64), score_threshold=0.4)
    assert len(found.scores) == 1 and found.scores[0] < 0.01
    nothing = detect(logits, deltas, [torch.tensor([9.0])], anchors, [[0]], (64, 64), score_threshold=0.5)
    assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,) and nothing.labels.shape == (0,)
