"""Training a detector: `PromptTrainer` with pictures of many sizes, boxes and captions, and AP on validation pictures.

    picture ─► resize, flip (view v) ─► pixels ─┐
      └─► MapStore (frozen image tower) ────────┤ feature maps
    classes ─► caption ─► positive map ─────────┴─► PromptedDetector.forward ─► the detector's losses

What differs from a classifier's training: the arguments' defaults, the data sets, the batches, and what is measured.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..backbones.base import Detector
from ..data.base import in_order_of
from ..data.detection.base import DetectionData, DetectionItem
from ..data.detection.captions import CaptionChoice, ItemPhrases, OneCaption, SampledClasses
from ..data.detection.torch_dataset import DetectionDataset, check_detection_images
from ..data.detection.transforms import DetectionTransform, no_augmentation
from ..errors import ConfigError, TrainingError
from ..metrics import BoxPrediction, DetectionMetrics
from ..metrics.detection import LVIS_MAX_DETECTIONS
from ..model import PromptedDetector
from .arguments import PromptTrainingArguments
from .detection_features import DetectionCollator, MapsDataset, MapStore, SizeGroupedSampler, with_maps
from .order import EpochSampler
from .trainer import PromptTrainer

logger = logging.getLogger(__name__)

TRAIN_SIDES = (480, 560, 640, 720, 800)  # pixels, GLIP's short sides of training for a test size of 800


@dataclass
class DetectionTrainingArguments(PromptTrainingArguments):
    """`PromptTrainingArguments` for a detector.

    Changed defaults, each with its reason:
        num_train_epochs 12: the usual length of a detector's schedule; with a few shots take more.
        per_device_train_batch_size 2: a picture of 800 x 1333 fills memory; SDPT's authors use 1.
        per_device_eval_batch_size 1: pictures are padded to the largest of their batch, and padding is seen.
        optim "adamw_torch", weight_decay 1e-4, max_grad_norm 1.0: those of GLIP's configurations. A method may set the
            decay of its own parameters.

    Ours:
        short_sides: short sides in pixels, one drawn per training picture; None: GLIP's 480, 560, ... 800 in proportion
            to the backbone's own.
        flip: probability of a flip left-right, 0..1.
        augment: False: the size of testing, never flipped.
        views: fixed views per picture that epochs take in turn, so that the frozen image tower's feature maps can be
            kept; 0: fresh ones every epoch.
        cache_dir, cache_gb: where feature maps are kept (None: in memory, for this run alone) and how much of them.
            What finds no room is computed anew in every epoch.
        num_shots: pictures per class, drawn as GLIP draws them; 0: all.
        metric_for_best: "ap", "ap50" or "loss" of the validation pictures.
        score_threshold: of the boxes that AP counts; None: the backbone's.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("ap", "ap50", "loss")

    num_train_epochs: float = field(default=12.0, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Pictures per step and device."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "Pictures per evaluation step and device."})
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer; GLIP uses AdamW."})
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clip gradients to this norm; 0 does not clip."})
    metric_for_best: str | None = field(default=None, metadata={"help": "ap, ap50 or loss: keep the best epoch."})

    short_sides: list[int] | None = field(default=None, metadata={"help": "Short sides of training pictures."})
    flip: float = field(default=0.5, metadata={"help": "Probability of a flip, 0..1."})
    score_threshold: float | None = field(default=None, metadata={"help": "Least score of boxes that AP counts."})

    def faults(self):
        yield from super().faults()
        if self.short_sides is not None and (not self.short_sides or min(self.short_sides) < 1):
            yield f"short_sides must be one or more lengths in pixels, not {self.short_sides}"
        if not 0 <= self.flip <= 1:
            yield f"flip must be a probability in 0..1, not {self.flip}"
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            yield f"score_threshold must be in 0..1, not {self.score_threshold}"


def detection_train_transform(backbone: Detector, args: DetectionTrainingArguments | None = None) -> DetectionTransform:
    """Resize and flip of training pictures; without augmentation that of testing."""
    if args is not None and not args.augment:
        return detection_test_transform(backbone)
    sides = args.short_sides if args is not None else None
    if sides is None:
        sides = [round(side * backbone.short_side / TRAIN_SIDES[-1]) for side in TRAIN_SIDES]
    longest = max(backbone.long_side, *sides)
    return DetectionTransform(tuple(sides), longest, args.flip if args is not None else 0.5)


def detection_test_transform(backbone: Detector) -> DetectionTransform:
    """The size that the backbone is tested at."""
    return no_augmentation(backbone.short_side, max(backbone.long_side, backbone.short_side))


def training_captions(model: PromptedDetector, data: DetectionData) -> CaptionChoice:
    """The caption of all classes where one holds them; else captions of a picture's classes and some absent ones.

    Data with phrases instead of classes brings its own sentences.
    """
    method, backbone = model.method, model.backbone
    if not data.class_names:
        return ItemPhrases(backbone.tokenizer, backbone.max_text_tokens)
    if len(method.all_captions) == 1:
        return OneCaption(method.caption)
    return SampledClasses(
        data.class_names,
        backbone.tokenizer,
        backbone.max_text_tokens,
        prompts=method.prompts,
        style=backbone.caption_style,
    )


class DetectionTrainer(PromptTrainer):
    """Trains the method of a `PromptedDetector`; `PromptTrainer(model, ...)` of a detector is one of these.

    Args:
        model: from `attach`.
        args: see `DetectionTrainingArguments`.
        data: train on `data.train`, validate on `data.val`; draws `args.num_shots` per class if that is not 0.
        train_dataset, eval_dataset: instead of `data`: datasets of rows as `DetectionDataset` has them.
        transform: of training pictures; None for GLIP's resize and flip.
        others: as in `transformers.Trainer`.

    Attributes:
        maps: the `MapStore` of kept feature maps, or None.
        broken: name of each picture that was skipped -> why.
    """

    def __init__(
        self,
        model: PromptedDetector,
        args: DetectionTrainingArguments,
        data: DetectionData | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        transform: DetectionTransform | None = None,
        **others: Any,
    ):
        if not isinstance(model, PromptedDetector):
            raise ConfigError("DetectionTrainer trains detectors; a classifier is trained by PromptTrainer")
        if not isinstance(args, DetectionTrainingArguments):
            raise ConfigError(f"a detector trains with DetectionTrainingArguments, not {type(args).__name__}")
        if data is not None and not isinstance(data, DetectionData):
            raise ConfigError(f"a detector trains on DetectionData (pictures with boxes), not {type(data).__name__}")
        self.maps: MapStore | None = None
        if data is not None:
            data = in_order_of(model.class_names, data)
        self._detection_data = data
        self._frequencies: tuple[str, ...] = tuple(data.frequencies) if data is not None else ()
        self._has_classes = data is None or bool(data.class_names)
        if not self._has_classes and args.metric_for_best in ("ap", "ap50"):
            raise ConfigError(f"{data.name} has phrases instead of classes; choose metric_for_best='loss'")
        others.setdefault("data_collator", DetectionCollator(model.backbone.pad))
        super().__init__(model, args, data, train_dataset, eval_dataset, transform, **others)

    @staticmethod
    def _check_classes(model: PromptedDetector, data: DetectionData) -> None:
        if data.class_names:  # phrases are no classes
            PromptTrainer._check_classes(model, data)

    @staticmethod
    def _label_bytes(item: DetectionItem) -> bytes:
        text = f"{item.caption}\0{item.phrases}\0".encode()
        return b"".join([text, *(values.tobytes() for values in (item.boxes, item.labels, item.iscrowd))])

    def _make_dataset(
        self,
        model: PromptedDetector,
        args: DetectionTrainingArguments,
        items: tuple[DetectionItem, ...],
        transform: DetectionTransform | None,
        training: bool,
    ) -> Dataset:
        method, backbone = model.method, model.backbone
        if training and args.augment:
            transform, views = transform or detection_train_transform(backbone, args), args.views
        else:
            transform, views = transform or detection_test_transform(backbone), 1
        workers, share = args.dataloader_num_workers, args.max_broken_share
        items, report = check_detection_images(items, workers, share, self.processes)
        self._skip(report.broken)
        captions = training_captions(model, self._detection_data)
        images = DetectionDataset(items, transform, backbone.normalize, captions, views, args.seed)
        if not views or not method.needs_frozen_features or method.needs_pixels:
            return images
        if self.maps is None:
            self.maps = MapStore(int(args.cache_gb * 1e9), args.cache_dir, self.processes.count)
        dataset = MapsDataset(images, backbone, self.maps, self.processes)
        dataset.fill(backbone, args.dataloader_num_workers, not args.disable_tqdm and self.processes.first)
        if training and not self.maps.on_disk and not self.maps.full:
            args.dataloader_num_workers, args.dataloader_prefetch_factor = 0, None  # nothing to decode
            args.dataloader_persistent_workers = False
        return dataset

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        epoch = lambda: self.progress.epoch
        if isinstance(dataset, MapsDataset):
            whole = self._train_batch_size * self.args.world_size  # the order is that of one process
            return SizeGroupedSampler(dataset, whole, self.args.data_seed, epoch)
        return EpochSampler(len(dataset), self.args.data_seed, epoch)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return super()._prepare_inputs(with_maps(self.model.backbone, inputs))

    def _identity(self) -> dict[str, Any]:
        sides, flip = self.args.short_sides, self.args.flip
        return {**super()._identity(), "short_sides": sides, "flip": flip}

    # what is measured

    def remarks(self) -> list[str]:
        """As of any trainer, and that padding moves the numbers of validation."""
        items = getattr(self.eval_dataset, "items", ())
        size, test = self.args.per_device_eval_batch_size, detection_test_transform(self.model.backbone)
        note = padding_note(items, size, test, "--training per_device_eval_batch_size=1")
        return [*super().remarks(), *([note] if note else [])]

    def evaluate(
        self, eval_dataset: Dataset | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and AP of validation pictures, as transformers' `Trainer.evaluate` reports metrics.

        Several processes share the batches among them and tell each other what they found: each counts every picture
        once, in batches of the same pictures as one process would make.

        Args:
            eval_dataset: a `DetectionDataset` or `MapsDataset`; None: that of `data.val`.
        """
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None:
            raise ConfigError("there are no validation pictures to measure on")
        limits = measured_limits(self._frequencies)
        if self.args.score_threshold is not None:
            limits["score_threshold"] = self.args.score_threshold
        wanted, size = self.args.metric_for_best, self.args.per_device_eval_batch_size
        batches = [list(range(len(dataset))[start : start + size]) for start in range(0, len(dataset), size)]
        own = self.processes.share(range(len(batches)))
        loader = DataLoader(
            dataset,
            batch_sampler=[batches[number] for number in own],
            num_workers=0 if isinstance(dataset, MapsDataset) else self.args.dataloader_num_workers,
            collate_fn=self.data_collator,
        )
        rows: list[tuple[int, float | None, list[BoxPrediction]]] = []  # number of the batch, its loss, its boxes
        self.model.eval()
        with self.processes.together():
            for number, batch in zip(own, loader):
                batch = self._prepare_inputs(batch)
                labels, captions = batch.pop("labels"), batch.pop("captions")
                loss, boxes = None, []
                if wanted in (None, "loss"):
                    with torch.no_grad(), self.compute_loss_context_manager():
                        loss = self.model(**batch, labels=labels, captions=captions)["loss"].item()
                if wanted != "loss" and self._has_classes:
                    boxes = find_boxes(self.model, batch, **limits)
                rows.append((number, loss, boxes))
        rows = sorted(itertools.chain(*self.processes.gather(rows)), key=lambda row: row[0])
        losses = [loss for _, loss, _ in rows if loss is not None]
        found = [row for _, _, boxes in rows for row in boxes]
        metrics: dict[str, float] = {}
        if losses:
            metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        if found:
            measured = DetectionMetrics.measure(dataset.items, found, self.model.class_names, self._frequencies)
            for name in ("ap", "ap50"):
                value = getattr(measured, name)
                metrics[f"{metric_key_prefix}_{name}"] = float("nan") if value is None else value
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *_: Any, **__: Any) -> Any:
        """Raises ConfigError: boxes are found by `evaluate_detector`, `Predictor.detect` or `model.detect`."""
        raise ConfigError("a detector finds boxes: use evaluate_detector, Predictor(model).detect or model.detect")

    def save_artifact(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Write the artifact; boxes are numbers, which any rounding of weights moves, so none are rounded.

        Args:
            dtype: "float32", or "float16" to round come what may.
        """
        return super().save_artifact(folder, "float32" if dtype == "auto" else dtype)


def measured_limits(frequencies: Sequence[str]) -> dict[str, float]:
    """What a detector's own limits are replaced by where AP is measured: LVIS counts more boxes per picture."""
    return {"max_detections": LVIS_MAX_DETECTIONS} if frequencies else {}


def padding_note(items: Sequence[DetectionItem], batch_size: int, transform: DetectionTransform, how: str) -> str:
    """A sentence if pictures of several sizes are measured in batches, which pads them; else "".

    Args:
        transform: of testing, which draws nothing. how: the way to batches of one picture.
    """
    if batch_size == 1:
        return ""
    sizes = [transform.draw((item.height, item.width), np.random.default_rng(0))[0] for item in items]
    batches = (set(sizes[start : start + batch_size]) for start in range(0, len(sizes), batch_size))
    if all(len(batch) == 1 for batch in batches):
        return ""
    return (
        f"batches of {batch_size} hold pictures of several sizes, which are padded to the largest; padding moves boxes "
        f"and scores, so the numbers depend on the batch size: {how} measures without it"
    )


def find_boxes(
    model: PromptedDetector, batch: Mapping[str, Any], phrases: bool = False, **limits: float
) -> list[BoxPrediction]:
    """What the detector finds in a prepared batch, in pixels of the original pictures.

    Args:
        batch: pixel_values or feature_maps, image_sizes, original_sizes, captions; see `DetectionCollator`.
        phrases: find what the batch's captions name, instead of the model's classes.
        limits: score_threshold, nms_threshold, max_detections; the detector's own if left out.
    """
    names = ["pixel_values", "feature_maps", "image_sizes", "original_sizes", *(["captions"] if phrases else [])]
    inputs = {name: batch.get(name) for name in names}
    if isinstance(inputs["pixel_values"], Tensor):
        weight = next(model.backbone.parameters())
        inputs["pixel_values"] = inputs["pixel_values"].to(weight.device)
    rows = model.find(**inputs, **limits)
    if not all(torch.isfinite(row[name]).all() for row in rows for name in ("boxes", "scores")):
        raise TrainingError("the detector's boxes or scores are not finite; its weights have diverged")
    return [
        BoxPrediction(
            row["boxes"].float().cpu().numpy(), row["scores"].float().cpu().numpy(), row["labels"].cpu().numpy()
        )
        for row in rows
    ]


__all__ = [
    "DetectionTrainer",
    "DetectionTrainingArguments",
    "find_boxes",
    "detection_test_transform",
    "detection_train_transform",
    "training_captions",
]
