"""From pictures to class names and probabilities."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .data.base import ImageItem
from .data.images import is_image_name, open_image, to_rgb
from .errors import ConfigError, DataError
from .model import PromptedModel
from .training.features import evaluation_transform


@dataclass(frozen=True)
class Prediction:
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

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    def __str__(self) -> str:
        if self.error:
            return f"{self.source}: {self.error}"
        classes = ", ".join(f"{name} {100 * p:.1f} %" for name, p in zip(self.names, self.probabilities))
        return f"{self.source}: {classes}"


class Predictor:
    """Classifies pictures with a model or an artifact.

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
        self.transform = evaluation_transform(model.backbone)

    def classify(self, images: Any, top_k: int = 5, batch_size: int = 64) -> list[Prediction]:
        """Classify pictures.

        Args:
            images: a PIL image, a (H, W, 3) uint8 RGB array, a path, a folder, or a sequence of these. A folder stands
                for the pictures directly in it and below it, in order of their paths.
            top_k: classes to name; capped at the number of classes.
            batch_size: pictures per forward pass.

        Returns:
            One entry per picture, in order. A picture *inside a folder* that cannot be read is an entry with
            `error` set, so that one broken file does not cost the others.

        Raises:
            DataError: a picture that was named itself cannot be read, a path is absent, a folder holds no picture, or
                an array is of another shape or type. ConfigError: top_k or batch_size below 1.
        """
        if top_k < 1 or batch_size < 1:
            raise ConfigError(f"top_k and batch_size must be at least 1, not {top_k} and {batch_size}")
        predictions: list[Prediction | None] = []
        waiting: list[tuple[int, str, np.ndarray]] = []
        for source, image, error in self._pictures(images):
            if error is None:
                waiting.append((len(predictions), source, image))
            predictions.append(None if error is None else Prediction(source, (), (), error))
            if len(waiting) == batch_size:
                self._classify_batch(waiting, predictions, top_k)
        self._classify_batch(waiting, predictions, top_k)
        return predictions

    def _classify_batch(self, waiting: list, predictions: list, top_k: int) -> None:
        if not waiting:
            return
        model = self.model
        weight = next(model.backbone.parameters())
        pixels = torch.from_numpy(np.stack([image for _, _, image in waiting])).to(weight.device, weight.dtype)
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                probabilities = model(pixels)["logits"].float().softmax(-1)
        finally:
            if was_training:  # train() also forgets the text features that are remembered between batches
                model.train()
        values, labels = probabilities.topk(min(top_k, len(model.class_names)), dim=-1)
        for (place, source, _), p, c in zip(waiting, values.tolist(), labels.tolist()):
            predictions[place] = Prediction(source, tuple(model.class_names[i] for i in c), tuple(p))
        waiting.clear()

    def _pictures(self, images: Any) -> Iterator[tuple[str, np.ndarray | None, str | None]]:
        """(source, pixels (3, S, S), None), or (source, None, why it cannot be read)."""
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            images = [images]
        if not isinstance(images, Iterable):
            raise DataError(f"cannot classify a {type(images).__name__}; expected a picture, a path, or a list of them")
        for number, image in enumerate(images):
            if isinstance(image, (str, Path)):
                yield from self._from_path(Path(image).expanduser())
            elif isinstance(image, Image.Image):
                yield f"image {number}", self._from_picture(image, number), None
            elif isinstance(image, np.ndarray):
                if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
                    raise DataError(
                        f"image {number} is a {image.dtype} array of shape {image.shape}; expected (H, W, 3) uint8 RGB"
                    )
                yield f"image {number}", self.transform(Image.fromarray(image)), None
            else:
                raise DataError(
                    f"image {number} is a {type(image).__name__}; expected a PIL image, an array, or a path"
                )

    def _from_picture(self, image: Image.Image, number: int) -> np.ndarray:
        if 0 in image.size:
            raise DataError(f"image {number} has {image.width} x {image.height} pixels; expected at least 1 x 1")
        try:
            return self.transform(to_rgb(image))  # a picture that was opened but not loaded is decoded here
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"cannot read image {number}: {error}; repair or remove it") from error

    def _from_path(self, path: Path) -> Iterator[tuple[str, np.ndarray | None, str | None]]:
        if not path.is_dir():
            yield str(path), self.transform(open_image(ImageItem(path, 0))), None
            return
        files = sorted(p for p in path.rglob("*") if is_image_name(p.name) and p.is_file())
        if not files:
            raise DataError(f"the folder {path} holds no picture")
        for file in files:
            try:
                yield str(file), self.transform(open_image(ImageItem(file, 0))), None
            except DataError as error:
                yield str(file), None, str(error)
