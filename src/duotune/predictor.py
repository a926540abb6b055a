"""From pictures to class names and probabilities, or to boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .data.base import ImageItem
from .data.images import open_image, to_rgb
from .data.listing import list_images
from .drawing import draw_boxes
from .errors import ConfigError, DataError, PortError
from .model import PromptedDetector, PromptedModel
from .settings import check_whole, fits
from .training.features import as_input, evaluation_transform


class _Told:
    """What predictions of both kinds say of themselves."""

    source: str
    error: str | None

    def to_json(self) -> str:
        return json.dumps(vars(self), ensure_ascii=False)

    def __str__(self) -> str:
        return f"{self.source}: {self.error or self._found()}"

    def _found(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Prediction(_Told):
    """The likeliest classes of one picture.

    Attributes:
        source: the file's path, or "image 3" for a picture given as an object (counted from 0).
        names: up to top_k class names, likeliest first; empty if the picture cannot be read.
        probabilities: of those, 0..1; softmax over all classes of the model.
        error: why the picture cannot be read, else None.
    """

    source: str
    names: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None

    def _found(self) -> str:
        return ", ".join(f"{name} {100 * p:.1f} %" for name, p in zip(self.names, self.probabilities))


@dataclass(frozen=True)
class BoxesFound(_Told):
    """What a detector found in one picture.

    Attributes:
        source: the file's path, or "image 3" for a picture given as an object (counted from 0).
        width, height: of the picture in pixels; 0 if it cannot be read.
        boxes: n boxes (x1, y1, x2, y2) in pixels, width = x2 - x1, surest first.
        scores: n, 0..1. labels: n positions in the model's class names. names: those n class names.
        error: why the picture cannot be read, else None.
    """

    source: str
    width: int = 0
    height: int = 0
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    error: str | None = None

    def _found(self) -> str:
        rows = zip(self.texts, self.boxes)
        return (
            "; ".join(f"{text} at {', '.join(f'{side:.0f}' for side in box)}" for text, box in rows) or "nothing found"
        )

    @property
    def texts(self) -> list[str]:
        """What is drawn beside each box: its name and score."""
        return [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores)]

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the picture with its boxes, names and scores. Raises DataError for a picture of another size."""
        if image.size != (self.width, self.height):
            raise DataError(f"the boxes belong to a picture of {self.width} x {self.height} pixels, not {image.size}")
        return draw_boxes(image, self.boxes, self.texts, self.labels)


