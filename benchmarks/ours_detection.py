"""The SDPT training step as duotune runs it, feature maps and text features cached, and its fusion attention alone."""

from __future__ import annotations

import torch
from torch import Tensor

from duotune import attach
from duotune.backbones.glip import GlipBackbone
from duotune.models.glip import FusionTokens, GlipConfig, GlipForObjectDetection, GlipProcessor
from duotune.models.glip.conversion import our_name
from duotune.models.glip.fusion import BidirectionalAttention
from duotune.prompts.unified import InverseProjection

from .detection_shapes import (
    SPECIAL,
    DetectionShape,
    box_classes,
    boxes,
    class_names,
    picture,
    prototypes,
    text_config,
    weights,
)
from .steps import FusionStep, TrainingStep


def build_model(shape: DetectionShape) -> GlipForObjectDetection:
    """The model of a shape with the benchmark's weights."""
    config = GlipConfig(
        embed_dim=shape.embed,
        depths=shape.depths,
        num_heads=shape.heads,
        window_size=shape.window,
        fpn_channels=shape.channels,
        num_fusion_layers=shape.layers,
        fusion_dim=shape.inner,
        fusion_heads=shape.fusion_heads,
        group_norm_groups=shape.groups,
        max_text_tokens=shape.text_slots,
        text_config=text_config(shape),
    )
    model = GlipForObjectDetection(config)
    report = model.load_state_dict({our_name(k): v for k, v in weights(shape).items()}, strict=False)
    missing = [k for k in report.missing_keys if not k.startswith("head.cls_logits.") and "position_index" not in k]
    if missing or report.unexpected_keys:
        raise RuntimeError(f"weights without a place: {report.unexpected_keys}, places without weights: {missing}")
    return model


def build_tokenizer(valid: int):
    """One token per word or full stop, with the ids of `detection_shapes.caption`."""
    from transformers import BertTokenizer

    words = [*SPECIAL, *(f"w{i}" for i in range(valid))]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)


class OurSdptStep(TrainingStep):
    """One SDPT training step: call it; gradients stay on `parameters`."""

    def __init__(self, shape: DetectionShape, valid: int, visible: str = "both"):
        model = build_model(shape)
        processor = GlipProcessor.from_config(model.config, build_tokenizer(valid))
        backbone = GlipBackbone("benchmark", model, processor)
        settings = {"num_prototype_tokens": shape.prototypes, "visible": visible}
        self.model = attach(backbone, "sdpt", class_names(valid), config=settings)
        self.model.method.load_state_dict({"prototypes.tokens": prototypes(shape)})
        self.parameters = dict(self.model.method.named_parameters())
        caption = self.model.method.caption
        if caption.length != valid:
            raise RuntimeError(f"the caption has {caption.length} tokens, not {valid}")
        inclusive = boxes(shape)  # a detector's labels have width x2 - x1
        self.labels = [
            {
                "boxes": inclusive + torch.tensor([0.0, 0, 1, 1]),
                "positive_map": caption.positive_map(box_classes(valid)),
            }
        ]
        with torch.no_grad():  # once per run: the maps go to a cache
            self.maps = backbone.encode_image(picture(shape))
        self.optimiser = torch.optim.AdamW(self.parameters.values(), lr=1e-5)
        self.model.train()

    def loss(self) -> Tensor:
        return self.model(feature_maps=self.maps, labels=self.labels)["loss"]


class OurFusion(FusionStep):
    """One fusion layer's attention with valid tokens alone."""

    def __init__(self, shape: DetectionShape, valid: int):
        super().__init__(shape, valid)
        prefix = "rpn.head.dyhead_tower.0.b_attn.attn."
        self.attention = BidirectionalAttention(shape.channels, shape.text_width, shape.inner, shape.fusion_heads)
        self.attention.load_state_dict({k.removeprefix(prefix): v for k, v in weights(shape, prefix).items()})
        self.attention.eval().requires_grad_(False)
        self.to_visual = InverseProjection(self.attention.v_proj)
        self.to_text = InverseProjection(self.attention.l_proj)
        self.valid, self.mask = valid, torch.ones(1, valid)
        visual, text = self.gradients
        self.gradients = visual, text[:, :valid].contiguous()

    def attend(self, prototypes: Tensor, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        tokens = FusionTokens(visual=self.to_visual(prototypes), text=self.to_text(prototypes))
        return self.attention(visual, text[:, : self.valid], self.mask, tokens)
