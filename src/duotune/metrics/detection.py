"""Average precision of boxes: COCO's rules, LVIS's rules, and the mean over ODinW's tasks. All in percent, 0..100.

faster-coco-eval does the matching and counting; this module hands it numbers in the form that it counts right (ids from
1: an annotation with id 0 would never count as found) and averages its precision table.

- AP: mean over IoU 0.50, 0.55, ... 0.95, over 101 recalls, over classes that have boxes; AP50, AP75 at one IoU.
- APs, APm, APl: objects of an area below 32 x 32, up to 96 x 96, and above.
- LVIS: a picture's detections of a class count if the class is annotated there or known to be absent, and up to 300 per
  picture in all; APr, APc, APf are means over rare, common and frequent classes. (GLIP's numbers on MiniVal are "fixed
  AP": 10,000 boxes per class over all pictures, as many per picture as there are. That is not computed here.)

Boxes are (n, 4) xyxy in pixels of the original picture, width = x2 - x1. For models that count corner pixels (GLIP),
add 1 to x2 and y2 first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, DataError

SIZES = ("all", "small", "medium", "large")
COCO_MAX_DETECTIONS = 100  # per picture and class
LVIS_MAX_DETECTIONS = 300  # per picture


class BoxedItem(Protocol):
    """What is asked of a picture with ground truth: `duotune.data.detection.DetectionItem` has it."""

    @property
    def image_id(self) -> int | str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def iscrowd(self) -> np.ndarray: ...
    @property
    def area(self) -> np.ndarray: ...
    @property
    def neg_labels(self) -> tuple[int, ...]: ...
    @property
    def not_exhaustive_labels(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class BoxPrediction:
    """What a detector found in one picture.

    Attributes:
        boxes: (n, 4) xyxy pixels of the original picture.
        scores: (n,) higher is surer.
        labels: (n,) indices into the data set's class names.
    """

    boxes: Any
    scores: Any
    labels: Any


@dataclass(frozen=True)
class DetectionMetrics:
    """Average precisions in percent; None where there is nothing to average (no small objects, no rare classes, ...).

    Attributes:
        ap, ap50, ap75: over all classes that have boxes.
        ap_small, ap_medium, ap_large: by size of the object.
        class_names: C names.
        per_class: C APs; None for a class without boxes. per_class_50: the same at IoU 0.50.
        counts: C numbers of boxes, crowds left out.
        num_images, num_boxes, num_detections: how many there were.
        ap_rare, ap_common, ap_frequent: LVIS alone.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    class_names: tuple[str, ...] = field(repr=False)
    per_class: tuple[float | None, ...] = field(repr=False)
    per_class_50: tuple[float | None, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    num_images: int
    num_boxes: int
    num_detections: int
    ap_rare: float | None = None
    ap_common: float | None = None
    ap_frequent: float | None = None

    @classmethod
    def measure(
        cls,
        items: Sequence[BoxedItem],
        predictions: Sequence[BoxPrediction],
        class_names: Sequence[str],
        frequencies: Sequence[str] = (),
        max_detections: int | None = None,
    ) -> DetectionMetrics:
        """Compare predictions with the boxes of the same pictures.

        Args:
            items: pictures with ground truth, each once.
            predictions: one per item, in the same order; an empty one where nothing was found.
            class_names: C names in label order.
            frequencies: "r", "c" or "f" per class: count by LVIS's rules; empty: COCO's.
            max_detections: the best so many count: per picture and class (COCO, 100), or per picture (LVIS, 300).

        Raises:
            DataError: no items, not one prediction per item, arrays that do not fit, NaN, or labels out of range.
            ConfigError: frequencies of another number, or max_detections below 1.
        """
        lvis = bool(frequencies)
        limit = max_detections or (LVIS_MAX_DETECTIONS if lvis else COCO_MAX_DETECTIONS)
        _check(items, predictions, class_names, frequencies, limit)
        truth, found = _as_coco(items, predictions, class_names, frequencies, limit if lvis else None)
        precision = _precision(truth, found, lvis, limit)
        groups = {
            name: _mean(precision[:, :, [k for k, f in enumerate(frequencies) if f == letter], 0]) if lvis else None
            for name, letter in (("ap_rare", "r"), ("ap_common", "c"), ("ap_frequent", "f"))
        }
        counts = np.zeros(len(class_names), dtype=np.int64)
        for item in items:
            labels = np.asarray(item.labels)[~np.asarray(item.iscrowd, dtype=bool)]
            counts += np.bincount(labels, minlength=len(counts))
        return cls(
            ap=_mean(precision[:, :, :, 0]),
            ap50=_mean(precision[0, :, :, 0]),
            ap75=_mean(precision[5, :, :, 0]),
            ap_small=_mean(precision[:, :, :, 1]),
            ap_medium=_mean(precision[:, :, :, 2]),
            ap_large=_mean(precision[:, :, :, 3]),
            class_names=tuple(class_names),
            per_class=tuple(_mean(precision[:, :, k, 0]) for k in range(len(class_names))),
            per_class_50=tuple(_mean(precision[0, :, k, 0]) for k in range(len(class_names))),
            counts=tuple(counts.tolist()),
            num_images=len(items),
            num_boxes=int(counts.sum()),
            num_detections=sum(len(p.scores) for p in predictions),
            **groups,
        )

    def to_dict(self) -> dict[str, Any]:
        """All values; the group means of LVIS are left out where there are none."""
        values = asdict(self)
        if not any(values[name] is not None for name in ("ap_rare", "ap_common", "ap_frequent")):
            for name in ("ap_rare", "ap_common", "ap_frequent"):
                del values[name]
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        """A table, one row per class and one for all, and the means by size below."""
        width = max(len("class"), *map(len, self.class_names))
        rows = [f"{'class':<{width}}   boxes      AP    AP50"]
        for name, count, ap, ap50 in zip(self.class_names, self.counts, self.per_class, self.per_class_50):
            rows.append(f"{name:<{width}}  {count:>6}  {_text(ap):>6}  {_text(ap50):>6}")
        rows.append(f"{'all':<{width}}  {self.num_boxes:>6}  {_text(self.ap):>6}  {_text(self.ap50):>6}")
        means = {"AP75": self.ap75, "APs": self.ap_small, "APm": self.ap_medium, "APl": self.ap_large}
        if (self.ap_rare, self.ap_common, self.ap_frequent) != (None, None, None):
            means |= {"APr": self.ap_rare, "APc": self.ap_common, "APf": self.ap_frequent}
        rows.append("  ".join(f"{name} {_text(value)}" for name, value in means.items()))
        return "\n".join(rows)


@dataclass(frozen=True)
class OdinwAverage:
    """The mean AP over tasks, as ODinW reports it: every task counts the same, however many pictures it has.

    Attributes:
        tasks: name -> AP in percent.
    """

    tasks: dict[str, float]

    @classmethod
    def of(cls, results: Mapping[str, DetectionMetrics | float]) -> OdinwAverage:
        """Raises DataError if there are no tasks, or one has no AP."""
        values = {
            name: result.ap if isinstance(result, DetectionMetrics) else result for name, result in results.items()
        }
        if not values:
            raise DataError("no tasks to average")
        if absent := [name for name, value in values.items() if value is None or not math.isfinite(value)]:
            raise DataError(f"no AP of {', '.join(absent)}: a task without boxes cannot be averaged")
        return cls({name: float(value) for name, value in values.items()})

    @property
    def mean(self) -> float:
        return sum(self.tasks.values()) / len(self.tasks)

    @property
    def median(self) -> float:
        return float(np.median(list(self.tasks.values())))

    def to_json(self) -> str:
        return json.dumps({"tasks": self.tasks, "mean": self.mean, "median": self.median}, indent=2)

    def __str__(self) -> str:
        width = max(len("median"), *map(len, self.tasks))
        rows = [*self.tasks.items(), ("mean", self.mean), ("median", self.median)]
        return "\n".join([f"{'task':<{width}}      AP", *(f"{name:<{width}}  {value:6.2f}" for name, value in rows)])


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mean(precision: np.ndarray) -> float | None:
    """Mean of a part of the precision table in percent; -1 marks what does not exist."""
    valid = precision[precision > -1]
    return float(valid.mean() * 100) if valid.size else None


def _check(
    items: Sequence[BoxedItem],
    predictions: Sequence[BoxPrediction],
    class_names: Sequence[str],
    frequencies: Sequence[str],
    limit: int,
) -> None:
    faults = []
    if frequencies and len(frequencies) != len(class_names):
        faults.append(f"{len(class_names)} classes need as many frequencies, got {len(frequencies)}")
    if unknown := sorted(set(frequencies) - {"r", "c", "f"}):
        faults.append(f"frequencies must be 'r', 'c' or 'f', not {unknown}")
    if limit < 1:
        faults.append(f"max_detections must be at least 1, not {limit}")
    if not class_names:
        faults.append("AP needs classes; phrases are not measured by it")
    if faults:
        raise ConfigError(*faults)
    if not items:
        raise DataError("no pictures to measure: the split is empty")
    if len(items) != len(predictions):
        raise DataError(f"{len(items)} pictures need one prediction each, got {len(predictions)}")
    ids = [item.image_id for item in items]
    if len(set(ids)) < len(ids):
        raise DataError("pictures must be different; an image id occurs twice")
    for item, prediction in zip(items, predictions):
        boxes, scores, labels = (np.asarray(x) for x in (prediction.boxes, prediction.scores, prediction.labels))
        if scores.ndim != 1 or labels.shape != scores.shape or boxes.shape != (len(scores), 4):
            shapes = f"{boxes.shape}, {scores.shape}, {labels.shape}"
            raise DataError(f"image {item.image_id}: expected (n, 4) boxes, (n,) scores and labels; got {shapes}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise DataError(f"image {item.image_id}: predicted boxes or scores hold NaN or infinity")
        for what, values in (("predicted", labels), ("true", np.asarray(item.labels))):
            if len(values) and not (0 <= values.min() and values.max() < len(class_names)):
                span = f"{values.min()}..{values.max()}"
                raise DataError(f"image {item.image_id}: {what} labels must be 0..{len(class_names) - 1}; got {span}")


def _as_coco(
    items: Sequence[BoxedItem],
    predictions: Sequence[BoxPrediction],
    class_names: Sequence[str],
    frequencies: Sequence[str],
    per_image: int | None,
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """(COCO annotations, list of detections) with image, category and annotation ids that count from 1."""
    images, annotations, found = [], [], []
    for number, (item, prediction) in enumerate(zip(items, predictions), start=1):
        image = {"id": number, "width": item.width, "height": item.height}
        if frequencies:
            image["neg_category_ids"] = [label + 1 for label in item.neg_labels]
            image["not_exhaustive_category_ids"] = [label + 1 for label in item.not_exhaustive_labels]
        images.append(image)
        for box, label, crowd, area in zip(_xywh(item.boxes), item.labels, item.iscrowd, item.area):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": box,
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
        scores = np.asarray(prediction.scores, dtype=np.float64)
        best = np.argsort(-scores, kind="stable")[:per_image]
        boxes, labels = _xywh(prediction.boxes), np.asarray(prediction.labels)
        found += [
            {"image_id": number, "category_id": int(labels[i]) + 1, "bbox": boxes[i], "score": float(scores[i])}
            for i in best
        ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    for category, frequency in zip(categories, frequencies):
        category["frequency"] = frequency
    return {"images": images, "annotations": annotations, "categories": categories}, found


def _xywh(boxes: Any) -> list[list[float]]:
    """(n, 4) xyxy -> n lists [x, y, width, height]."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _precision(truth: dict[str, Any], found: list[dict[str, Any]], lvis: bool, limit: int) -> np.ndarray:
    """(10 IoUs, 101 recalls, C classes, 4 sizes) precision; -1 where there are no boxes."""
    classes = len(truth["categories"])
    if not found:  # the library takes no empty list; nothing found is precision 0 wherever there is something to find
        table = np.full((10, 101, classes, len(SIZES)), -1.0)
        limits = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))
        for box in truth["annotations"]:
            inside = [low <= box["area"] <= high for low, high in limits]
            if not box["iscrowd"]:
                table[:, :, box["category_id"] - 1, inside] = 0
        return table
    from faster_coco_eval import COCO, COCOeval_faster

    known = COCO(truth)
    evaluation = COCOeval_faster(known, known.loadRes(found), "bbox", lvis_style=lvis)
    if lvis:  # all of a picture's 300 may be of one class
        evaluation.params.maxDets = [limit]
    else:
        evaluation.params.maxDets = [1, 10, limit] if limit > 10 else [limit]
    evaluation.evaluate()
    evaluation.accumulate()
    table = np.asarray(evaluation.eval["precision"])
    return table.reshape(10, 101, classes, len(SIZES), -1)[..., -1]
