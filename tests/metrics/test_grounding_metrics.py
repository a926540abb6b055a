"""Recall of phrases by hand and against a slow count."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from duotune.errors import DataError
from duotune.metrics import BoxPrediction, PhraseRecall


@dataclass
class Sentence:
    boxes: np.ndarray
    labels: np.ndarray
    phrases: tuple
    image_id: str = "100#0"


def sentence(*phrases) -> Sentence:
    """One list of true boxes per phrase."""
    boxes = np.array([box for own in phrases for box in own], dtype=np.float32).reshape(-1, 4)
    labels = np.array([i for i, own in enumerate(phrases) for _ in own], dtype=np.int64)
    return Sentence(boxes, labels, tuple(((i, i + 1),) for i in range(len(phrases))))


def found(*rows) -> BoxPrediction:
    """(label, score, box)."""
    boxes = np.array([box for *_, box in rows], dtype=np.float64).reshape(-1, 4)
    return BoxPrediction(boxes, np.array([row[1] for row in rows]), np.array([row[0] for row in rows], dtype=np.int64))


A, B, FAR = (0, 0, 10, 10), (20, 0, 40, 10), (50, 50, 60, 60)


def test_small_numbers():
    """Four phrases: one found first, one with its second box (any of two true ones), one with its sixth, one never."""
    first = sentence([A], [FAR, B])
    second = sentence([A], [B])
    predictions = [
        # the half of A counts, IoU 0.5 exactly; the surer box of phrase 1 is nowhere
        found((1, 0.2, B), (0, 0.9, (0, 0, 10, 5)), (1, 0.8, (0, 0, 4, 4))),
        found(*[(0, 0.9 - 0.1 * i, FAR) for i in range(5)], (0, 0.1, A), (1, 0.9, (20, 0, 29.9, 10))),
    ]
    recall = PhraseRecall.measure([first, second], predictions)
    assert (recall.recall_1, recall.recall_5, recall.recall_10, recall.upper_bound) == (25, 50, 75, 75)
    assert (recall.num_phrases, recall.num_sentences) == (4, 2)
    assert "recall@5      50.00" in str(recall) and '"recall_10": 75.0' in recall.to_json()
    # a box of another phrase finds nothing
    assert PhraseRecall.measure([first], [found((0, 0.9, B), (1, 0.9, A))]).upper_bound == 0
    assert PhraseRecall.measure([first], [found()]).upper_bound == 0


def slow_recall(items, predictions, k):
    hits = []
    for item, p in zip(items, predictions):
        for phrase in range(len(item.phrases)):
            own = sorted(((s, tuple(b)) for b, s, l in zip(p.boxes, p.scores, p.labels) if l == phrase), reverse=True)
            hit = False
            for _, (x1, y1, x2, y2) in own[:k]:
                for (u1, v1, u2, v2), label in zip(item.boxes.tolist(), item.labels):
                    if label == phrase:
                        w, h = max(0, min(x2, u2) - max(x1, u1)), max(0, min(y2, v2) - max(y1, v1))
                        union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - w * h
                        hit |= w * h / union >= 0.5
            hits.append(hit)
    return 100 * sum(hits) / len(hits)


def test_many_numbers_against_a_slow_count():
    random = np.random.default_rng(0)

    def boxes(n):
        corner = random.uniform(0, 30, (n, 2))
        return np.concatenate([corner, corner + random.uniform(10, 30, (n, 2))], 1)

    items = [
        sentence(*[boxes(random.integers(1, 3)).tolist() for _ in range(random.integers(0, 4))]) for _ in range(60)
    ]
    predictions = []
    for item in items:
        count = int(random.integers(0, 40)) if item.phrases else 0
        labels = random.integers(0, max(len(item.phrases), 1), count)
        predictions.append(BoxPrediction(boxes(count), random.permutation(count) / 40, labels))
    recall = PhraseRecall.measure(items, predictions)
    values = recall.recall_1, recall.recall_5, recall.recall_10, recall.upper_bound
    assert values == pytest.approx([slow_recall(items, predictions, k) for k in (1, 5, 10, None)])
    assert 0 < values[0] < values[1] < values[2] <= values[3] < 100


def test_what_does_not_fit_is_told():
    with pytest.raises(DataError, match="2 sentences need one prediction each, got 1"):
        PhraseRecall.measure([sentence([A])] * 2, [found()])
    with pytest.raises(DataError, match="no phrases with boxes"):
        PhraseRecall.measure([sentence()], [found()])
    with pytest.raises(DataError, match=r"100#0: expected \(n, 4\) boxes"):
        PhraseRecall.measure([sentence([A])], [BoxPrediction(np.zeros((1, 3)), np.ones(1), np.ones(1))])
