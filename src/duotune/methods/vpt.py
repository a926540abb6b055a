"""VPT: visual prompt tuning (arXiv 2203.12119) of CLIP, with template text.

    deep      layer i:  [CLS, patches] + P_i ─► layer i ─► [CLS, patches]   (P_i is dropped; the next layer has its own)
    shallow   layer 1:  [CLS, patches] + P   ─► all layers                    (P stays)

    logits = exp(logit_scale) · cos(tuned image, text(template))        loss: cross-entropy

The text side is a constant, computed once. As in the authors' DPT code, every layer is prompted
("deep") and the class token alone is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import DualEncoder
from ..prompts.visual import VisualPromptTokens
from .base import ClassifierOutput, ImageBatch, Method, MethodConfig, ParamGroup, Progress
from .common import cosine_logits, template_features


@dataclass
class VisualPromptConfig(MethodConfig):
    """Learnt visual prompt tokens.

    num_visual_tokens: P, tokens per prompted layer.
    deep: one set per layer, else one set at the first layer.
    visual_lr, visual_warmup_epochs: SGD rate and epochs at 1e-5 before the cosine.
    """

    num_visual_tokens: int = 10
    deep: bool = True
    visual_lr: float = 0.01
    visual_warmup_epochs: int = 10

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.below_one("num_visual_tokens")
        yield from self.not_positive("visual_lr")
        yield from self.negative("visual_warmup_epochs")


class VisualPrompts(nn.Module):
    """VisualPromptTokens in the form a vision tower asks for (`VisionPrompts`)."""

    def __init__(self, config: VisualPromptConfig):
        super().__init__()
        self.config = config
        self.persistent = not config.deep

    def create(self, backbone: DualEncoder, num_layers: int | None = None) -> None:
        """Create the tokens if there are none yet; `num_layers` None prompts every layer."""
        if not hasattr(self, "prompts"):
            layers = (num_layers if num_layers is not None else backbone.vision_layers) if self.config.deep else 1
            self.prompts = VisualPromptTokens(self.config.num_visual_tokens, backbone.vision_width, layers)

    def forward(self, layer: int, hidden: Tensor) -> Tensor | None:
        return self.prompts(layer)

    def param_group(self) -> ParamGroup:
        return ParamGroup("visual", list(self.parameters()), self.config.visual_lr, self.config.visual_warmup_epochs)


@dataclass
class VPTConfig(VisualPromptConfig):
    """Settings of VPT. The authors' shallow recipe has visual_lr 0.001."""


class VPT(Method):
    """Learnt visual prompts alone; see the module docstring."""

    Config = VPTConfig
    config: VPTConfig

    def __init__(self, config: VPTConfig):
        super().__init__(config)
        self.visual = VisualPrompts(config)

    def on_classes(self, backbone: DualEncoder) -> None:
        self.visual.create(backbone)
        features = template_features(backbone, self.class_names, self.template)
        self.register_buffer("template_text", features, persistent=False)

    def forward(self, backbone: DualEncoder, batch: ImageBatch) -> ClassifierOutput:
        image = backbone.encode_image(batch.pixel_values, self.visual)
        return ClassifierOutput(cosine_logits(backbone, image, self.template_text))

    def loss(self, output: ClassifierOutput, labels: Tensor, progress: Progress) -> Tensor:
        return F.cross_entropy(output.logits, labels)

    def param_groups(self) -> list[ParamGroup]:
        return [self.visual.param_group()]