class Predictor:
    """Classifies pictures, or finds boxes in them, with a model or an artifact.

    Args:
        model: a `PromptedModel`, or the folder of an artifact.
        backbone, device, dtype, allow_other_backbone: as in `artifacts.load`, for a folder.

    Raises:
        ArtifactError: the folder's artifact cannot be used.
    """

    def __init__(
        self,
        model: PromptedModel | str | Path,
        backbone: Any = None,
        device: str | None = None,
        dtype: str | None = None,
        allow_other_backbone: bool = False,
    ):
        if not isinstance(model, PromptedModel):
            from .artifacts import load

            model = load(model, backbone, device, dtype, allow_other_backbone)
        self.model = model
        self.transform = None if isinstance(model, PromptedDetector) else evaluation_transform(model.backbone)

    def classify(self, images: Any, top_k: int = 5, batch_size: int = 64, keep_going: bool = False) -> list[Prediction]:
        """Classify pictures.

        Args:
            images: a PIL image, a (H, W, 3) uint8 RGB array, a path, a folder, a zip archive, or a sequence of these.
                A folder or archive stands for the pictures directly in it and below it, in order of their paths;
                hidden ones are left out and links are followed, as in training.
            top_k: classes to name; capped at the number of classes.
            batch_size: pictures per forward pass.
            keep_going: a path that was named itself is treated as one inside a folder.

        Returns:
            One entry per picture, in order; one that is named twice has two. A picture *inside a folder* that cannot
            be read is an entry with `error` set, so that one broken file does not cost the others.

        Raises:
            DataError: a picture that was named itself cannot be read, a path is absent, a folder holds no picture
                (all without `keep_going`), or an array is of another shape or type.
            ConfigError: top_k or batch_size below 1.
        """
        if self.transform is None:
            raise PortError(f"{self.model.backbone.name} is a detector; use detect(images) instead of classify")
        check_whole(1, top_k=top_k, batch_size=batch_size)
        predictions: list[Prediction] = []
        waiting: list[tuple[int, str, np.ndarray]] = []
        was_training = self.model.training
        self.model.eval()
        try:
            for source, image, error in self._pictures(images, "classify", self.transform, keep_going):
                if error is None:
                    waiting.append((len(predictions), source, image))
                predictions.append(Prediction(source, (), (), error))  # read ones are replaced when their batch is full
                if len(waiting) == batch_size:
                    self._classify_batch(waiting, predictions, top_k)
            self._classify_batch(waiting, predictions, top_k)
        finally:
            self.model.train(was_training)
        return predictions

    def _classify_batch(self, waiting: list, predictions: list, top_k: int) -> None:
        if not waiting:
            return
        model = self.model
        pixels = as_input(model.backbone, torch.from_numpy(np.stack([image for _, _, image in waiting])))
        with torch.no_grad():
            probabilities = model(pixels)["logits"].softmax(-1)
        values, labels = probabilities.topk(min(top_k, len(model.class_names)), dim=-1)
        for (place, source, _), p, c in zip(waiting, values.tolist(), labels.tolist()):
            predictions[place] = Prediction(source, tuple(model.class_names[i] for i in c), tuple(p))
        waiting.clear()

    def detect(
        self, images: Any, score_threshold: float = 0.3, batch_size: int = 1, keep_going: bool = False
    ) -> list[BoxesFound]:
        """Find boxes of the model's classes in pictures.

        Args:
            images: as in `classify`.
            score_threshold: 0..1; boxes with a lower score are left out.
            batch_size: pictures per forward pass; they are padded to the largest, so 1 is the plainest.
            keep_going: as in `classify`.

        Returns:
            One entry per picture, in order; as in `classify`, one with `error` for a broken picture in a folder.

        Raises:
            PortError: the model is a classifier. DataError: as in `classify`. ConfigError: a number out of range.
        """
        return [found for found, _ in self.detections(images, score_threshold, batch_size, keep_going)]

    def detections(
        self, images: Any, score_threshold: float = 0.3, batch_size: int = 1, keep_going: bool = False
    ) -> Iterator[tuple[BoxesFound, Image.Image | None]]:
        """As `detect`, one by one, each with its RGB picture (None if it cannot be read)."""
        if not isinstance(self.model, PromptedDetector):
            raise PortError(f"{self.model.backbone.name} finds no boxes; use classify(images) instead of detect")
        check_whole(1, batch_size=batch_size)
        if not fits(score_threshold, float) or not 0 <= score_threshold <= 1:
            raise ConfigError(f"score_threshold must be a number in 0..1, not {score_threshold!r}")
        waiting: list[tuple[str, Image.Image | None, str | None]] = []
        for row in self._pictures(images, "look for boxes in", lambda image: image, keep_going):
            waiting.append(row)
            if len(waiting) == batch_size:
                yield from self._detect_batch(waiting, score_threshold)
                waiting = []
        yield from self._detect_batch(waiting, score_threshold)

    def _detect_batch(
        self, rows: list[tuple[str, Image.Image | None, str | None]], score_threshold: float
    ) -> Iterator[tuple[BoxesFound, Image.Image | None]]:
        good = [image for _, image, _ in rows if image is not None]
        found = iter(self.model.detect(good, batch_size=len(good)) if good else ())
        for source, image, error in rows:
            if image is None:
                yield BoxesFound(source, error=error), None
                continue
            row = next(found)
            keep = (row["scores"] >= score_threshold).nonzero()[:, 0].tolist()
            boxes, scores = row["boxes"].tolist(), row["scores"].tolist()
            labels = [int(row["labels"][i]) for i in keep]
            yield (
                BoxesFound(
                    source,
                    *image.size,
                    tuple(tuple(boxes[i]) for i in keep),
                    tuple(scores[i] for i in keep),
                    tuple(labels),
                    tuple(self.model.class_names[label] for label in labels),
                ),
                image,
            )

    def _pictures(
        self, images: Any, do: str, finish: Callable[[Image.Image], Any], keep_going: bool
    ) -> Iterator[tuple[str, Any, str | None]]:
        """(source, finish(RGB picture), None), or (source, None, why it cannot be read)."""
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            images = [images]
        if not isinstance(images, Iterable):
            raise DataError(f"cannot {do} a {type(images).__name__}; expected a picture, a path, or a list of them")
        for number, image in enumerate(images):
            if isinstance(image, (str, Path)):
                yield from self._from_path(Path(image).expanduser(), finish, keep_going)
            elif isinstance(image, Image.Image):
                yield f"image {number}", self._from_picture(image, number, finish), None
            elif isinstance(image, np.ndarray):
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                    raise DataError(
                        f"image {number} is a {image.dtype} array of shape {image.shape}; expected (H, W, 3) uint8 RGB"
                    )
                yield f"image {number}", finish(Image.fromarray(image)), None
            else:
                raise DataError(
                    f"image {number} is a {type(image).__name__}; expected a PIL image, an array, or a path"
                )

    @staticmethod
    def _from_picture(image: Image.Image, number: int, finish: Callable[[Image.Image], Any]) -> Any:
        if 0 in image.size:
            raise DataError(f"image {number} has {image.width} x {image.height} pixels; expected at least 1 x 1")
        try:
            return finish(to_rgb(image))  # a picture that was opened but not loaded is decoded here
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read image {number}: {error}; repair or remove it") from error

    @staticmethod
    def _from_path(
        path: Path, finish: Callable[[Image.Image], Any], keep_going: bool
    ) -> Iterator[tuple[str, Any, str | None]]:
        try:
            several = path.is_dir() or (path.suffix.lower() == ".zip" and path.is_file())
            items = list_images(path) if several else [ImageItem(path, 0)]
            if not items:
                raise DataError(f"the {'folder' if path.is_dir() else 'archive'} {path} holds no picture")
        except DataError as error:
            if not keep_going:
                raise
            yield str(path), None, str(error)
            return
        for item in items:
            try:
                yield item.key, finish(open_image(item)), None
            except DataError as error:
                if not (several or keep_going):
                    raise
                yield item.key, None, str(error)
