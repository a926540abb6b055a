"""A frozen backbone and a method: what is trained, evaluated and saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import BACKBONES, EMBEDDED, adapter_of, load_backbone
from .backbones.base import Backbone, Detector, Port
from .errors import ConfigError, DataError, PortError
from .grounding import Caption
from .methods import methods_named
from .methods.base import ImageBatch, Method, Progress
from .precision import full_precision
from .settings import check_whole


class PromptedModel(nn.Module):
    """A frozen backbone with a method attached.

    Attributes:
        backbone: frozen, always in eval mode; its bytes never change.
        method: owns every trainable parameter.
        method_name: the method's name in the table.
    """

    def __init__(self, backbone: Backbone, method: Method, method_name: str):
        super().__init__()
        self.backbone, self.method, self.method_name = backbone, method, method_name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.method.class_names

    def set_classes(self, class_names: Sequence[str], template: str | Sequence[str] | None = None) -> PromptedModel:
        """Classify into other classes from now on.

        Args:
            template: None: as it is; if each class of a detector has its own, those of the same classes.

        Raises:
            ClassNamesError: see `Method.set_classes`.
        """
        self.method.set_classes(self.backbone, class_names, template or None)
        return self

    def forward(
        self,
        pixel_values: Tensor | None = None,
        frozen_features: Tensor | None = None,
        labels: Tensor | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """{"logits": (B, C) float32}, and {"loss": scalar} if labels (B,) are given.

        DPT also tells its candidates: {"candidates": (B, Q) int64}, the positions in `class_names` of each image's Q
        likeliest classes by plain zero-shot CLIP, likeliest first, which its prompts are made for.

        Args:
            pixel_values: (B, 3, S, S) normalised pixels.
            frozen_features: (B, E) frozen image features, if cached.
            progress: for methods whose loss depends on the epoch.
        """
        if pixel_values is None and frozen_features is not None and self.method.needs_pixels:
            raise ConfigError(
                f"{self.method_name} prompts the image tower, so it needs pixel_values; got frozen_features alone"
            )
        output = self.method(self.backbone, ImageBatch(pixel_values, frozen_features))
        result = {"logits": output.logits, **{name: output.extras[name] for name in self.method.tells}}
        if labels is not None:
            with full_precision(output.logits.device):
                result["loss"] = self.method.loss(output, labels, progress or Progress())
        return result

    def num_trainable_parameters(self) -> int:
        """How many numbers training may change."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def classify(self, images, top_k: int = 5, batch_size: int = 64) -> list:
        """Classes and probabilities of images (PIL images, paths, or arrays); see `Predictor.classify`."""
        from .predictor import Predictor

        return Predictor(self).classify(images, top_k=top_k, batch_size=batch_size)

    def exportable(self, pixel_values: Tensor | None = None) -> Exportable:
        """This model from pixels to logits, for `torch.export.export` and `torch.onnx.export`; see `Exportable`.

        Args:
            pixel_values: (B, 3, H, W), pictures of the size that is exported for; None: one of a classifier's size.

        Raises:
            ConfigError: a detector, which takes pictures of any size, and no pixel_values.
        """
        if pixel_values is None:
            size = getattr(self.backbone, "image_size", None)
            if size is None:
                raise ConfigError(
                    f"{self.backbone.name} takes pictures of any size; give pixel_values (B, 3, H, W) to export for"
                )
            pixel_values = torch.zeros(1, 3, size, size, device=self.backbone.device)
        return Exportable(self, pixel_values)

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write the artifact (`prompt.safetensors`, `prompt.json`); options are those of `duotune.artifacts.save`."""
        from .artifacts import save

        return save(self, folder, **options)

    def detach(self) -> nn.Module:
        """The Hugging Face model as it was before `attach`: the same object, every weight the same, bit for bit."""
        return self.backbone.model


class Exportable(nn.Module):
    """A model's classes in pictures, in the form that `torch.export` and the ONNX exporter read.

    In eval mode, pixels in and tensors out. What is worked out from weights alone, text above all, was worked out when
    this was made, and is a constant of what is exported: make another after training or `set_classes`.

    Attributes:
        model: the `PromptedModel`, which is put into eval mode.
    """

    def __init__(self, model: PromptedModel, pixel_values: Tensor):
        super().__init__()
        self.model = model.eval()
        self(pixel_values)  # fills what is remembered

    def forward(self, pixel_values: Tensor) -> Tensor | dict[str, Tensor]:
        """(B, 3, H, W) normalised pixels without padding -> logits (B, C); of a detector {"logits": (B, N, T), ...}.

        A detector's further tensors are those that boxes are decoded from.
        """
        model = self.model
        with torch.no_grad(), model.backbone.held(), model.method.held():
            found = model(pixel_values=pixel_values)
        if not isinstance(model, PromptedDetector):
            return found["logits"]
        return {name: value for name, value in vars(found["output"].raw).items() if isinstance(value, Tensor)}


class PromptedDetector(PromptedModel):
    """A frozen detector with a method attached."""

    def forward(  # type: ignore[override]  # called by keywords; a detector reads others
        self,
        pixel_values: Tensor | None = None,
        captions: Sequence[Caption] | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        feature_maps: Sequence[Tensor] | None = None,
        image_sizes: Tensor | None = None,
        original_sizes: Tensor | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """{"logits": (B, N, T), "output": DetectorOutput}; with labels also {"loss": scalar, "losses": its parts}.

        Args:
            pixel_values: (B, 3, H, W) normalised pixels.
            captions: one per image; None: the caption of the model's classes for all.
            labels: per image {"boxes": (M, 4) xyxy pixels of the network's input, width = x2 - x1, "positive_map":
                (M, T) nonzero for the tokens of each box's phrase}; M may be 0.
            feature_maps: frozen feature maps, if cached.
            image_sizes, original_sizes: (B, 2) height and width without padding, as resized and before. The first
                tells where padding starts; with both, boxes become GLIP's inclusive corners as in its own training.
            progress: for methods whose loss depends on the epoch.
        """
        from .methods.detection import DetectionBatch

        if labels is not None and image_sizes is not None and original_sizes is not None:
            scales = (torch.as_tensor(image_sizes) / torch.as_tensor(original_sizes)).flip(1)
            labels = [{**label, "scale": scale} for label, scale in zip(labels, scales)]
        output = self.method(self.backbone, DetectionBatch(pixel_values, feature_maps, captions, labels, image_sizes))
        result = {"logits": output.logits, "output": output}
        if labels is not None:
            with full_precision(output.logits.device):
                result["loss"] = self.method.loss(output, labels, progress or Progress())
            result["losses"] = output.losses
        return result

    @torch.no_grad()
    def detect(self, images: Sequence[Any], batch_size: int = 1, **limits: float) -> list[dict[str, Any]]:
        """Boxes in PIL images, best first; the mode the model is in is restored.

        Args:
            limits: score_threshold, nms_threshold, max_detections; the detector's own if left out.

        Returns:
            per image {"boxes": (n, 4) xyxy pixels of that image, width = x2 - x1, "scores": (n,), "labels": (n,)
            positions in `class_names`, "names": [n]}.

        Raises:
            DataError: something else than PIL images. ConfigError: batch_size below 1.
        """
        from PIL import Image

        check_whole(1, batch_size=batch_size)
        images = [images] if isinstance(images, Image.Image) else images
        if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
            raise DataError(
                f"expected a list of PIL images, got {images!r:.80}; Predictor(model).detect takes paths and arrays too"
            )
        found: list[dict[str, Any]] = []
        for start in range(0, len(images), batch_size):
            part = list(images[start : start + batch_size])
            pixels, sizes = self.backbone.prepare(part)
            originals = torch.tensor([(image.height, image.width) for image in part])
            found += self.find(pixels, image_sizes=sizes, original_sizes=originals, **limits)
        return found

    @torch.no_grad()
    def find(
        self,
        pixel_values: Tensor | None = None,
        feature_maps: Sequence[Tensor] | None = None,
        image_sizes: Tensor | None = None,
        original_sizes: Tensor | None = None,
        captions: Sequence[Caption] | None = None,
        **limits: float,
    ) -> list[dict[str, Any]]:
        """As `detect`, of a batch that is prepared already; classes that need several captions get them.

        Args:
            pixel_values, feature_maps: as in `forward`; one of them.
            image_sizes: (B, 2) height and width without padding.
            original_sizes: (B, 2) sizes to scale boxes to; None for none.
            captions: one per image, to find their phrases in place of the classes: "labels" are positions in those.
        """
        from .methods.detection import DetectionBatch

        was_training = self.training
        self.eval()
        try:
            batch = DetectionBatch(pixel_values, feature_maps, captions, image_sizes=image_sizes)
            return self.method.find(self.backbone, batch, image_sizes, original_sizes, **limits)
        finally:
            self.train(was_training)

    def classify(self, images, top_k: int = 5, batch_size: int = 64) -> list:
        """A detector finds boxes: raises PortError."""
        raise PortError(f"{self.backbone.name} is a detector; use detect(images) instead of classify")


def choose_method(name: str, offered_by: str, ports: frozenset[Port]) -> type[Method]:
    """The class that `name` stands for on a backbone with these ports.

    Raises:
        UnknownNameError: no method has that name. PortError: it needs other ports; says which backbones have them.
    """
    kinds = methods_named(name)
    for kind in kinds:
        if kind.requires <= ports:
            return kind
    nearest = min(kinds, key=lambda kind: len(kind.requires - ports))
    missing = ", ".join(sorted(str(p) for p in nearest.requires - ports))
    has = ", ".join(sorted(str(p) for p in ports)) or "none"
    fits = lambda adapter: any(kind.requires <= adapter.ports for kind in kinds)
    able = [b for b in BACKBONES if fits(BACKBONES.get(b))]
    embedded = [name for name in sorted(EMBEDDED) if fits(adapter_of(name))]
    hint = f"; try {' or '.join(able)}" if able else ""
    hint += f", such as the embedded {' or '.join(embedded)}" if able and embedded else ""
    raise PortError(f"{name} needs {missing}; {offered_by} offers {has}{hint}")


def attach(
    backbone: str | os.PathLike[str] | Backbone,
    method: str,
    class_names: Sequence[str],
    template: str | Sequence[str] | None = None,
    config: dict[str, Any] | None = None,
    seed: int | None = 1,
    **settings: Any,
) -> PromptedModel:
    """Attach a method to a frozen backbone.

    Args:
        backbone: Hub id, local folder, embedded name ("tiny"), or a loaded Backbone.
        method: name in the method table, see `list_methods()`.
        class_names: C names to classify into, or to find.
        template: prompt with one `{}`; several for a zero-shot ensemble, or one per class of a detector. None: the
            method's own, "a photo of a {}." or, for detectors, "{}".
        config, settings: fields of the method's config.
        seed: of the learnt parameters' random start, 1 as in training and in drawing shots; None draws from torch's
            global generator.

    Returns:
        a PromptedModel; a PromptedDetector if the backbone is a detector.

    Raises:
        UnknownNameError, PortError, ConfigError, ClassNamesError: each says what to do.
    """
    if isinstance(backbone, os.PathLike):
        backbone = os.fspath(backbone)
    if not isinstance(backbone, (str, Backbone)):
        raise ConfigError(f"expected a backbone's name, its folder, or a loaded Backbone; got {backbone!r:.80}")
    if isinstance(backbone, str):
        methods_named(method)  # a misspelt name is told before anything else
        ports, name = adapter_of(backbone).ports, backbone
    else:
        ports, name = backbone.ports, backbone.name
    kind = choose_method(method, name, ports)
    checked = kind.Config.from_dict({**(config or {}), **settings})
    if isinstance(backbone, str):
        backbone = load_backbone(backbone)
    whole = PromptedDetector if isinstance(backbone, Detector) else PromptedModel
    model = whole(backbone, kind(checked), method)
    own = [model.backbone.device] if model.backbone.device.type == "cuda" else []  # others are not even to be woken
    with torch.random.fork_rng(own, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model.set_classes(class_names, template or kind.default_template)
    return model
