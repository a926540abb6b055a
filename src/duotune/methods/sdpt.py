"""SDPT: synchronous dual prompt tuning of fusion detectors (arXiv 2407.11414).

                 prototypes P of this layer (K, e), learnt
              v_p = (P - b_v)(W_vᵀ)⁺  |  l_p = (P - b_l)(W_lᵀ)⁺         not learnt
    image V ─► [V, v_p] ─ W_v ─► queries ┐                ┌─► Δ of V   (softmax over [L, l_p])
                                         ├─ scores A ─────┤
    text  L ─► [L, l_p] ─ W_l ─► keys    ┘                └─► Δ of L   (softmax over [V, v_p])

One set of tokens per fusion layer lives in the space where image queries and text keys meet, so that the same
prototype speaks to both modalities: the Moore-Penrose inverses of the frozen projections carry it back into each.
The tokens are keys and values; they ask nothing, and their output rows do not exist. Everything else is frozen.

    loss: the detector's own        learnt: 2048 · K · layers (GLIP-T 122,880 and GLIP-L 163,840 at K = 10)

`visible="both"` is the paper: image queries attend to l_p, text queries to v_p. `visible="text_queries"` is what the
authors' code computes: its attention mask hides l_p from the image queries, so v_p in the text's update is all that
acts. Further differences from their code: the inverse is computed once and not in every forward pass, any batch size
works, everything else is frozen and in eval mode (theirs leaves 17 to 23 % of the weights trainable, and dropout on).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ..backbones.base import Detector, DetectorOutput, FusionTokens, Port
from ..errors import ConfigError
from ..grounding import Caption
from ..prompts.unified import INITS, InverseProjection, UnifiedPrototypeTokens
from .base import MethodConfig, ParamGroup
from .detection import DetectionBatch, DetectionMethod

VISIBLE = ("both", "text_queries")


@dataclass
class SDPTConfig(MethodConfig):
    """Settings of SDPT.

    num_prototype_tokens: K, tokens per fusion layer.
    layers: fusion layers with tokens, from 0; None for all.
    visible: "both": image and text queries see the tokens (the paper); "text_queries": as the authors' code.
    init: "uniform" (-1, 1), "normal", "xavier", "xavier_normal", "kaiming", "kaiming_normal" or "sparse".
    lr, warmup_epochs: of AdamW. The authors' example has 1e-5 (with 700 tokens); a token moves by about lr a step.
    """

    num_prototype_tokens: int = 10
    layers: list[int] | None = None
    visible: str = "both"
    init: str = "uniform"
    lr: float = 1e-3
    warmup_epochs: int = 0

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        yield from self.below_one("num_prototype_tokens")
        if self.layers is not None and (not self.layers or len(set(self.layers)) < len(self.layers)):
            yield f"layers must be different numbers of fusion layers, at least one, not {self.layers}"
        if self.visible not in VISIBLE:
            yield f"visible must be one of {', '.join(VISIBLE)}, not {self.visible!r}"
        if self.init not in INITS:
            yield f"init must be one of {', '.join(INITS)}, not {self.init!r}"
        yield from self.not_positive("lr")
        yield from self.negative("warmup_epochs")


class SDPT(DetectionMethod):
    """Unified prototype tokens in the fusion layers; see the module docstring."""

    Config = SDPTConfig
    config: SDPTConfig
    requires = DetectionMethod.requires | {Port.FUSION_LAYERS}

    def on_caption(self, backbone: Detector, caption: Caption) -> None:
        if hasattr(self, "prototypes"):
            return
        config, last = self.config, backbone.num_fusion_layers - 1
        layers = range(last + 1) if config.layers is None else config.layers
        if wrong := [layer for layer in layers if not 0 <= layer <= last]:
            raise ConfigError(f"layers {wrong} do not exist: the fusion layers of {backbone.name} are 0 to {last}")
        self.prototypes = UnifiedPrototypeTokens(
            config.num_prototype_tokens, backbone.fusion_width, layers, config.init
        )
        self.to_visual, self.to_text = nn.ModuleDict(), nn.ModuleDict()
        for layer in self.prototypes.layers:
            visual, text = backbone.fusion_projections(layer)
            self.to_visual[str(layer)] = InverseProjection(visual)
            if config.visible == "both":
                self.to_text[str(layer)] = InverseProjection(text)

    def tokens(self, layer: int, visual: Tensor, text: Tensor) -> FusionTokens | None:
        """What a fusion layer attends to besides image and text; see `FusionPrompts`."""
        prototypes = self.prototypes(layer)
        if prototypes is None:
            return None
        name = str(layer)
        v_p = self.remember(f"visual {layer}", lambda: self.to_visual[name](prototypes)).to(visual.dtype)
        if self.config.visible == "text_queries":
            return FusionTokens(visual=v_p)
        l_p = self.remember(f"text {layer}", lambda: self.to_text[name](prototypes)).to(text.dtype)
        return FusionTokens(visual=v_p, text=l_p)

    def forward(self, backbone: Detector, batch: DetectionBatch) -> DetectorOutput:
        maps, text = backbone.fuse(self.maps(backbone, batch), self.text(backbone, batch), self.tokens)
        return backbone.read(maps, text, batch.labels)

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("prototypes", list(self.parameters()), self.config.lr, self.config.warmup_epochs)]
