"""Zero-shot CLIP (arXiv 2103.00020): cosine with the text features of a hand-written template.

    logits = exp(logit_scale) · cos(image, text("a photo of a {class}."))

Nothing is learnt. Given several templates, their unit text features are averaged (section 3.1.4).
"""

from __future__ import annotations

from torch import Tensor

from ..backbones.base import DualEncoder
from .base import ClassifierOutput, ImageBatch, Method, MethodConfig, ParamGroup, Progress
from .common import cosine_logits, frozen_image_features, template_features


class ZeroShot(Method):
    """Frozen CLIP with one template or an ensemble; see the module docstring."""

    Config = MethodConfig
    needs_frozen_features = True
    needs_pixels = False

    def on_classes(self, backbone: DualEncoder) -> None:
        self.register_buffer("text", template_features(backbone, self.class_names, self.template), persistent=False)

    def forward(self, backbone: DualEncoder, batch: ImageBatch) -> ClassifierOutput:
        return ClassifierOutput(cosine_logits(backbone, frozen_image_features(backbone, batch), self.text))

    def loss(self, output: ClassifierOutput, labels: Tensor, progress: Progress) -> Tensor:
        return output.logits.new_zeros(())

    def param_groups(self) -> list[ParamGroup]:
        return []
