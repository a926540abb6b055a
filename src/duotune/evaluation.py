"""How good a model is on labelled images."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .data.base import ClassificationData, ImageItem
from .data.torch_dataset import check_broken_share
from .errors import ClassNamesError, ConfigError, DataError
from .metrics import BaseToNew, ClassificationMetrics
from .model import PromptedDetector, PromptedModel
from .names import differences, places, same_classes
from .processes import ALONE, Processes
from .settings import check_whole
from .training.cache import FeatureCache
from .training.features import (
    PixelBatch,
    SafeImages,
    as_input,
    evaluation_transform,
    frozen_features,
    image_batches,
)


@dataclass(frozen=True)
class ClassificationResult:
    """What `evaluate` found.

    Attributes:
        metrics: accuracies in percent, over all images and per class.
        predictions: predicted label of each item in `items`.
        confidences: its probability, 0..1.
        seconds: wall time, decoding included.
        items: the images that were read, in their order.
        broken: name of each image that could not be read (left out of everything else) -> why.
    """

    metrics: ClassificationMetrics
    predictions: tuple[int, ...]
    confidences: tuple[float, ...]
    seconds: float
    items: tuple[ImageItem, ...] = field(repr=False, default=())
    broken: dict[str, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Percent of images classified right."""
        return self.metrics.accuracy

    @property
    def per_class(self) -> tuple[float | None, ...]:
        """Percent per class; None for a class without images."""
        return self.metrics.per_class

    @property
    def num_images(self) -> int:
        return self.metrics.num_images

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.metrics.class_names

    def to_json(self) -> str:
        values = dataclasses.asdict(self.metrics)
        values |= {"seconds": self.seconds, "broken": self.broken}
        names = self.class_names
        values["predictions"] = [
            {"image": item.key, "label": names[item.label], "predicted": names[p], "confidence": round(c, 6)}
            for item, p, c in zip(self.items, self.predictions, self.confidences)
        ]
        return json.dumps(values, indent=2, ensure_ascii=False)

    def __str__(self) -> str:
        """A table, one row per class and one for all."""
        skipped = f"; {len(self.broken)} images could not be read" if self.broken else ""
        return f"{self.metrics}\n{self.num_images} images in {self.seconds:.1f} s{skipped}"

    def plot(self, path: str | Path) -> Path:
        """Draw per-class accuracies as bars, worst first, into an image file."""
        from matplotlib.figure import Figure

        rows = sorted((value, name) for value, name in zip(self.per_class, self.class_names) if value is not None)
        figure = Figure(figsize=(6, 1 + 0.22 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh([name for _, name in rows], [value for value, _ in rows])
        axes.axvline(self.accuracy, color="black", linewidth=1)
        axes.set(xlabel=f"accuracy in % (line: all images, {self.accuracy:.1f})", xlim=(0, 100))
        figure.savefig(path)
        return Path(path)


def evaluate(
    model: PromptedModel,
    items: Sequence[ImageItem] | ClassificationData,
    batch_size: int = 64,
    workers: int = 2,
    cache: FeatureCache | None = None,
    progress: bool = True,
    max_broken_share: float = 0.01,
    processes: Processes = ALONE,
) -> ClassificationResult:
    """Classify labelled images under the test transform and count.

    Methods that read frozen features alone compute text features once and see no pixel that the cache
    already knows. The model is evaluated in eval mode and left in the mode it was in.

    Args:
        items: labelled images: a data set (its test images are meant), or one of its splits. Their labels are read by
            name, so its classes may come in another order than the model's. Labels of any other sequence index
            `model.class_names`.
        batch_size: images per forward pass. workers: processes that decode; 0 decodes in this one.
        cache: of frozen features; None computes them for this call.
        max_broken_share: 0..1; images that cannot be read are named and left out up to this share.
        processes: of which each measures its share, in the batches that one process would make; each returns the whole.

    Raises:
        ConfigError: the model is a detector, or a number is out of range.
        DataError: no items, labels beyond the model's classes, or too many broken images. ClassNamesError: a data set
            of classes that the model does not have.
    """
    if isinstance(model, PromptedDetector):
        raise ConfigError(
            f"{model.backbone.name} is a detector, and the images are labelled without boxes; give it COCO annotations"
        )
    check_whole(1, batch_size=batch_size)
    check_whole(0, workers=workers)
    start = time.perf_counter()
    if isinstance(items, ClassificationData):
        items = items.test
    names, items = getattr(items, "class_names", None), tuple(items)
    if not items:
        raise DataError("there are no images to evaluate on; does the data set have this split?")
    if (largest := max(item.label for item in items)) >= len(model.class_names):
        raise DataError(f"the model knows {len(model.class_names)} classes, but an image has label {largest}")
    if names is not None and tuple(names) != model.class_names:
        items = relabelled(items, names, model.class_names)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=()):  # a data loader draws a seed, whatever it is for
            how = batch_size, workers, cache, progress, max_broken_share, processes
            kept, predictions, confidences, broken = _answers(model, items, *how)
    finally:
        model.train(was_training)
    if not kept:
        raise DataError(f"none of the {len(items)} images can be read; first reason: {next(iter(broken.values()))}")
    metrics = ClassificationMetrics.measure(predictions, [item.label for item in kept], model.class_names)
    seconds = time.perf_counter() - start
    return ClassificationResult(
        metrics, tuple(predictions.tolist()), tuple(confidences.tolist()), seconds, kept, broken
    )


def relabelled(items: Sequence[ImageItem], names: Sequence[str], wanted: Sequence[str]) -> tuple[ImageItem, ...]:
    """Items whose labels stand for `names`, labelled with places in `wanted`.

    Raises:
        ClassNamesError: there are names that are not wanted.
    """
    place = places(names, wanted)
    if place is None:
        raise ClassNamesError(
            f"the model has {len(wanted)} classes, the images have other {len(names)} ({differences(wanted, names)}); "
            "call set_classes with theirs"
        )
    return tuple(dataclasses.replace(item, label=place[item.label]) for item in items)


def _answers(
    model: PromptedModel, items, batch_size, workers, cache, progress, max_broken_share, processes
) -> tuple[tuple[ImageItem, ...], Tensor, Tensor, dict[str, str]]:
    """The images that can be read, their predicted labels (N,) and confidences (N,), and the others with reasons."""
    with processes.together():
        done, logits, broken = _logits(model, items, batch_size, workers, cache, progress, max_broken_share, processes)
        confidences, predictions = logits.float().softmax(-1).max(-1)
        own = list(zip(done, predictions.tolist(), confidences.tolist())), broken
        rows: list[tuple[int, int, float]] = []
        reasons: dict[str, str] = {}
        for theirs, faults in processes.gather(own):
            rows += theirs
            reasons |= faults
        broken = {item.key: reasons[item.key] for item in items if item.key in reasons}
        check_broken_share(broken, len(items), max_broken_share)
    rows.sort()
    kept = tuple(items[i] for i, _, _ in rows)
    return kept, torch.tensor([p for _, p, _ in rows]), torch.tensor([c for _, _, c in rows]), broken


def _logits(
    model: PromptedModel, items, batch_size, workers, cache, progress, max_broken_share, processes
) -> tuple[list[int], Tensor, dict[str, str]]:
    """Numbers of the images that this process has read, their logits (n, C), and why it could not read others."""
    method, backbone = model.method, model.backbone
    transform, features, broken = evaluation_transform(backbone), None, {}
    good, order, none = items, list(range(len(items))), torch.zeros(0, len(model.class_names))
    # with no cache, features that pixels are needed for anyway are cheaper in the same pass
    if method.needs_frozen_features and (cache is not None or not method.needs_pixels):
        frozen = frozen_features(
            backbone,
            items,
            transform,
            cache=cache,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
            max_broken_share=max_broken_share,
            processes=processes,
        )
        good, features, broken = frozen.items, frozen.features[:, 0], dict(frozen.broken)
        order = [i for i in order if items[i].key not in broken]
    own = processes.share_batches(range(len(good)), batch_size)
    if features is not None and not method.needs_pixels:
        parts = features[own].split(batch_size) if own else ()
        rows = [model(frozen_features=part.to(backbone.device))["logits"].cpu() for part in parts]
        return [order[i] for i in own], torch.cat(rows) if rows else none, broken
    rows, done = [], []
    with tqdm(total=len(own), desc="evaluating", unit="img", disable=not progress, leave=False) as bar:
        for batch in image_batches(SafeImages(good, transform), own, batch_size, workers):
            broken.update(batch.broken)
            if len(batch.index):
                rows.append(_forward(model, batch, features))
                done += batch.index.tolist()
            bar.update(batch.count)
    return [order[i] for i in done], torch.cat(rows) if rows else none, broken


def _forward(model: PromptedModel, batch: PixelBatch, features: Tensor | None) -> Tensor:
    inputs: dict[str, Any] = {"pixel_values": as_input(model.backbone, batch.pixel_values)}
    if features is not None:
        inputs["frozen_features"] = features[batch.index].to(model.backbone.device)
    return model(**inputs)["logits"].cpu()


def base_to_new(model: PromptedModel, data: ClassificationData, **options: Any) -> BaseToNew:
    """Accuracy on the test images of the base classes and of the new ones, which the model has not seen.

    Args:
        model: trained on `data.subset("base")`; it is left as it is, new classes are asked of a copy of its method.
        data: with all classes.
        options: of `evaluate`.

    Raises:
        ConfigError: the model's classes are not the base classes. ClassNamesError: the method cannot take others
            (a linear probe, a class-specific context).
    """
    base, new = data.subset("base"), data.subset("new")
    if same_classes(model.class_names, base.class_names) is None:
        raise ConfigError(
            f"expected a model of the {len(base.class_names)} base classes of {data.name}; of its classes, "
            f"{differences(base.class_names, model.class_names)}"
        )
    if model.method.config.bound_to_classes:
        raise ClassNamesError(
            f"what this {model.method_name} learnt belongs to the base classes one by one; it cannot classify into "
            "new ones"
        )
    on_base = evaluate(model, base.test, **options).accuracy
    other = type(model)(model.backbone, copy.deepcopy(model.method), model.method_name)
    on_new = evaluate(other.set_classes(new.class_names), new.test, **options).accuracy
    return BaseToNew(on_base, on_new)
