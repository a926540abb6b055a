"""What methods on detectors share: captions in place of templates, feature maps in place of features."""

from __future__ import annotations

import abc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backbones.base import CaptionFeatures, Detector, DetectorOutput, Port
from ..errors import ClassNamesError, ConfigError
from ..grounding import Caption, CaptionPrompt
from ..names import differences, same_classes
from .base import Method, Progress

logger = logging.getLogger(__name__)


@dataclass
class DetectionBatch:
    """What a detection method reads.

    Attributes:
        pixel_values: (B, 3, H, W) normalised pixels, padded at the right and the bottom; None if feature maps serve.
        feature_maps: what the frozen `Detector.encode_image` gave for them, if that was kept.
        captions: one per image; None: the caption of the method's classes for all, if one holds them.
        labels: see `Detector`; None where no loss is wanted.
        image_sizes: (B, 2) height and width without padding; None: there is none. Kept feature maps know theirs.
    """

    pixel_values: Tensor | None = None
    feature_maps: Sequence[Tensor] | None = None
    captions: Sequence[Caption] | None = None
    labels: Sequence[Mapping[str, Tensor]] | None = None
    image_sizes: Tensor | None = None

    def __post_init__(self):
        if self.pixel_values is None and self.feature_maps is None:
            raise ConfigError("a detection batch needs pixel_values or feature_maps; got neither")
        for name in ("captions", "labels"):
            given = getattr(self, name)
            if given is not None and len(given) != len(self):
                raise ConfigError(f"{len(self)} images need as many {name}, got {len(given)}")

    def __len__(self) -> int:
        return int(self.size)

    @property
    def size(self) -> int:
        """B; a symbol where torch traces for any batch."""
        return next(x for x in (self.pixel_values, *(self.feature_maps or ())) if x is not None).shape[0]


