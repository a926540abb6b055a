"""How good a detector is: AP of classes, recall of phrases; picture by picture on disk so that it can go on.

out/detections.jsonl    first line: what was measured; then one line per picture, written as they are found
out/metrics.json        at the end
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .backbones.base import check_limits
from .data.base import images_per_split, in_order_of
from .data.detection.base import DetectionData, DetectionItem
from .data.detection.captions import CaptionChoice, ItemPhrases, OneCaption
from .data.detection.flickr30k import by_occurrence
from .data.detection.torch_dataset import DetectionDataset, check_detection_images
from .data.images import content_stamp
from .errors import ConfigError, DataError, shown
from .metrics import BoxPrediction, DetectionMetrics, PhraseRecall
from .model import PromptedDetector
from .names import differences
from .processes import ALONE, Processes
from .reading import parse_json
from .training.detection import detection_test_transform, find_boxes, measured_limits, padding_note
from .training.detection_features import DetectionCollator
from .writing import write_text

logger = logging.getLogger(__name__)

DETECTIONS, METRICS = "detections.jsonl", "metrics.json"


@dataclass(frozen=True)
class _Result:
    metrics: Any
    predictions: tuple[BoxPrediction, ...] = field(repr=False)
    seconds: float
    items: tuple[DetectionItem, ...] = field(repr=False, default=())
    broken: dict[str, str] = field(default_factory=dict)
    resumed: int = 0
    note: str = ""

    def to_json(self) -> str:
        values = {**self.metrics.to_dict(), "seconds": self.seconds, "broken": self.broken, "resumed": self.resumed}
        return json.dumps(values, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        """The metrics' table, and what was measured."""
        skipped = f"; {len(self.broken)} images could not be read" if self.broken else ""
        earlier = f"; {self.resumed} of them found before" if self.resumed else ""
        note = f"\n{self.note}" if self.note else ""
        return f"{self.metrics}\n{self._count()} in {self.seconds:.1f} s{earlier}{skipped}{note}"

    def _count(self) -> str:
        raise NotImplementedError


ResultT = TypeVar("ResultT", bound=_Result)


@dataclass(frozen=True)
class DetectionResult(_Result):
    """What `evaluate_detector` found.

    Attributes:
        metrics: average precisions in percent, over all classes and per class.
        predictions: boxes, scores and labels of each item in `items`.
        seconds: wall time, decoding included; of this call, where earlier ones had found some already.
        items: the pictures that were read, in their order.
        broken: name of each picture that could not be read (left out of everything else) -> why.
        resumed: pictures whose boxes an earlier call had found.
        note: a sentence on what the numbers depend on beside model and data; "" if on nothing.
    """

    metrics: DetectionMetrics

    @property
    def ap(self) -> float | None:
        """AP in percent; None if no class has boxes."""
        return self.metrics.ap

    @property
    def ap50(self) -> float | None:
        """AP at an IoU of 0.50 in percent; None if no class has boxes."""
        return self.metrics.ap50

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.metrics.class_names

    def _count(self) -> str:
        return f"{self.metrics.num_images} images"


@dataclass(frozen=True)
class PhraseResult(_Result):
    """What `evaluate_phrases` found; as `DetectionResult`, but:

    Attributes:
        metrics: recalls in percent.
        items: the sentences that were read, each place of a phrase as a phrase of its own.
    """

    metrics: PhraseRecall

    def _count(self) -> str:
        return f"{self.metrics.num_phrases} phrases of {self.metrics.num_sentences} sentences"


def evaluate_detector(
    model: PromptedDetector,
    data: DetectionData,
    split: str = "test",
    batch_size: int = 1,
    workers: int = 2,
    out: str | Path | None = None,
    progress: bool = True,
    max_broken_share: float = 0.01,
    processes: Processes = ALONE,
    **limits: float,
) -> DetectionResult:
    """Find boxes in labelled pictures at the size of testing and measure AP.

    Classes that one caption cannot hold are looked for in several. The model is evaluated in eval mode and left in the
    mode it was in.

    Args:
        data: its classes are the model's, in any order; with `frequencies`, LVIS's rules count.
        split: "train", "val" or "test".
        batch_size: pictures per forward pass; they are padded to the largest, so 1 is the plainest.
        workers: processes that decode; 0 decodes in this one.
        out: folder that keeps boxes as they are found, and the metrics; called again, it goes on where it stopped.
            Pictures that have changed meanwhile are looked at anew.
        max_broken_share: 0..1; pictures that cannot be read are named and left out up to this share.
        processes: of which each looks at its share; the first writes into `out`, each returns the whole.
        limits: score_threshold, nms_threshold, max_detections; the detector's own if left out, but 300 boxes for LVIS.

    Raises:
        ConfigError: other classes than the model's, or phrases. DataError: no pictures, too many broken ones, or `out`
            holds boxes of another model, data set or limits.
    """
    check_limits(limits)
    data = in_order_of(model.class_names, data)
    items = _items(model, data, split)
    limits = measured_limits(data.frequencies) | limits
    # no loss is computed, so any caption serves; boxes are those of all classes
    captions = OneCaption(model.method.all_captions[0])
    identity = _identity(model, data, split, batch_size, limits, [c.text for c in model.method.all_captions])
    count = lambda good, found: DetectionMetrics.measure(good, found, data.class_names, data.frequencies)
    return _measure(
        DetectionResult,
        count,
        model,
        items,
        captions,
        identity,
        out,
        batch_size,
        workers,
        progress,
        max_broken_share,
        processes,
    )


