"""Equations that several methods share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones.base import DualEncoder
from ..precision import full_precision
from .base import ImageBatch


def fill(template: str, class_names: Sequence[str]) -> list[str]:
    """The template with each class name put in; underscores read as spaces."""
    return [template.replace("{}", name.replace("_", " ")) for name in class_names]


def template_features(backbone: DualEncoder, class_names: Sequence[str], template: str | Sequence[str]) -> Tensor:
    """(C, E) unit text features of plain frozen zero-shot CLIP, float32.

    Several templates: the unit features are averaged and normalised again (CLIP, arXiv 2103.00020, section 3.1.4).
    """
    templates = [template] if isinstance(template, str) else list(template)
    total = sum(unit(backbone.encode_text(fill(t, class_names))) for t in templates)
    return unit(total)


def unit(features: Tensor) -> Tensor:
    """Rows of length 1, in float32, also under autocast."""
    with full_precision(features.device):
        return F.normalize(features.float(), dim=-1)


def scaled_cosines(scale: Tensor, image: Tensor, text: Tensor) -> Tensor:
    """scale · cos: (B, E), (C, E) -> (B, C) float32, also under autocast. Features need not be normalised."""
    with full_precision(image.device):
        return scale.float() * unit(image) @ unit(text).T


def cosine_logits(backbone: DualEncoder, image: Tensor, text: Tensor) -> Tensor:
    """exp(logit_scale) · cos: (B, E), (C, E) -> (B, C) float32. Features need not be normalised."""
    return scaled_cosines(backbone.logit_scale, image, text)


def frozen_image_features(backbone: DualEncoder, batch: ImageBatch) -> Tensor:
    """(B, E) features of the frozen image tower: cached ones if the batch has them.

    Never under autocast: they are the same in training, in testing and in a cache.
    """
    if batch.frozen_features is not None:
        return batch.frozen_features
    with torch.no_grad(), full_precision(backbone.device):
        return backbone.encode_image(batch.pixel_values)
