"""Language prompt tuning of GLIP (arXiv 2112.03857, section 5): the caption's features are tuned, nothing else.

    caption ─► frozen text encoder ─► L + ΔL ─► fusion with the image ─► head          ΔL: (T, d_l), starts at zero

One learnt row per token of the caption, behind the text encoder and before the fusion (`tunable_linear` of GLIP's
code, which keeps 1000 rows whatever the caption; here there are as many as the caption has tokens). The rows belong
to positions in this caption, so other classes cannot be read with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..backbones.base import Detector, DetectorOutput, Port
from ..errors import ClassNamesError
from ..grounding import Caption
from .base import MethodConfig, ParamGroup
from .detection import DetectionBatch, DetectionMethod


@dataclass
class TextPromptConfig(MethodConfig):
    """lr, warmup_epochs: of AdamW; GLIP's code uses 0.05 with weight decay 0.25."""

    lr: float = 0.05
    warmup_epochs: int = 0

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.not_positive("lr")
        yield from self.negative("warmup_epochs")

    @property
    def bound_to_classes(self) -> bool:
        return True


class TextPrompt(DetectionMethod):
    """A learnt shift of the caption's features; see the module docstring."""

    Config = TextPromptConfig
    config: TextPromptConfig
    requires = DetectionMethod.requires | {Port.FUSION_LAYERS}
    one_caption = True

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        if hasattr(self, "shift"):
            if caption.text != self.caption.text:
                raise ClassNamesError(
                    f"this text prompt was learnt for {self.caption.text[:60]!r}, not for {caption.text[:60]!r}; "
                    "its rows belong to tokens of that caption: train another, or use sdpt"
                )
            return
        self.shift = nn.Parameter(torch.zeros(caption.length, backbone.text_width))

    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput:
        for caption in self.captions(batch):
            if caption.text != self.caption.text:
                raise ClassNamesError(f"this text prompt reads {self.caption.text[:60]!r}, got {caption.text[:60]!r}")
        text = self.text(backbone, batch)
        tuned = replace(text, hidden=text.hidden + self.shift.to(text.hidden.dtype))
        return backbone.read(*backbone.fuse(self.maps(backbone, batch), tuned), batch.labels)

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("text", [self.shift], self.config.lr, self.config.warmup_epochs)]