def evaluate_phrases(
    model: PromptedDetector,
    data: DetectionData,
    split: str = "test",
    batch_size: int = 1,
    workers: int = 2,
    out: str | Path | None = None,
    progress: bool = True,
    max_broken_share: float = 0.01,
    **limits: float,
) -> PhraseResult:
    """Find the phrases of sentences (Flickr30k Entities) in their pictures and measure recall@1, @5 and @10.

    The classes that the model was attached with play no part. Arguments are those of `evaluate_detector`.

    Raises:
        ConfigError: the data have classes instead of phrases. ClassNamesError: a method that was learnt for one
            caption, as text_prompt. DataError: no sentence with phrases, too many broken pictures, or `out` holds boxes
            of another model, data set or limits.
    """
    check_limits(limits)
    _check(model, split)
    if data.class_names:
        raise ConfigError(f"{data.name} has classes instead of phrases; measure it with evaluate_detector")
    items = [by_occurrence(item) for item in getattr(data, split) if item.phrases]
    if not items:
        raise DataError(
            f"{data.name} has no {split} sentence whose phrases have boxes; it has {images_per_split(data)}"
        )
    captions = ItemPhrases(model.backbone.tokenizer, model.backbone.max_text_tokens)
    identity = _identity(model, data, split, batch_size, limits, "each sentence")
    count = PhraseRecall.measure
    return _measure(
        PhraseResult, count, model, items, captions, identity, out, batch_size, workers, progress, max_broken_share
    )


