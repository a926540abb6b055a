"""Few shots: against a transcription of GLIP's own loop, with its budgets in a list indexed by category id."""

from __future__ import annotations

import random

import numpy as np
import pytest

from duotune.data.detection.base import DetectionData
from duotune.data.detection.coco import make_item
from duotune.data.detection.sampling import few_shot_items, fewer_pictures
from duotune.errors import ConfigError, DataError

CLASSES = 5


def transcribed(items, shots, seed):
    """github.com/microsoft/GLIP at 9dda955, maskrcnn_benchmark/data/datasets/coco.py: categories count from 1."""
    annotations = {i.image_id: [(label + 1, *(b[2:] - b[:2])) for label, b in zip(i.labels, i.boxes)] for i in items}
    ids = sorted(annotations)
    ids = [i for i in ids if not all(w <= 1 or h <= 1 for _, w, h in annotations[i])]  # no box at all: left out
    budget = [shots] * CLASSES
    if seed != 0:
        random.Random(seed).shuffle(ids)
    kept = []
    for i in ids:
        categories = {category for category, _, _ in annotations[i]}
        if sum(budget[c - 1] > 0 for c in categories):
            kept.append(i)
            for c in categories:
                budget[c - 1] -= 1
    return kept


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(0)
    made = []
    for number in rng.permutation(400)[:150].tolist():
        rows = []
        for _ in range(int(rng.integers(0, 6))):
            label = int(rng.choice(CLASSES, p=[0.5, 0.25, 0.15, 0.08, 0.02]))
            w, h = rng.choice([0.5, 1.0, 8.0, 20.0], 2, p=[0.15, 0.15, 0.4, 0.3])
            rows.append(((1, 1, 1 + w, 1 + h), label, len(rows), rng.random() < 0.1, w * h))
        made.append(make_item(f"{number}.jpg", number, 40, 40, rows))
    return made


@pytest.mark.parametrize("shots", [1, 3, 5, 10])
@pytest.mark.parametrize("seed", [0, 3, 30, 300])
def test_as_glip_samples(items, shots, seed):
    taken = [item.image_id for item in few_shot_items(items, shots, seed)]
    assert taken == transcribed(items, shots, seed)
    assert taken == [item.image_id for item in few_shot_items(items[::-1], shots, seed)]  # the listing does not matter
    shown = lambda label: sum(label in item.labels for item in items if item.image_id in taken)
    for label in range(CLASSES):
        available = [i for i in items if label in i.labels and any((b[2:] - b[:2] > 1).all() for b in i.boxes)]
        assert shown(label) >= min(shots, len(available))


def test_seeds_differ(items):
    drawn = {seed: tuple(transcribed(items, 3, seed)) for seed in (0, 3, 30, 300)}
    assert len(set(drawn.values())) == 4


def test_of_a_data_set(items):
    data = DetectionData("d", tuple("abcde"), tuple(range(1, 6)), tuple(items), tuple(items[:3]), tuple(items[3:9]))
    few = data.few_shot(1, seed=3)
    assert [i.image_id for i in few.train] == transcribed(items, 1, 3) and len(few.train) < 20
    assert few.val == data.val and few.test == data.test and few.class_names == data.class_names
    for shots, seed, match in ((0, 0, "num_shots must be at least 1"), (1, -1, "seed must be at least 0")):
        with pytest.raises(ConfigError, match=match):
            data.few_shot(shots, seed)
    empty = DetectionData("d", ("a",), (1,), (make_item("x.jpg", 1, 4, 4, []),))
    with pytest.raises(DataError, match="no training picture has a box"):
        empty.few_shot(1)


def test_fewer_pictures_than_shots_are_told(caplog):
    box = (0, 0, 9, 9)
    train = [make_item(f"{i}.jpg", i, 20, 20, [(box, label, i, 0, 81)]) for i, label in enumerate((0, 0, 0, 1))]
    data = DetectionData("cells", ("red", "white"), (1, 2), tuple(train))
    assert fewer_pictures(data, 2) == {"white": 1}
    assert len(data.few_shot(1).train) == 2 and not caplog.records
    data.few_shot(3)
    (record,) = caplog.records
    assert "cells: 1 of 2 classes have fewer than 3 training pictures" in record.getMessage()
    assert "'white (1)'" in record.getMessage()
