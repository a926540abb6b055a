"""Linear probe: a linear classifier on the frozen image features.

    logits = W · (exp(logit_scale) · image / |image|) + b        W: (C, E), b: (C)

CLIP (arXiv 2103.00020, section 3.2) fits a logistic regression with L-BFGS and a searched penalty;
here the classifier is trained with the same loop as every other method, so that the comparison
shares shots, augmentation and schedule. `init="text"` starts W at the zero-shot text features
instead of at zero (which makes it start from zero-shot CLIP).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import DualEncoder
from ..precision import full_precision, wide
from .base import ClassifierOutput, ImageBatch, Method, MethodConfig, ParamGroup, Progress
from .common import frozen_image_features, template_features, unit


@dataclass
class LinearProbeConfig(MethodConfig):
    """init: "zeros" or "text". lr: of SGD; the features have length exp(logit_scale), so small rates suffice."""

    init: str = "zeros"
    lr: float = 0.002
    warmup_epochs: int = 1

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.init not in ("zeros", "text"):
            yield f"init must be 'zeros' or 'text', not {self.init!r}"
        yield from self.not_positive("lr")
        yield from self.negative("warmup_epochs")

    @property
    def bound_to_classes(self) -> bool:
        return True


class LinearProbe(Method):
    """A linear head on frozen features; see the module docstring."""

    Config = LinearProbeConfig
    config: LinearProbeConfig
    head: nn.Linear
    needs_frozen_features = True
    needs_pixels = False

    def on_classes(self, backbone: DualEncoder) -> None:
        if hasattr(self, "head"):
            return
        self.head = nn.Linear(backbone.embed_dim, len(self.class_names))
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            if self.config.init == "text":
                self.head.weight.copy_(template_features(backbone, self.class_names, self.template))
            else:
                self.head.weight.zero_()

    @property
    def class_rows(self) -> tuple[str, ...]:
        return "head.weight", "head.bias"

    def forward(self, backbone: DualEncoder, batch: ImageBatch) -> ClassifierOutput:
        image, head = unit(frozen_image_features(backbone, batch)), self.head
        with full_precision(image.device):
            return ClassifierOutput(F.linear(backbone.logit_scale * image, wide(head.weight), wide(head.bias)))

    def loss(self, output: ClassifierOutput, labels: Tensor, progress: Progress) -> Tensor:
        return F.cross_entropy(output.logits, labels)

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("head", list(self.head.parameters()), self.config.lr, self.config.warmup_epochs)]
