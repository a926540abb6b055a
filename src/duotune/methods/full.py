"""Full fine-tuning of a detector: every weight is trained. What the prompt methods are measured against.

A copy of the whole model is trained, with its dropout and stochastic depth alive in training, so detaching still
gives the old detector; the artifact is as large as the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..backbones.base import Detector, DetectorOutput
from ..errors import ConfigError
from ..grounding import Caption
from .base import MethodConfig, ParamGroup
from .detection import DetectionBatch, DetectionMethod


@dataclass
class FullConfig(MethodConfig):
    """Settings of full fine-tuning.

    lr, warmup_epochs: of AdamW; GLIP's configurations have 1e-4.
    text_lr: of the text encoder; 1e-5 there.
    """

    lr: float = 1e-4
    text_lr: float = 1e-5
    warmup_epochs: int = 0

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.not_positive("lr", "text_lr")
        yield from self.negative("warmup_epochs")


class Full(DetectionMethod):
    """A trained copy of the whole detector; see the module docstring."""

    Config = FullConfig
    config: FullConfig
    copies_weights = True
    needs_frozen_features = False
    needs_pixels = True

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        if not hasattr(self, "model"):
            self.model = backbone.copy_model()
            text = {id(p) for p in backbone.text_encoder(self.model).parameters()}
            self._is_text = [id(p) in text for p in self.model.parameters()]

    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput:
        if batch.pixel_values is None:
            raise ConfigError("full trains the image tower, so it needs pixel_values; got feature_maps alone")
        return backbone.run(self.model, batch.pixel_values, self.captions(batch), batch.labels, batch.image_sizes)

    def artifact_state(self) -> dict[str, Tensor]:
        """The whole model; weights that layers share are there once."""
        once = {name for name, _ in (*self.named_parameters(), *self.named_buffers())}
        return {name: value for name, value in super().artifact_state().items() if name in once}

    def param_groups(self) -> list[ParamGroup]:
        config, groups = self.config, []
        for name, wanted, lr in (("model", False, config.lr), ("text", True, config.text_lr)):
            pairs = zip(self.model.parameters(), self._is_text)
            params = [p for p, is_text in pairs if is_text == wanted and p.requires_grad]
            groups.append(ParamGroup(name, params, lr, config.warmup_epochs))
        return groups
