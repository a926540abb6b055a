import json

import numpy as np
import pytest
import torch

from duotune.errors import DataError
from duotune.metrics import BaseToNew, ClassificationMetrics, accuracy, harmonic_mean, per_class_accuracy


def test_accuracy_of_labels_and_logits():
    assert accuracy([0, 1, 2, 2], [0, 1, 1, 2]) == 75.0
    logits = torch.tensor([[2.0, 1.0], [0.0, 5.0], [3.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1])) == pytest.approx(200 / 3)


def test_accuracy_equals_a_plain_count():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    right = [int(max(range(7), key=lambda c: row[c]) == y) for row, y in zip(logits, labels)]
    assert accuracy(logits, labels) == pytest.approx(sum(right) / 2)
    for c in range(7):
        mine = [r for r, y in zip(right, labels) if y == c]
        assert per_class_accuracy(logits, labels, 7)[c] == pytest.approx(100 * sum(mine) / len(mine))


def test_class_without_items():
    values = per_class_accuracy([0, 0, 2], [0, 2, 2], 4)
    assert values[[0, 2]].tolist() == [100, 50] and np.isnan(values[[1, 3]]).all()
    metrics = ClassificationMetrics.measure([0, 0, 2], [0, 2, 2], ["cat", "dog", "fox", "owl"])
    assert metrics.per_class == (100.0, None, 50.0, None) and metrics.counts == (1, 0, 2, 0)
    assert metrics.accuracy == pytest.approx(200 / 3) and metrics.mean_class_accuracy == 75.0
    assert json.loads(metrics.to_json())["per_class"] == [100.0, None, 50.0, None]
    lines = str(metrics).splitlines()
    assert lines[0].split() == ["class", "images", "accuracy"] and lines[2].split() == ["dog", "0", "-"]
    assert lines[-1].split() == ["all", "3", "66.67"] and len({len(line) for line in lines}) == 1


def test_harmonic_mean():
    assert harmonic_mean(60, 40) == pytest.approx(48)
    assert harmonic_mean(0, 80) == harmonic_mean(0, 0) == 0
    # MaPLe's and PromptSRC's tables: CLIP 69.34 / 74.22 -> 71.70, CoOp 82.69 / 63.22 -> 71.66
    assert round(harmonic_mean(69.34, 74.22), 2) == 71.70 and round(harmonic_mean(82.69, 63.22), 2) == 71.66
    result = BaseToNew(60, 40)
    assert json.loads(result.to_json()) == {"base": 60, "new": 40, "harmonic_mean": pytest.approx(48)}
    assert str(result).splitlines()[1].split() == ["60.00", "40.00", "48.00"]
    with pytest.raises(DataError, match="must not be negative"):
        harmonic_mean(-1, 5)


@pytest.mark.parametrize(
    "predictions, labels, match",
    [
        ([], [], "split is empty"),
        ([0, 1], [0], r"expected \(N,\) labels"),
        (np.array([[np.nan, 1.0]]), [0], "NaN"),
        ([[0], [1]], [[0], [1]], r"expected \(N,\) labels"),
    ],
)
def test_faulty_input(predictions, labels, match):
    with pytest.raises(DataError, match=match):
        accuracy(predictions, labels)


def test_labels_out_of_range():
    with pytest.raises(DataError, match=r"labels must be 0..1; got 0..2"):
        per_class_accuracy([0, 1], [0, 2], 2)
