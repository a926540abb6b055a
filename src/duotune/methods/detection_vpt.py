"""VPT for detectors with a Swin (arXiv 2203.12119, appendix): tokens in every window of every block.

    block i of a stage:  every window's keys and values + P_i ─► block i ─► the window alone   (P_i asks nothing)

All windows of a block share its tokens; they are dropped behind the block and never merged with patches. Text and
fusion are frozen. The image tower has to run with gradients, so nothing of it can be kept between epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbones.base import Detector, DetectorOutput, Port
from ..errors import ConfigError
from ..grounding import Caption
from .base import MethodConfig, ParamGroup
from .detection import DetectionBatch, DetectionMethod


@dataclass
class DetectionVPTConfig(MethodConfig):
    """Settings of VPT in a Swin.

    num_visual_tokens: P, tokens per block, shared by its windows.
    visual_lr, visual_warmup_epochs: of AdamW.
    """

    num_visual_tokens: int = 10
    visual_lr: float = 1e-3
    visual_warmup_epochs: int = 0

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.below_one("num_visual_tokens")
        yield from self.not_positive("visual_lr")
        yield from self.negative("visual_warmup_epochs")


class DetectionVPT(DetectionMethod):
    """Learnt tokens in the image tower's windows; see the module docstring."""

    Config = DetectionVPTConfig
    config: DetectionVPTConfig
    requires = DetectionMethod.requires | {Port.VISION_WINDOWS}
    needs_frozen_features = False
    needs_pixels = True

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        if not hasattr(self, "stages"):
            count = self.config.num_visual_tokens
            make = lambda width: nn.Parameter(torch.randn(count, width) * 0.02)
            self.stages = nn.ModuleList(
                nn.ParameterList(make(width) for width in widths) for widths in backbone.block_widths
            )

    def tokens(self, stage: int, block: int, hidden: Tensor) -> Tensor:
        """(P, C) tokens of a block; see `WindowTokens`."""
        return self.stages[stage][block].to(hidden.dtype)

    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput:
        if batch.pixel_values is None:
            raise ConfigError("vpt prompts the image tower, so it needs pixel_values; got feature_maps alone")
        maps = backbone.encode_image(batch.pixel_values, self.tokens, batch.image_sizes)
        return backbone.read(*backbone.fuse(maps, self.text(backbone, batch)), batch.labels)

    def param_groups(self) -> list[ParamGroup]:
        config = self.config
        return [ParamGroup("visual", list(self.parameters()), config.visual_lr, config.visual_warmup_epochs)]
