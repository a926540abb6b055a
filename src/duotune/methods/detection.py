"""What methods on detectors share: captions in place of templates, feature maps in place of features."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..backbones.base import CaptionFeatures, Detector, DetectorOutput, Port
from ..errors import ClassNamesError, ConfigError
from ..grounding import Caption, CaptionPrompt
from .base import Method, Progress


@dataclass
class DetectionBatch:
    """What a detection method reads.

    Attributes:
        pixel_values: (B, 3, H, W) normalised pixels, padded at the right and the bottom; None if feature maps serve.
        feature_maps: what the frozen `Detector.encode_image` gave for them, if that was kept.
        captions: one per image; None: the caption of the method's classes for all.
        labels: see `Detector`; None where no loss is wanted.
    """

    pixel_values: Tensor | None = None
    feature_maps: Sequence[Tensor] | None = None
    captions: Sequence[Caption] | None = None
    labels: Sequence[Mapping[str, Tensor]] | None = None

    def __post_init__(self):
        if self.pixel_values is None and self.feature_maps is None:
            raise ConfigError("a detection batch needs pixel_values or feature_maps; got neither")
        for name in ("captions", "labels"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self):
                raise ConfigError(f"{len(self)} images need as many {name}, got {len(given)}")

    def __len__(self) -> int:
        return len(self.pixel_values if self.pixel_values is not None else self.feature_maps[0])


class DetectionMethod(Method, abc.ABC):
    """A method on a detector.

    Its classes are read as one caption, "cat. dog. hair drier". A template other than "{}" says how a class reads in
    it ("{} in a blood smear"); one for all classes, or one for each.

    Attributes:
        caption: of the classes.
    """

    default_template: ClassVar[str] = "{}"
    requires: ClassVar[frozenset[Port]] = frozenset({Port.CAPTION_FEATURES, Port.DETECT_HEAD})
    needs_frozen_features: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = False
    caption: Caption

    def set_classes(self, backbone: Detector, class_names: Sequence[str], template: str | Sequence[str]) -> None:
        names = list(class_names)
        if names and not isinstance(template, str) and len(template) != len(names):
            raise ClassNamesError(
                f"{len(template)} templates for {len(names)} classes; a detector reads one for all, or one for each"
            )
        before = self.class_names, self.template
        try:
            super().set_classes(backbone, class_names, template)
        except ClassNamesError:
            self.class_names, self.template = before  # those of the caption that is still read
            raise

    def on_classes(self, backbone: Detector) -> None:
        templates = [self.template] * len(self.class_names) if isinstance(self.template, str) else self.template
        prompts = None
        if any(t != "{}" for t in templates):
            prompts = [CaptionPrompt(n, *t.split("{}")) for n, t in zip(self.class_names, templates)]
        caption = backbone.caption(self.class_names, prompts)
        self.on_caption(backbone, caption)
        self.caption = caption

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        """Hook of subclasses: create parameters; `caption` is that of the new classes."""

    def captions(self, batch: DetectionBatch) -> list[Caption]:
        """One per image."""
        return list(batch.captions) if batch.captions is not None else [self.caption] * len(batch)

    def text(self, backbone: Detector, batch: DetectionBatch) -> CaptionFeatures:
        """Frozen features of the batch's captions."""
        return backbone.encode_captions(self.captions(batch))

    def maps(self, backbone: Detector, batch: DetectionBatch) -> Sequence[Tensor]:
        """Frozen feature maps: kept ones if the batch has them."""
        if batch.feature_maps is not None:
            return batch.feature_maps
        with torch.no_grad():
            return backbone.encode_image(batch.pixel_values)

    @abc.abstractmethod
    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput: ...

    def loss(self, output: DetectorOutput, labels: Sequence[Mapping[str, Tensor]], progress: Progress) -> Tensor:
        """Sum of the detector's own losses."""
        return sum(output.losses.values())
