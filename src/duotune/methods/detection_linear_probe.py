"""Linear probing of a detector (GLIP, arXiv 2112.03857, section 5): the last linear layers alone are trained.

    frozen image tower, text tower, fusion ─► head: box and centerness layers, text projection, scale and biases

What is trained is a copy of the head, so that detaching gives the old detector. As in GLIP's code the factors of the
pyramid's levels stay as they are. Works with classes that it was not trained on: they come in through the caption.
Grounding DINO's head has no text projection; its backbone puts one there that starts as the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.base import Detector, DetectorOutput
from ..grounding import Caption
from .base import MethodConfig, ParamGroup
from .detection import DetectionBatch, DetectionMethod


@dataclass
class DetectionLinearProbeConfig(MethodConfig):
    """lr, warmup_epochs: of AdamW; GLIP's code uses 1e-4."""

    lr: float = 1e-4
    warmup_epochs: int = 0

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.not_positive("lr")
        yield from self.negative("warmup_epochs")


class DetectionLinearProbe(DetectionMethod):
    """A trained copy of the detection head; see the module docstring."""

    Config = DetectionLinearProbeConfig
    config: DetectionLinearProbeConfig
    copies_weights = True

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        if not hasattr(self, "head"):
            self.head = backbone.copy_head()

    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput:
        with torch.no_grad():
            maps, text = backbone.fuse(self.maps(backbone, batch), self.text(backbone, batch))
        return backbone.read(maps, text, batch.labels, head=self.head)

    def artifact_state(self) -> dict[str, Tensor]:
        """What was trained; the rest of the head is the backbone's."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    def param_groups(self) -> list[ParamGroup]:
        trained = [p for p in self.parameters() if p.requires_grad]
        return [ParamGroup("head", trained, self.config.lr, self.config.warmup_epochs)]