class DetectionMethod(Method, abc.ABC):
    """A method on a detector.

    Its classes are read as one caption, "cat. dog. hair drier", or as several if they do not fit into one. A template
    other than "{}" says how a class reads in it ("{} in a blood smear"); one for all classes, or one for each.

    Attributes:
        one_caption: whether all classes have to fit into one caption.
        all_captions: of the classes, one or more.
        prompts: how each class reads; empty for plain names.
    """

    default_template: ClassVar[str] = "{}"
    requires: ClassVar[frozenset[Port]] = frozenset({Port.CAPTION_FEATURES, Port.DETECT_HEAD})
    needs_frozen_features: ClassVar[bool] = True
    needs_pixels: ClassVar[bool] = False
    one_caption: ClassVar[bool] = False
    all_captions: tuple[Caption, ...] = ()
    prompts: tuple[CaptionPrompt, ...] = ()

    def set_classes(
        self, backbone: Detector, class_names: Sequence[str], template: str | Sequence[str] | None = None
    ) -> None:
        names = list(class_names)
        if names and template is not None and not isinstance(template, str) and len(template) != len(names):
            raise ClassNamesError(
                f"{len(template)} templates for {len(names)} classes; a detector reads one for all, or one for each"
            )
        super().set_classes(backbone, class_names, template)

    def template_of(self, class_names: Sequence[str]) -> str | tuple[str, ...]:
        """As before; templates of each class go with their classes. Raises ClassNamesError if these are others."""
        if isinstance(self.template, str):
            return self.template
        order = same_classes(class_names, self.class_names)
        if order is None:
            raise ClassNamesError(
                f"each of {len(self.class_names)} classes has a template of its own, and the new classes are others: "
                f"{differences(self.class_names, class_names)}; give a template for them"
            )
        return tuple(self.template[place] for place in order)

    def on_classes(self, backbone: Detector) -> None:
        templates = [self.template] * len(self.class_names) if isinstance(self.template, str) else self.template
        prompts: tuple[CaptionPrompt, ...] = ()
        if any(t != "{}" for t in templates):
            prompts = tuple(CaptionPrompt(n, *t.split("{}")) for n, t in zip(self.class_names, templates))
        if self.one_caption:
            captions = [backbone.caption(self.class_names, prompts or None)]
        else:
            captions = backbone.captions(self.class_names, prompts or None)
        if mute := [n for c in captions for n, tokens in zip(c.names, c.tokens) if not tokens]:
            raise ClassNamesError(f"no token of a caption stands for {', '.join(map(repr, mute[:5]))}; rename it")
        if unread := _unread(backbone.tokenizer, self.class_names):
            logger.warning(
                "%s has no word for any part of %s, so it can only guess; rename it",
                backbone.name,
                ", ".join(map(repr, unread[:5])),
            )
        self.on_caption(backbone, captions[0])
        self.all_captions, self.prompts = tuple(captions), prompts

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        """Hook of subclasses: create parameters; `caption` is that of the new classes, or of the first of them."""

    @property
    def caption(self) -> Caption:
        """The caption of all classes. Raises ConfigError if there are several."""
        if len(self.all_captions) != 1:
            raise ConfigError(
                f"the {len(self.class_names)} classes take {len(self.all_captions)} captions; "
                "give each image one of them, or find all classes with `detect`"
            )
        return self.all_captions[0]

    def captions(self, batch: DetectionBatch) -> list[Caption]:
        """One per image."""
        return list(batch.captions) if batch.captions is not None else [self.caption] * len(batch)

    def find(
        self,
        backbone: Detector,
        batch: DetectionBatch,
        image_sizes: Tensor,
        target_sizes: Tensor | None = None,
        **limits: float,
    ) -> list[dict[str, Any]]:
        """Boxes of all classes in each image, caption by caption, best first; of the batch's captions if it has some.

        What the frozen image tower computes is shared by the captions. A class's boxes depend on its own caption
        alone; of all captions' boxes the best `max_detections` are kept, and those that tie with the last.

        Args:
            image_sizes, target_sizes, limits: as in `Detector.detections`.

        Returns:
            per image {"boxes": (n, 4), "scores": (n,), "labels": (n,) positions in `class_names` (in the batch's
            caption of the image), "names": [n]}.
        """
        if batch.captions is not None:
            output = self(backbone, replace(batch, labels=None))
            return backbone.detections(output, batch.captions, image_sizes, target_sizes, **limits)
        if self.needs_frozen_features and len(self.all_captions) > 1:
            batch = replace(batch, feature_maps=self.maps(backbone, batch))
        parts = []
        for caption in self.all_captions:
            captions = [caption] * len(batch)
            output = self(backbone, replace(batch, captions=captions, labels=None))
            parts.append(backbone.detections(output, captions, image_sizes, target_sizes, **limits))
        limit = int(limits.get("max_detections", backbone.max_detections))
        return [merge_captions(found, self.all_captions, self.class_names, limit) for found in zip(*parts)]

    def text(self, backbone: Detector, batch: DetectionBatch) -> CaptionFeatures:
        """Frozen features of the batch's captions."""
        if batch.captions is not None:
            return backbone.encode_captions(batch.captions)
        one = backbone.encode_captions([self.caption])
        each = [None if t is None else t.expand(batch.size, *t.shape[1:]) for t in (one.hidden, one.mask, one.starts)]
        return CaptionFeatures(*each)

    def maps(self, backbone: Detector, batch: DetectionBatch) -> Sequence[Tensor]:
        """Frozen feature maps: kept ones if the batch has them."""
        if batch.feature_maps is not None:
            return batch.feature_maps
        with torch.no_grad():
            return backbone.encode_image(batch.pixel_values, image_sizes=batch.image_sizes)

    @abc.abstractmethod
    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput: ...

    def loss(self, output: DetectorOutput, labels: Sequence[Mapping[str, Tensor]], progress: Progress) -> Tensor:
        """Sum of the detector's own losses. Raises ConfigError if the batch had no labels."""
        if output.losses is None:
            raise ConfigError("a detector's loss needs labels in its batch; got none")
        return sum(output.losses.values())


def _unread(tokenizer: Any, class_names: Sequence[str]) -> list[str]:
    """Names of which the tokenizer knows nothing, such as an emoji."""
    rows = tokenizer(list(class_names), add_special_tokens=False)["input_ids"]
    return [name for name, row in zip(class_names, rows) if set(row) == {tokenizer.unk_token_id}]


def merge_captions(
    found: Sequence[Mapping[str, Any]], captions: Sequence[Caption], class_names: Sequence[str], limit: int
) -> dict[str, Any]:
    """One image's boxes from several captions as if from one: labels of the classes, best first, at most `limit`."""
    label_of = [torch.tensor(caption.labels or range(len(caption.names)), dtype=torch.int64) for caption in captions]
    labels = torch.cat([own[row["labels"].cpu()] for row, own in zip(found, label_of)])
    boxes, scores = (torch.cat([row[name] for row in found]) for name in ("boxes", "scores"))
    labels = labels.to(scores.device)
    if len(found) > 1:
        order = scores.argsort(descending=True, stable=True)
        if len(order) > limit:
            order = order[scores[order] >= scores[order[limit - 1]]]
        boxes, scores, labels = boxes[order], scores[order], labels[order]
    names = [class_names[label] for label in labels.tolist()]
    return {"boxes": boxes, "scores": scores, "labels": labels, "names": names}
