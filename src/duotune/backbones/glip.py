"""GLIP (`duotune.models.glip`) as a detector with ports."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..grounding import Caption, CaptionPrompt, build_caption
from .base import CaptionFeatures, Detector, DetectorOutput, FusionPrompts, WindowTokens, weights_dtype
from .folders import (
    LOADING,
    check_files,
    check_finite,
    check_normalisation,
    check_report,
    check_side,
    check_tokenizer,
    guarded,
)

LINEAR_PROBE = ("bbox_pred.", "centerness.", "dot_product_projection_text.", "log_scale", "bias_lang", "bias0")
"""What GLIP's linear probing trains of the head: all that anything reads, but the factors of the levels."""


class GlipBackbone(Detector):
    """Ports of a `GlipForObjectDetection`.

    Args:
        name: what it was loaded from.
        model: the `GlipForObjectDetection`; frozen and put into eval mode here.
        processor: its `GlipProcessor`.
    """

    can_checkpoint = True

    def __init__(self, name: str, model, processor):
        super().__init__(name, model)
        config = model.config
        self.processor = processor
        self.num_fusion_layers = config.num_fusion_layers
        self.fusion_width, self.visual_width, self.text_width = config.fusion_dim, config.fpn_channels, config.text_dim
        self.block_widths = tuple((config.embed_dim << stage,) * depth for stage, depth in enumerate(config.depths))
        self.max_text_tokens = config.max_text_tokens
        self.tokenizer, self.normalize, self.pad = processor.tokenizer, processor.normalize, processor.pad
        self.short_side, self.long_side = processor.short_side, processor.long_side
        self.max_detections = processor.max_detections

    @classmethod
    def load(cls, name: str, source: str | Path, dtype: torch.dtype | None, device: torch.device | str) -> GlipBackbone:
        """Load a folder or Hub id that `GlipForObjectDetection` and `GlipProcessor` wrote.

        `dtype` None: see `weights_dtype`. Raises DataError.
        """
        from ..models.glip import GlipForObjectDetection, GlipProcessor

        with guarded(name, source, "GLIP model"):
            check_files(name, source, "GLIP model")
            model, report = GlipForObjectDetection.from_pretrained(source, **LOADING)
            check_report(name, report, "GLIP")
            check_finite(name, model)
            processor = GlipProcessor.from_pretrained(source)
            check_tokenizer(name, processor.tokenizer, model.config.text_config.vocab_size)
            check_side(name, short_side=processor.short_side, long_side=processor.long_side)
            check_normalisation(name, processor.pixel_mean, processor.pixel_std, 255.0)
            backbone = cls(name, model, processor)
        return backbone.to(device=device, dtype=weights_dtype(dtype, model.dtype, device))

    @property
    def gradient_checkpointing(self) -> bool:
        """As `Backbone.gradient_checkpointing`, of the fusion tower's blocks; the model's own switch is the same."""
        return self.model.model.tower.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.model.model.tower.gradient_checkpointing = bool(value)

    # ------------------------------------------------------------------ what goes in

    def caption(self, class_names: Sequence[str], prompts: Sequence[CaptionPrompt] | None = None) -> Caption:
        return build_caption(class_names, self.processor.tokenizer, self.max_text_tokens, prompts=prompts)

    def prepare(self, images: Sequence[Any]) -> tuple[Tensor, Tensor]:
        batch = self.processor(list(images))
        return self.receive(batch["pixel_values"]), batch["image_sizes"]

    def encode_image(
        self, pixel_values: Tensor, window_tokens: WindowTokens | None = None, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        # GLIP attends to padding like to anything else
        return self.model.model.encode_image(pixel_values, window_tokens)

    def _encode_caption(self, text: str) -> CaptionFeatures:
        ids = self.receive(self.processor.tokenize([text])["input_ids"])
        return CaptionFeatures(*self.model.model.encode_text(ids))

    # ------------------------------------------------------------------ fusion and head

    def fusion_projections(self, layer: int) -> tuple[nn.Linear, nn.Linear]:
        attention = self.model.model.tower[layer].fusion.attn
        return attention.v_proj, attention.l_proj

    def fuse(
        self, maps: Sequence[Tensor], text: CaptionFeatures, prompts: FusionPrompts | None = None
    ) -> tuple[list[Tensor], CaptionFeatures]:
        fused, hidden = self.model.model.tower(list(maps), text.hidden, text.mask, prompts)
        return fused, CaptionFeatures(hidden, text.mask)

    def read(
        self,
        maps: Sequence[Tensor],
        text: CaptionFeatures,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        head: nn.Module | None = None,
    ) -> DetectorOutput:
        head = head if head is not None else self.model.head
        logits, deltas, centerness = head(list(maps), text.hidden)
        anchors = self.model.anchors([tuple(m.shape[-2:]) for m in maps], logits.device)
        losses = None
        if labels is not None:
            labels = [glip_labels(label) for label in labels]
            losses = self.model.losses(logits, deltas, centerness, anchors, text.mask, labels)
        return self._output(logits, deltas, centerness, anchors, text.mask, losses)

    @staticmethod
    def _output(logits, deltas, centerness, anchors, mask, losses) -> DetectorOutput:
        from ..models.glip import GlipDetectionOutput

        raw = GlipDetectionOutput(
            logits=logits, box_deltas=deltas, centerness=centerness, anchors=tuple(anchors), text_mask=mask
        )
        return DetectorOutput(logits, mask, raw, losses)

    # ------------------------------------------------------------------ copies to train

    def copy_head(self) -> nn.Module:
        head = copy.deepcopy(self.model.head).float()
        for name, parameter in head.named_parameters():
            parameter.requires_grad_(name.startswith(LINEAR_PROBE))
        return head

    def copy_model(self) -> nn.Module:
        model = copy.deepcopy(self.model).float().requires_grad_(True)
        model.head.cls_logits.requires_grad_(False)
        return model

    def text_encoder(self, model: nn.Module) -> nn.Module:
        return model.model.text

    def run(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        captions: Sequence[Caption],
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        image_sizes: Tensor | None = None,
    ) -> DetectorOutput:
        text = {k: self.receive(v) for k, v in self.processor.tokenize([c.text for c in captions]).items()}
        labels = None if labels is None else [glip_labels(label) for label in labels]
        model.model.tower.gradient_checkpointing = self.gradient_checkpointing
        out = model(pixel_values, **text, labels=labels, trim_text=False)  # the longest has no padding
        return DetectorOutput(out.logits, out.text_mask, out, out.losses)

    # ------------------------------------------------------------------ boxes

    def _decode(
        self,
        raw: Any,
        captions: Sequence[Caption],
        image_sizes: Tensor,
        target_sizes: Tensor | None,
        limits: Mapping[str, float],
    ) -> list[dict[str, Any]]:
        found = self.processor.post_process_object_detection(raw, captions, image_sizes, target_sizes, **limits)
        sizes = image_sizes if target_sizes is None else target_sizes
        for row, (height, width) in zip(found, torch.as_tensor(sizes).tolist()):
            # from inclusive corners, as in COCO's evaluation of GLIP, to width = x2 - x1
            boxes = row["boxes"] + row["boxes"].new_tensor([0, 0, 1, 1])
            row["boxes"] = torch.minimum(boxes, boxes.new_tensor([width, height, width, height]))
        return found


def glip_labels(label: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Boxes with width = x2 - x1 -> GLIP's inclusive corners, one pixel of the original picture less."""
    boxes, pixel = label["boxes"].float(), label.get("scale", (1.0, 1.0))
    if isinstance(pixel, Tensor):  # numbers of the host need no copy to where the boxes are
        pixel = pixel.tolist() if pixel.device.type == "cpu" else pixel.to(boxes.dtype)
    low = boxes[:, :2]
    high = torch.stack([boxes[:, 2 + axis] - pixel[axis] for axis in (0, 1)], 1)
    return {"boxes": torch.cat([low, torch.maximum(low, high)], 1), "positive_map": label["positive_map"]}
