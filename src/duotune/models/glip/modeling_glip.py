"""GLIP: a detector that scores every image position against every token of a caption.

    pixels ─ Swin ─ feature pyramid ─ five maps ┐                    ┌ token logits, box deltas, centerness per position
                                                ├─ fusion tower ─ head
    caption ─ BERT ──────────── token features ─┘

Parameter names below `model.vision`, `model.text`, `model.tower` and `head` are those of the official checkpoints;
see `conversion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ...precision import full_precision
from .anchors import pyramid_anchors
from .configuration_glip import GlipConfig
from .deform_conv import ModulatedDeformConv
from .dynamic_conv import DynamicConv
from .fpn import GlipFpn
from .fusion import (
    FusionBlock,
    FusionPrompts,
    FusionTextLayer,
    FusionTower,
    VisionLanguageFusion,
)
from .head import GlipHead, LevelScale
from .initialization import initialise
from .losses import build_targets, detection_losses
from .swin import GlipSwin, WindowAttention, WindowTokens, relative_position_index


@dataclass
class GlipModelOutput(ModelOutput):
    """
    Attributes:
        feature_maps: five (B, C, h, w) of strides 8 ... 128, behind the fusion tower.
        text_hidden: (B, T, d) behind the fusion tower. Rows of padding are carried along and mean nothing.
        text_mask: (B, T), nonzero for valid tokens.
    """

    feature_maps: tuple[Tensor, ...] | None = None
    text_hidden: Tensor | None = None
    text_mask: Tensor | None = None


@dataclass
class GlipDetectionOutput(ModelOutput):
    """
    Attributes:
        loss: scalar, if labels were given. losses: its parts.
        logits: (B, N, T) position against token; N runs over the levels, finest first, row-major.
        box_deltas: (B, N, 4) boxes relative to anchors, see `boxes.decode_boxes`.
        centerness: (B, N) logits.
        anchors: per level (N_l, 4), inclusive corners in pixels of the network's input.
        text_mask: (B, T), nonzero for valid tokens.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    box_deltas: Tensor | None = None
    centerness: Tensor | None = None
    anchors: tuple[Tensor, ...] | None = None
    text_mask: Tensor | None = None


class GlipPreTrainedModel(PreTrainedModel):
    config_class = GlipConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the official code initialises each part; called for modules with parameters or buffers of their own."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            initialise(module)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            init.normal_(module.relative_position_bias_table, std=0.02)
            init.copy_(module.relative_position_index, relative_position_index(module.window))
        elif isinstance(module, ModulatedDeformConv):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, VisionLanguageFusion):
            init.constant_(module.gamma_v, module.gamma_init)
            init.constant_(module.gamma_l, module.gamma_init)
        elif isinstance(module, LevelScale):
            init.ones_(module.scale)
        elif isinstance(module, GlipHead):
            init.constant_(module.cls_logits.bias, module.prior_bias)
            init.constant_(module.bias0, module.prior_bias)
            init.zeros_(module.bias_lang)
            init.zeros_(module.log_scale)


class GlipVision(nn.Module):
    """Swin and feature pyramid."""

    def __init__(self, config: GlipConfig):
        super().__init__()
        self.swin = GlipSwin(
            config.embed_dim,
            config.depths,
            config.num_heads,
            config.window_size,
            config.mlp_ratio,
            config.drop_path_rate,
        )
        widths = [config.embed_dim << stage for stage in (1, 2, 3)]
        self.fpn = GlipFpn(widths, config.fpn_channels, config.drop_block_prob, config.drop_block_size)

    def forward(self, pixel_values: Tensor, window_tokens: WindowTokens | None = None) -> list[Tensor]:
        """(B, 3, H, W) -> five maps (B, C, h, w)."""
        return self.fpn(self.swin(pixel_values, window_tokens)[1:])


def build_tower(config: GlipConfig) -> FusionTower:
    """The fusion tower of a configuration."""
    text, channels = config.text_config, config.fpn_channels
    return FusionTower(
        [
            FusionBlock(
                VisionLanguageFusion(
                    channels,
                    text.hidden_size,
                    config.fusion_dim,
                    config.fusion_heads,
                    config.fusion_dropout,
                    gamma=1.0 / config.num_fusion_layers,
                ),
                FusionTextLayer(
                    text.hidden_size,
                    text.num_attention_heads,
                    text.intermediate_size,
                    text.layer_norm_eps,
                    text.hidden_dropout_prob,
                    text.attention_probs_dropout_prob,
                ),
                DynamicConv(channels, config.group_norm_groups, config.dynamic_relu_reduction),
            )
            for _ in range(config.num_fusion_layers)
        ]
    )


