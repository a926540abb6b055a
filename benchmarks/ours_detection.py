"""The SDPT training step as duotune runs it, feature maps and text features cached, and its fusion attention alone."""

from __future__ import annotations

import torch

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
    fusion_inputs,
    picture,
    prototypes,
    weights,
)


def build_model(shape: DetectionShape) -> GlipForObjectDetection:
    """The model of a shape with the benchmark's weights."""
    from transformers import BertConfig

    text = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        intermediate_size=shape.text_hidden,
        max_position_embeddings=2 * shape.text_slots,
    )
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
        text_config=text,
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


class OurSdptStep:
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

    def __call__(self) -> float:
        self.optimiser.zero_grad()
        loss = self.model(feature_maps=self.maps, labels=self.labels)["loss"]
        loss.backward()
        self.optimiser.step()
        return loss.item()


class OurFusion:
    """One fusion layer's attention with valid tokens alone, forward and backward; no update."""

    def __init__(self, shape: DetectionShape, valid: int):
        prefix = "rpn.head.dyhead_tower.0.b_attn.attn."
        self.attention = BidirectionalAttention(shape.channels, shape.text_width, shape.inner, shape.fusion_heads)
        self.attention.load_state_dict({k.removeprefix(prefix): v for k, v in weights(shape, prefix).items()})
        self.attention.eval().requires_grad_(False)
        self.to_visual = InverseProjection(self.attention.v_proj)
        self.to_text = InverseProjection(self.attention.l_proj)
        inputs = fusion_inputs(shape, valid)
        self.valid, self.mask = valid, torch.ones(1, valid)
        self.gradients = inputs["grad_visual"], inputs["grad_text"][:, :valid].contiguous()
        self.inputs = {
            "prototypes": prototypes(shape, 1)[0].requires_grad_(),
            "visual": inputs["visual"].requires_grad_(),
            "text": inputs["text"].requires_grad_(),
        }

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        return self.inputs

    def __call__(self) -> float:
        for tensor in self.inputs.values():
            tensor.grad = None
        learnt = self.inputs["prototypes"]
        tokens = FusionTokens(visual=self.to_visual(learnt), text=self.to_text(learnt))
        found = self.attention(self.inputs["visual"], self.inputs["text"][:, : self.valid], self.mask, tokens)
        torch.autograd.backward(found, self.gradients)
        return sum((a * b).double().sum() for a, b in zip(found, self.gradients)).item()
