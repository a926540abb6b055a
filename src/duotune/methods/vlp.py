"""VLP: learnt text context and deep visual prompts together (an ablation of DPT, arXiv 2208.08340).

logits = exp(logit_scale) · cos(image tuned as in VPT, text tuned as in CoOp)        loss: cross-entropy
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ..backbones.base import DualEncoder
from .base import ClassifierOutput, ImageBatch, Method, ParamGroup, Progress
from .common import cosine_logits
from .coop import TextContext, TextContextConfig
from .vpt import VisualPromptConfig, VisualPrompts


@dataclass
class VLPConfig(VisualPromptConfig, TextContextConfig):
    """Settings of CoOp and VPT together."""


class VLP(Method):
    """Text context and visual prompts; see the module docstring."""

    Config = VLPConfig
    config: VLPConfig

    def __init__(self, config: VLPConfig):
        super().__init__(config)
        self.text, self.visual = TextContext(config), VisualPrompts(config)

    def on_classes(self, backbone: DualEncoder) -> None:
        self.text.set_classes(backbone, self.class_names)
        self.visual.create(backbone)

    @property
    def class_rows(self) -> tuple[str, ...]:
        return self.text.class_rows

    def forward(self, backbone: DualEncoder, batch: ImageBatch) -> ClassifierOutput:
        text = self.remember("text", lambda: self.text.features(backbone), backbone)
        image = backbone.encode_image(batch.pixel_values, self.visual)
        return ClassifierOutput(cosine_logits(backbone, image, text))

    def loss(self, output: ClassifierOutput, labels: Tensor, progress: Progress) -> Tensor:
        return F.cross_entropy(output.logits, labels)

    def param_groups(self) -> list[ParamGroup]:
        return [self.text.param_group(), self.visual.param_group()]
