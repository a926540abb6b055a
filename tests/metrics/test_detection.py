"""Average precision: a case computed by hand, and an independent plain computation of COCO's and LVIS's rules."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from duotune.errors import ConfigError, DataError
from duotune.metrics.detection import BoxPrediction, DetectionMetrics, OdinwAverage

LIMITS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))


def item(image_id, boxes, labels, crowd=None, neg=(), partial=()):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return SimpleNamespace(
        image_id=image_id,
        width=400,
        height=400,
        boxes=boxes,
        labels=np.array(labels, dtype=np.int64),
        iscrowd=np.array([False] * len(boxes) if crowd is None else crowd, dtype=bool),
        area=(sides[:, 0] * sides[:, 1]).astype(np.float64),
        neg_labels=tuple(neg),
        not_exhaustive_labels=tuple(partial),
    )


def predicted(boxes, scores, labels):
    return BoxPrediction(
        np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores), np.array(labels, dtype=int)
    )


# ---------------------------------------------------------------- the plain computation, from the papers' definitions


def overlap(box, other, crowd):
    w = min(box[2], other[2]) - max(box[0], other[0])
    h = min(box[3], other[3]) - max(box[1], other[1])
    if w <= 0 or h <= 0:
        return 0.0
    area = lambda b: (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area(box) if crowd else area(box) + area(other) - w * h)


def plain_table(items, predictions, classes, lvis, per_image=300, per_class=100):
    """(10, 101, C, 4) precision, -1 where a class has no boxes."""
    table = -np.ones((10, 101, classes, 4))
    recalls = np.linspace(0, 1, 101)
    for k in range(classes):
        for a, (low, high) in enumerate(LIMITS):
            for t in range(10):
                threshold, outcomes, total = 0.5 + 0.05 * t, [], 0
                for truth, found in zip(items, predictions):
                    boxes, scores = found.boxes.astype(float), found.scores
                    order = np.argsort(-scores, kind="stable")[: per_image if lvis else None]
                    mine = [i for i in order if found.labels[i] == k][: None if lvis else per_class]
                    rows = np.flatnonzero(truth.labels == k)
                    if lvis and not len(rows) and k not in truth.neg_labels:
                        continue
                    skip = {r: bool(truth.iscrowd[r]) or not low <= truth.area[r] <= high for r in rows}
                    total += sum(not value for value in skip.values())
                    free = set(rows.tolist())
                    for i in mine:
                        best, match = threshold - 1e-12, None
                        for wanted in (False, True):  # boxes that count before boxes that do not
                            if match is not None:
                                break
                            for r in rows:
                                crowd = bool(truth.iscrowd[r])
                                if skip[r] == wanted and (r in free or crowd):
                                    value = overlap(boxes[i], truth.boxes[r].astype(float), crowd)
                                    if value >= best:
                                        best, match = value, r
                        area = (boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1])
                        if match is not None:
                            free.discard(match)
                            if not skip[match]:
                                outcomes.append((scores[i], True))
                        elif low <= area <= high and not (lvis and k in truth.not_exhaustive_labels):
                            outcomes.append((scores[i], False))
                if not total:
                    continue
                outcomes.sort(key=lambda row: -row[0])
                hits = np.cumsum([hit for _, hit in outcomes]) if outcomes else np.zeros(0)
                precision = hits / np.arange(1, len(hits) + 1)
                for j, wanted in enumerate(recalls):
                    reached = hits / total >= wanted
                    table[t, j, k, a] = precision[reached].max() if reached.any() else 0
    return table


def mean(part):
    return part[part > -1].mean() * 100 if (part > -1).any() else None


def scene(seed, classes=4, images=12, lvis=False):
    """Random boxes of all sizes, crowds, shifted detections, wrong labels, pictures without boxes."""
    random = np.random.default_rng(seed)
    items, predictions = [], []
    for number in range(images):
        n = int(random.integers(0, 9))
        corner, side = random.uniform(0, 250, (n, 2)), random.choice([12.0, 50.0, 130.0], (n, 1))
        boxes = np.concatenate([corner, corner + side * random.uniform(0.8, 1.2, (n, 2))], 1)
        labels = random.integers(0, classes - 1, n)
        crowd = np.zeros(n, bool) if lvis else random.random(n) < 0.15
        absent = sorted(set(range(classes)) - set(labels.tolist()))
        items.append(item(number, boxes, labels, crowd, neg=absent[::2], partial=absent[:1] + labels.tolist()[:1]))
        shift = random.normal(0, 1, (n, 4)) * side * random.choice([0.01, 0.06, 0.2], (n, 1))
        extra = random.uniform(0, 200, (5, 2))
        found = np.concatenate([boxes + shift, np.concatenate([extra, extra + random.uniform(10, 120, (5, 2))], 1)])
        guesses = np.concatenate([np.where(random.random(n) < 0.85, labels, random.integers(0, classes, n)),
                                  random.integers(0, classes, 5)])  # fmt: skip
        predictions.append(predicted(found, random.permutation(1000)[: n + 5] / 1000 + number * 1e-5, guesses))
    return items, predictions


def test_by_hand():
    """Two boxes; found, something else, found: precision 1 up to recall 1/2, then 2/3."""
    items = [item("a", [[0, 0, 50, 50], [100, 100, 180, 150]], [0, 0])]
    found = predicted([[0, 0, 50, 50], [200, 200, 250, 260], [100, 100, 180, 150]], [0.9, 0.8, 0.7], [0, 0, 0])
    metrics = DetectionMetrics.measure(items, [found], ["cat", "dog"])
    expected = (51 * 1 + 50 * 2 / 3) / 101 * 100
    assert metrics.ap == pytest.approx(expected) and metrics.ap50 == pytest.approx(expected)
    assert metrics.per_class == (pytest.approx(expected), None) and metrics.counts == (2, 0)
    assert metrics.ap_small is None and metrics.ap_large is None and metrics.ap_medium == pytest.approx(expected)
    assert (metrics.num_images, metrics.num_boxes, metrics.num_detections) == (1, 2, 3)
    # 0.72 of the box: right up to IoU 0.70, five of ten thresholds
    shifted = predicted([[0, 0, 50, 36], [100, 100, 180, 150]], [0.9, 0.95], [0, 0])
    metrics = DetectionMetrics.measure(items, [shifted], ["cat", "dog"])
    assert metrics.ap50 == pytest.approx(100) and metrics.ap75 == pytest.approx(51 / 101 * 100)
    assert metrics.ap == pytest.approx((5 * 100 + 5 * 51 / 101 * 100) / 10)


@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_computation(seed):
    items, predictions = scene(seed)
    table = plain_table(items, predictions, 4, lvis=False)
    metrics = DetectionMetrics.measure(items, predictions, list("abcd"))
    assert 5 < metrics.ap < 95
    for value, part in {
        "ap": table[..., 0], "ap50": table[0, ..., 0], "ap75": table[5, ..., 0],
        "ap_small": table[..., 1], "ap_medium": table[..., 2], "ap_large": table[..., 3],
    }.items():  # fmt: skip
        assert getattr(metrics, value) == pytest.approx(mean(part), abs=1e-9), value
    for k in range(4):
        assert metrics.per_class[k] == (None if k == 3 else pytest.approx(mean(table[:, :, k, 0]), abs=1e-9))
        assert metrics.per_class_50[k] == (None if k == 3 else pytest.approx(mean(table[0, :, k, 0]), abs=1e-9))
    assert metrics.ap_rare is None and "ap_rare" not in metrics.to_dict()


@pytest.mark.parametrize("seed", range(2))
def test_lvis_against_a_plain_computation(seed):
    items, predictions = scene(seed + 10, classes=6, lvis=True)
    frequencies = list("rrccff")
    table = plain_table(items, predictions, 6, lvis=True)
    metrics = DetectionMetrics.measure(items, predictions, list("abcdef"), frequencies)
    assert metrics.ap == pytest.approx(mean(table[..., 0]), abs=1e-9)
    for name, columns in (("ap_rare", [0, 1]), ("ap_common", [2, 3]), ("ap_frequent", [4, 5])):
        assert getattr(metrics, name) == pytest.approx(mean(table[:, :, columns, 0]), abs=1e-9)
    # the rules matter: COCO's give another number
    assert abs(DetectionMetrics.measure(items, predictions, list("abcdef")).ap - metrics.ap) > 0.5
    few = plain_table(items, predictions, 6, lvis=True, per_image=4)
    limited = DetectionMetrics.measure(items, predictions, list("abcdef"), frequencies, max_detections=4)
    assert limited.ap == pytest.approx(mean(few[..., 0]), abs=1e-9) and limited.ap < metrics.ap


def test_more_than_a_hundred_of_a_class_do_not_count():
    boxes = [[3 * i, 0, 3 * i + 2, 20] for i in range(120)]
    items = [item(0, boxes, [0] * 120)]
    found = predicted(boxes, np.linspace(0.9, 0.1, 120), [0] * 120)
    assert DetectionMetrics.measure(items, [found], ["x"]).ap == pytest.approx(84 / 101 * 100)  # recall 100 / 120
    assert DetectionMetrics.measure(items, [found], ["x"], max_detections=120).ap == pytest.approx(100)
    assert DetectionMetrics.measure(items, [found], ["x"], ["f"]).ap == pytest.approx(100)  # LVIS: 300 per picture


def test_order_of_pictures_and_ids_do_not_matter():
    items, predictions = scene(5)
    metrics = DetectionMetrics.measure(items, predictions, list("abcd"))
    order = np.random.default_rng(0).permutation(len(items))
    for position, thing in enumerate(items):
        thing.image_id = f"picture {position}"
    again = DetectionMetrics.measure([items[i] for i in order], [predictions[i] for i in order], list("abcd"))
    assert again.ap == pytest.approx(metrics.ap) and again.per_class == pytest.approx(metrics.per_class, nan_ok=True)


def test_nothing_found():
    items, _ = scene(1)
    nothing = [predicted([], [], [])] * len(items)
    metrics = DetectionMetrics.measure(items, nothing, list("abcd"))
    assert (metrics.ap, metrics.ap_small, metrics.ap_large, metrics.num_detections) == (0, 0, 0, 0)
    assert metrics.per_class == (0, 0, 0, None)
    empty = [item(0, [], []), item(1, [], [])]
    assert DetectionMetrics.measure(empty, nothing[:2], ["x"]).ap is None
    wrong = predicted([[0, 0, 9, 9]], [0.5], [0])
    assert DetectionMetrics.measure(empty, [wrong, wrong], ["x"]).ap is None


def test_table_and_json():
    items, predictions = scene(2)
    metrics = DetectionMetrics.measure(items, predictions, ["ant", "bee", "cicada", "dragonfly"])
    values = json.loads(metrics.to_json())
    assert values["ap"] == metrics.ap and values["per_class"][3] is None and values["class_names"][1] == "bee"
    lines = str(metrics).splitlines()
    assert lines[0].split() == ["class", "boxes", "AP", "AP50"] and len(lines) == 7
    assert lines[4].split() == ["dragonfly", "0", "-", "-"]
    assert lines[5].split() == ["all", str(metrics.num_boxes), f"{metrics.ap:.2f}", f"{metrics.ap50:.2f}"]
    assert lines[6].startswith("AP75 ") and "APr" not in lines[6]
    items, predictions = scene(3, lvis=True)
    assert "APr" in str(DetectionMetrics.measure(items, predictions, list("abcd"), list("rcff")))


@pytest.mark.parametrize("found, match", [
    (predicted([[0, 0, 9, 9]], [0.5, 0.4], [0, 0]), r"expected \(n, 4\) boxes"),
    (predicted([[0, 0, np.nan, 9]], [0.5], [0]), "NaN"),
    (predicted([[0, 0, 9, 9]], [np.inf], [0]), "NaN or infinity"),
    (predicted([[0, 0, 9, 9]], [0.5], [2]), "predicted labels must be 0..1; got 2..2"),
])  # fmt: skip
def test_predictions_that_do_not_fit(found, match):
    with pytest.raises(DataError, match=match):
        DetectionMetrics.measure([item(0, [[0, 0, 9, 9]], [0])], [found], ["x", "y"])


def test_arguments_that_do_not_fit():
    one, found = item(0, [[0, 0, 9, 9]], [0]), predicted([[0, 0, 9, 9]], [0.5], [0])
    for arguments, error, match in [
        (([], [], ["x"]), DataError, "split is empty"),
        (([one], [], ["x"]), DataError, "1 pictures need one prediction each, got 0"),
        (([one, one], [found, found], ["x"]), DataError, "occurs twice"),
        (([one], [found], []), ConfigError, "needs classes"),
        (([one], [found], ["x"], ["q"]), ConfigError, "'r', 'c' or 'f'"),
        (([one], [found], ["x"], ["r", "c"]), ConfigError, "1 classes need as many frequencies, got 2"),
    ]:
        with pytest.raises(error, match=match):
            DetectionMetrics.measure(*arguments)


def test_odinw_average():
    items, predictions = scene(4)
    metrics = DetectionMetrics.measure(items, predictions, list("abcd"))
    average = OdinwAverage.of({"pothole": 20.0, "raccoon": 70.0, "own": metrics})
    assert average.mean == pytest.approx((90 + metrics.ap) / 3)
    assert average.median == pytest.approx(sorted([20, 70, metrics.ap])[1])
    assert json.loads(average.to_json())["tasks"]["pothole"] == 20
    assert str(average).splitlines()[1].split() == ["pothole", "20.00"]
    with pytest.raises(DataError, match="no AP of empty"):
        OdinwAverage.of({"empty": DetectionMetrics.measure([item(0, [], [])], [predicted([], [], [])], ["x"])})
    with pytest.raises(DataError, match="no tasks"):
        OdinwAverage.of({})
