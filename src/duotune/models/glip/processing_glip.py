"""From pictures and class names to GLIP's inputs, and from its outputs to boxes in the picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ...errors import ArtifactError, ClassNamesError, ConfigError, DataError
from ...grounding import Caption, build_caption, chunk_classes, clean_name, grounding_caption, resized_size
from ...reading import MAX_DESCRIPTION_BYTES, because, read_json
from ...writing import write_text
from .configuration_glip import GlipConfig
from .detection import Detections, detect
from .modeling_glip import GlipDetectionOutput

SETTINGS_FILE = "preprocessor_config.json"
GlipCaption = Caption


class GlipProcessor:
    """Pictures and captions of a GLIP model.

    Pictures are resized, turned to BGR, normalised and padded with zeros at the right and the bottom; captions are
    built from class names and tokenised.

    Args:
        tokenizer: a fast BERT tokenizer.
        short_side, long_side: pixels; the short side becomes `short_side` unless the long one would pass `long_side`.
        pixel_mean, pixel_std: of BGR values in 0..255.
        size_divisor: padded sides are multiples of this.
        max_text_tokens: longest caption in tokens.
        score_threshold, pre_nms_top, nms_threshold, max_detections: see `GlipConfig`.
        do_resize: False takes pictures at the size they have, for those who resize themselves.

    Raises:
        ConfigError: the tokenizer does not tell where characters are.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        short_side: int = 800,
        long_side: int = 1333,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (57.375, 57.12, 58.395),
        size_divisor: int = 32,
        max_text_tokens: int = 256,
        score_threshold: float = 0.05,
        pre_nms_top: int = 1000,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        do_resize: bool = True,
    ):
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"a fast tokenizer is needed to find class names in captions, got {type(tokenizer).__name__}"
            )
        self.tokenizer = tokenizer
        self.short_side, self.long_side, self.size_divisor = short_side, long_side, size_divisor
        self.pixel_mean, self.pixel_std = tuple(pixel_mean), tuple(pixel_std)
        self.max_text_tokens = max_text_tokens
        self.do_resize = do_resize
        self.score_threshold, self.pre_nms_top = score_threshold, pre_nms_top
        self.nms_threshold, self.max_detections = nms_threshold, max_detections

    # ------------------------------------------------------------------ folders

    @classmethod
    def from_config(cls, config: GlipConfig, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> GlipProcessor:
        """A processor that fits a model's configuration."""
        fields = ("max_text_tokens", "score_threshold", "pre_nms_top", "nms_threshold", "max_detections")
        return cls(tokenizer, **{**{name: getattr(config, name) for name in fields}, **settings})

    @classmethod
    def from_pretrained(cls, name: str | Path, **kwargs: Any) -> GlipProcessor:
        """Read a folder or Hub repository that `save_pretrained` wrote; `kwargs` override settings.

        Raises:
            ArtifactError: it holds no such processor.
        """
        try:
            path = cached_file(str(name), SETTINGS_FILE)
            settings = read_json(path, "the settings of a GLIP processor", ArtifactError, MAX_DESCRIPTION_BYTES)
            tokenizer = AutoTokenizer.from_pretrained(str(name))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{name} holds no GLIP processor: {because(error)}") from error
        settings.pop("processor_class", None)
        return cls(tokenizer, **{**settings, **kwargs})

    def settings(self) -> dict[str, Any]:
        """What `save_pretrained` writes besides the tokenizer."""
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer files and `preprocessor_config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        content = {"processor_class": type(self).__name__, **self.settings()}
        write_text(folder / SETTINGS_FILE, json.dumps(content, indent=2) + "\n")

    # ------------------------------------------------------------------ text

    def caption(self, class_names: Sequence[str], style: str = "train") -> GlipCaption:
        """The detection caption of class names, in the given order.

        Raises:
            ClassNamesError: a name is empty or repeated, or the caption does not fit `max_text_tokens`
                (see `chunk_class_names`).
        """
        return build_caption(class_names, self.tokenizer, self.max_text_tokens, style)

    def grounding_caption(
        self, text: str, spans: Sequence[Sequence[tuple[int, int]]], names: Sequence[str] | None = None
    ) -> GlipCaption:
        """A caption of any form whose phrases are given as character ranges.

        Args:
            spans: per phrase one or more (first, behind last) character positions.
            names: of the phrases; None for their text.

        Raises:
            ClassNamesError: the caption does not fit `max_text_tokens`.
        """
        return grounding_caption(text, spans, self.tokenizer, self.max_text_tokens, names)

    def chunk_class_names(self, class_names: Sequence[str], max_classes: int | None = None) -> list[list[str]]:
        """Class names in order, in runs whose captions fit `max_text_tokens` (and have at most `max_classes`).

        Raises:
            ClassNamesError: one name alone does not fit.
        """
        chunks = chunk_classes(class_names, self.tokenizer, self.max_text_tokens, max_classes)
        return [list(caption.names) for caption in chunks]

    def tokenize(self, texts: Sequence[str], padding: str = "longest") -> dict[str, Tensor]:
        """{"input_ids", "attention_mask"}, both (B, T) int64.

        Args:
            padding: "longest" in the batch, or "max_length", the official layout. Both give the same detections.
        """
        encoded = self.tokenizer(
            list(texts), padding=padding, truncation=True, max_length=self.max_text_tokens, return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    # ------------------------------------------------------------------ pictures

    def preprocess(self, image: Image.Image, short_side: int | None = None, do_resize: bool | None = None) -> Tensor:
        """A picture as (3, h, w) float32: resized, BGR, normalised, not padded.

        Args:
            short_side: pixels, where training draws it anew; None for the processor's.
            do_resize: None for the processor's.
        """
        image = image.convert("RGB")
        if not (self.do_resize if do_resize is None else do_resize):
            return self.normalize(image)
        width, height = image.size
        new_height, new_width = resized_size(height, width, short_side or self.short_side, self.long_side)
        if (new_height, new_width) != (height, width):
            image = image.resize((max(new_width, 1), max(new_height, 1)), Image.Resampling.BILINEAR)
        return self.normalize(image)

    def normalize(self, image: Image.Image) -> Tensor:
        """An RGB picture as (3, h, w) float32: BGR and normalised, neither resized nor padded."""
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)[:, :, ::-1].copy())
        # Through 0..1 and back, as the official transforms do, for the same rounding.
        pixels = pixels / 255 * 255
        pixels = (pixels - torch.tensor(self.pixel_mean)) / torch.tensor(self.pixel_std)
        return pixels.permute(2, 0, 1).contiguous()

    def pad(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (3, h, w) -> (B, 3, H, W): zeros at the right and the bottom, sides multiples of `size_divisor`."""
        sides = [max(p.shape[axis] for p in pictures) for axis in (1, 2)]
        height, width = (-(-side // self.size_divisor) * self.size_divisor for side in sides)
        batch = pictures[0].new_zeros(len(pictures), 3, height, width)
        for row, picture in zip(batch, pictures):
            row[:, : picture.shape[1], : picture.shape[2]] = picture
        return batch

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: GlipCaption | str | Sequence[GlipCaption | str] | None = None,
        padding: str = "longest",
        short_side: int | None = None,
        do_resize: bool | None = None,
    ) -> BatchFeature:
        """Model inputs of pictures and captions; one caption serves all pictures.

        Args:
            padding: of captions, see `tokenize`.
            short_side, do_resize: see `preprocess`.

        Returns:
            pixel_values (B, 3, H, W) and image_sizes (B, 2), height and width without padding; input_ids and
            attention_mask (B, T). All boxes that go into labels belong to the resized picture: scale them by
            image_sizes over the original size.

        Raises:
            DataError: as many captions as pictures are needed, or one.
        """
        data: dict[str, Tensor] = {}
        if images is not None:
            images = [images] if isinstance(images, Image.Image) else list(images)
            pictures = [self.preprocess(image, short_side, do_resize) for image in images]
            data["pixel_values"] = self.pad(pictures)
            data["image_sizes"] = torch.tensor([p.shape[1:] for p in pictures])
        if text is not None:
            captions = [text] if isinstance(text, GlipCaption | str) else list(text)
            if images is not None and len(captions) == 1:
                captions = captions * len(images)
            if images is not None and len(captions) != len(images):
                raise DataError(f"{len(images)} pictures need one caption or one each, got {len(captions)}")
            data |= self.tokenize([c.text if isinstance(c, GlipCaption) else c for c in captions], padding)
        return BatchFeature(data)

    # ------------------------------------------------------------------ boxes

    def post_process_object_detection(
        self,
        outputs: GlipDetectionOutput,
        captions: GlipCaption | Sequence[GlipCaption],
        image_sizes: Tensor | Sequence[tuple[int, int]],
        target_sizes: Tensor | Sequence[tuple[int, int]] | None = None,
        score_threshold: float | None = None,
        nms_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[dict[str, Any]]:
        """Boxes of each picture, best first.

        Args:
            captions: one, or one per picture.
            image_sizes: (B, 2) height and width of the resized pictures, from `__call__`.
            target_sizes: (B, 2) height and width to scale boxes to, usually the original pictures'; None for none.
            score_threshold: on the class probability, before centerness lowers it. This and the others default to the
                processor's.

        Returns:
            per picture {"boxes": (n, 4) xyxy pixels, inclusive corners (COCO's width is x2 - x1 + 1, see
            `boxes.boxes_to_xywh`), "scores": (n,), "labels": (n,) positions in the caption's names, "names": [n]}.

        Raises:
            ClassNamesError: a caption has no usable class.
        """
        count = len(outputs.logits)
        captions = [captions] * count if isinstance(captions, GlipCaption) else list(captions)
        if not len(captions) == len(image_sizes) == count:
            raise DataError(f"{count} outputs need as many captions and sizes, got {len(captions)}, {len(image_sizes)}")
        cells = [len(level) for level in outputs.anchors]
        results = []
        for index, caption in enumerate(captions):
            if not any(caption.tokens):
                raise ClassNamesError(f"the caption {caption.text!r} has no token of any class")
            size = tuple(int(side) for side in image_sizes[index])
            found = detect(
                outputs.logits[index].split(cells),
                outputs.box_deltas[index].split(cells),
                outputs.centerness[index].split(cells),
                outputs.anchors,
                caption.tokens,
                size,
                self.score_threshold if score_threshold is None else score_threshold,
                self.pre_nms_top,
                self.nms_threshold if nms_threshold is None else nms_threshold,
                self.max_detections if max_detections is None else max_detections,
            ).sorted()
            if target_sizes is not None:
                found = _rescaled(found, size, tuple(int(side) for side in target_sizes[index]))
            names = [caption.names[label] for label in found.labels.tolist()]
            results.append({"boxes": found.boxes, "scores": found.scores, "labels": found.labels, "names": names})
        return results


def _rescaled(found: Detections, size: tuple[int, int], target: tuple[int, int]) -> Detections:
    y, x = (after / before for before, after in zip(size, target))
    return Detections(found.boxes * found.boxes.new_tensor([x, y, x, y]), found.scores, found.labels)


__all__ = ["GlipCaption", "GlipProcessor", "clean_name", "resized_size"]