class GlipModel(GlipPreTrainedModel):
    """Both encoders and the fusion tower, without the detection head."""

    def __init__(self, config: GlipConfig):
        super().__init__(config)
        self.vision = GlipVision(config)
        self.text = BertModel(config.text_config, add_pooling_layer=False)
        self.tower = build_tower(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.set_input_embeddings(value)

    def encode_image(self, pixel_values: Tensor, window_tokens: WindowTokens | None = None) -> list[Tensor]:
        """(B, 3, H, W) normalised pixels -> five maps (B, C, h, w) before fusion."""
        return self.vision(pixel_values.to(self.dtype), window_tokens)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, trim_text: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(B, T) token ids -> hidden states (B, T', d) before fusion and their mask (B, T').

        Args:
            trim_text: drop columns that are padding in all captions. The official code pads every caption to 256
                tokens and carries the padding through all layers, where nothing valid ever reads it: image queries
                and text layers mask it, classes have no token there and the loss leaves it out. So outputs at valid
                positions are the same either way; without padding they take a fraction of the time.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if trim_text:
            length = int(attention_mask.ne(0).any(0).nonzero().max()) + 1
            input_ids, attention_mask = input_ids[:, :length], attention_mask[:, :length]
        hidden = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden, attention_mask

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        feature_maps: Sequence[Tensor] | None = None,
        text_hidden: Tensor | None = None,
        trim_text: bool = True,
        fusion_prompts: FusionPrompts | None = None,
        window_tokens: WindowTokens | None = None,
        **kwargs: Any,
    ) -> GlipModelOutput:
        """
        Args:
            pixel_values: (B, 3, H, W) normalised pixels, or feature_maps: what `encode_image` gave for them.
            input_ids: (B, T) token ids, or text_hidden: (B, T, d), what `encode_text` gave for them.
            attention_mask: (B, T), nonzero for valid tokens; None for all valid.
            trim_text: see `encode_text`.
            fusion_prompts: asked in every fusion layer for learned tokens.
            window_tokens: asked before every Swin block for learned tokens.
        """
        if (pixel_values is None) == (feature_maps is None):
            raise ValueError("give either pixel_values or feature_maps")
        if (input_ids is None) == (text_hidden is None):
            raise ValueError("give either input_ids or text_hidden")
        if feature_maps is None:
            feature_maps = self.encode_image(pixel_values, window_tokens)
        if text_hidden is None:
            text_hidden, attention_mask = self.encode_text(input_ids, attention_mask, trim_text)
        elif attention_mask is None:
            attention_mask = torch.ones(text_hidden.shape[:2], dtype=torch.long, device=text_hidden.device)
        if text_hidden.shape[0] != feature_maps[0].shape[0]:
            raise ValueError(f"{feature_maps[0].shape[0]} images need as many captions, got {text_hidden.shape[0]}")
        maps, text_hidden = self.tower(list(feature_maps), text_hidden, attention_mask, fusion_prompts)
        return GlipModelOutput(feature_maps=tuple(maps), text_hidden=text_hidden, text_mask=attention_mask)


class GlipForObjectDetection(GlipPreTrainedModel):
    """GLIP with its detection head and losses."""

    def __init__(self, config: GlipConfig):
        super().__init__(config)
        self.model = GlipModel(config)
        self.head = GlipHead(
            config.fpn_channels,
            config.text_dim,
            len(config.strides),
            config.num_unused_classes,
            config.prior_prob,
        )
        self.post_init()

    def anchors(self, sizes: Sequence[tuple[int, int]], device: torch.device | None = None) -> list[Tensor]:
        """Anchors (N_l, 4) of maps with the given (height, width)."""
        return pyramid_anchors(sizes, self.config.strides, self.config.anchor_scale, device)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Sequence[dict[str, Tensor]] | None = None,
        **inputs: Any,
    ) -> GlipDetectionOutput:
        """
        Args:
            pixel_values, input_ids, attention_mask, inputs: see `GlipModel.forward`.
            labels: per image {"boxes": (M, 4) inclusive corners in pixels of the resized image,
                "positive_map": (M, T) nonzero for the tokens of each box's phrase}. M may be 0.
        """
        fused = self.model(pixel_values, input_ids, attention_mask, **inputs)
        maps = list(fused.feature_maps)
        logits, deltas, centerness = self.head(maps, fused.text_hidden)
        anchors = self.anchors([tuple(m.shape[-2:]) for m in maps], logits.device)
        losses = loss = None
        if labels is not None:
            losses = self.losses(logits, deltas, centerness, anchors, fused.text_mask, labels)
            loss = sum(losses.values())
        return GlipDetectionOutput(
            loss=loss,
            losses=losses,
            logits=logits,
            box_deltas=deltas,
            centerness=centerness,
            anchors=tuple(anchors),
            text_mask=fused.text_mask,
        )

    def losses(
        self,
        logits: Tensor,
        box_deltas: Tensor,
        centerness: Tensor,
        anchors: list[Tensor],
        text_mask: Tensor,
        labels: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Weighted losses of the head's outputs; see `losses.detection_losses`."""
        if len(labels) != len(logits):
            raise ValueError(f"{len(logits)} images need as many labels, got {len(labels)}")
        with full_precision(logits.device):
            return self._losses(logits, box_deltas, centerness, anchors, text_mask, labels)

    def _losses(self, logits, box_deltas, centerness, anchors, text_mask, labels) -> dict[str, Tensor]:
        config, targets = self.config, []
        for index, label in enumerate(labels):
            boxes, positive_map = label["boxes"].to(logits.device).float(), label["positive_map"].to(logits.device)
            if boxes.shape != (len(positive_map), 4):
                raise ValueError(
                    f"labels of image {index}: expected boxes (M, 4) and positive_map (M, T), "
                    f"got {tuple(boxes.shape)} and {tuple(positive_map.shape)}"
                )
            targets.append(
                build_targets(boxes, positive_map, anchors, logits.shape[2], config.max_text_tokens, config.atss_topk)
            )
        return detection_losses(
            logits,
            box_deltas,
            centerness,
            torch.cat(anchors),
            targets,
            text_mask,
            config.focal_alpha,
            config.focal_gamma,
            config.box_loss_weight,
        )


__all__ = ["GlipDetectionOutput", "GlipForObjectDetection", "GlipModel", "GlipModelOutput", "GlipPreTrainedModel"]
