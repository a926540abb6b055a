"""Zero-shot detection with GLIP (arXiv 2112.03857): the classes as a caption, nothing learnt.

image, "cat. dog. hair drier" ─► frozen detector ─► token logits ─► class score = mean over the class's tokens
"""

from __future__ import annotations

from ..backbones.base import Detector, DetectorOutput
from .base import MethodConfig, ParamGroup
from .detection import DetectionBatch, DetectionMethod


class DetectionZeroShot(DetectionMethod):
    """The frozen detector; see the module docstring."""

    Config = MethodConfig

    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput:
        maps, text = backbone.fuse(self.maps(backbone, batch), self.text(backbone, batch))
        return backbone.read(maps, text, batch.labels)

    def param_groups(self) -> list[ParamGroup]:
        return []