@torch.random.fork_rng(devices=())  # data loaders draw a seed from torch's generator, whatever they are for
def _measure(
    kind: type[ResultT],
    count: Callable[[Sequence[DetectionItem], Sequence[BoxPrediction]], Any],
    model: PromptedDetector,
    items: Sequence[DetectionItem],
    captions: CaptionChoice,
    identity: dict[str, Any],
    out: str | Path | None,
    batch_size: int,
    workers: int,
    progress: bool,
    max_broken_share: float,
    processes: Processes = ALONE,
) -> ResultT:
    """Find what `identity` describes, count it, and write both into `out`; `kind` is what is returned."""
    start = time.perf_counter()
    with processes.together():
        good, report = check_detection_images(items, workers, max_broken_share, processes)
    if not good:
        raise DataError(f"none of the {len(items)} pictures can be read; first: {next(iter(report.broken.values()))}")
    with processes.together(), _Memory(out if processes.first else None, identity, good) as memory:
        memory.found = processes.gather(memory.found)[0]
        resumed = len(memory.found)
        waiting = [item for item in good if item.short_key not in memory.found]
        own = processes.share_batches(waiting, batch_size)
        batches = _find(model, own, captions, batch_size, workers, identity["limits"])
        rounds = -(-len(waiting) // (batch_size * processes.count))
        with tqdm(total=len(waiting), desc="evaluating", unit="img", disable=not progress, leave=False) as bar:
            for _ in range(rounds):
                for part, boxes in filter(None, processes.gather(next(batches, None))):
                    memory.add(part, boxes)
                    bar.update(len(part))
        found = tuple(memory.found[item.short_key] for item in good)
    metrics = count(good, found)
    note = padding_note(good, batch_size, detection_test_transform(model.backbone), "a batch size of 1")
    result = kind(metrics, found, time.perf_counter() - start, tuple(good), report.broken, resumed, note)
    if out is not None and processes.first:
        write_text(Path(out) / METRICS, result.to_json() + "\n")
    return result


def _check(model: PromptedDetector, split: str) -> None:
    if not isinstance(model, PromptedDetector):
        raise ConfigError("evaluate_detector measures detectors; a classifier is measured by evaluate")
    if split not in ("train", "val", "test"):
        raise ConfigError(f"split must be train, val or test, not {split!r}")


def _items(model: PromptedDetector, data: DetectionData, split: str) -> tuple[DetectionItem, ...]:
    _check(model, split)
    if not data.class_names:
        raise ConfigError(f"{data.name} has phrases instead of classes; measure their recall with evaluate_phrases")
    if tuple(data.class_names) != model.class_names:
        raise ConfigError(
            f"the model finds {len(model.class_names)} classes, {data.name} has other {len(data.class_names)} "
            f"({differences(model.class_names, data.class_names)}); call set_classes(data.class_names)"
        )
    items = getattr(data, split)
    if not items:
        raise DataError(
            f"{data.name} has no {split} pictures; choose another split (--split): it has {images_per_split(data)}"
        )
    return items


def _find(
    model: PromptedDetector,
    items: Sequence[DetectionItem],
    captions: CaptionChoice,
    batch_size: int,
    workers: int,
    limits: dict[str, float],
) -> Iterator[tuple[list[DetectionItem], list[BoxPrediction]]]:
    """Batches of pictures and what is found in them."""
    if not items:
        return
    backbone = model.backbone
    images = DetectionDataset(items, detection_test_transform(backbone), backbone.normalize, captions)
    workers = min(workers, -(-len(items) // batch_size))
    loader = DataLoader(images, batch_size, num_workers=workers, collate_fn=DetectionCollator(backbone.pad))
    phrases = isinstance(captions, ItemPhrases)
    for number, batch in enumerate(loader):
        part = list(items[number * batch_size : (number + 1) * batch_size])
        yield part, find_boxes(model, batch, phrases, **limits)


def _identity(
    model: PromptedDetector,
    data: DetectionData,
    split: str,
    batch_size: int,
    limits: dict[str, float],
    captions: list[str] | str,
) -> dict[str, Any]:
    """What found boxes depend on."""
    learnt = hashlib.sha256()
    for name, tensor in sorted(model.method.artifact_state().items()):
        learnt.update(f"{name}{tuple(tensor.shape)}".encode())
        learnt.update(tensor.detach().cpu().float().contiguous().numpy())
    return {
        "backbone": model.backbone.fingerprint(),
        "method": model.method_name,
        "settings": model.method.config.to_dict(),
        "learnt": learnt.hexdigest()[:16],
        "captions": captions,
        "size": detection_test_transform(model.backbone).key(),
        "data": data.name,
        "split": split,
        "batch_size": batch_size,
        "limits": limits,
    }


class _Memory:
    """Boxes of pictures by `short_key`: what a file holds, and what is added to it.

    Boxes of another picture under the same name are found anew.
    """

    def __init__(self, folder: str | Path | None, identity: dict[str, Any], items: Sequence[DetectionItem]):
        self.path = Path(folder) / DETECTIONS if folder is not None else None
        self.identity = json.loads(json.dumps(identity))
        self.stamps = {item.short_key: content_stamp(item) for item in items} if folder is not None else {}
        self.found: dict[str, BoxPrediction] = {}
        self.file: IO[str] | None = None

    def __enter__(self) -> _Memory:
        if self.path is None:
            return self
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        kept = [json.dumps(self.identity, ensure_ascii=False)]
        if lines:
            self._check(lines[0])
            for line in lines[1:]:
                if self._read(line):
                    kept.append(line)
        write_text(self.path, "\n".join(kept) + "\n")  # without a last line that was cut off
        self.file = self.path.open("a", encoding="utf-8")
        return self

    def _check(self, line: str) -> None:
        try:
            saved = parse_json(line, str(self.path), nonfinite=True)
        except DataError:
            saved = {}
        saved = saved if isinstance(saved, dict) else {}
        if other := [name for name, value in self.identity.items() if saved.get(name) != value]:
            raise DataError(
                f"{self.path} holds boxes found with another {other[0]}: {shown(saved.get(other[0]), 60)}, now "
                f"{shown(self.identity[other[0]], 60)}; choose another folder, or delete the file to start anew"
            )

    def _read(self, line: str) -> bool:
        try:
            row = parse_json(line, str(self.path))
            boxes = np.array(row["boxes"], dtype=np.float32).reshape(-1, 4)
            found = BoxPrediction(boxes, np.array(row["scores"], np.float32), np.array(row["labels"], np.int64))
            same = row.get("content", "") == self.stamps.get(row["image"])
        except (ValueError, KeyError, TypeError, OverflowError):  # a DataError is a ValueError
            return False
        if not same:
            return False
        if not len(found.boxes) == len(found.scores) == len(found.labels):
            return False
        self.found[row["image"]] = found
        return True

    def add(self, items: Sequence[DetectionItem], found: Sequence[BoxPrediction]) -> None:
        for item, boxes in zip(items, found):
            self.found[item.short_key] = boxes
            if self.file is not None:
                row = {name: np.asarray(value).tolist() for name, value in dataclasses.asdict(boxes).items()}
                about = {"image": item.short_key, "content": self.stamps[item.short_key], "image_id": item.image_id}
                self.file.write(json.dumps(about | row) + "\n")
        if self.file is not None:
            self.file.flush()

    def __exit__(self, *_: Any) -> None:
        if self.file is not None:
            self.file.close()


__all__ = ["DetectionResult", "PhraseResult", "evaluate_detector", "evaluate_phrases"]
