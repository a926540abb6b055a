"""Configuration of GLIP (Li et al., "Grounded Language-Image Pre-training", arXiv 2112.03857)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, BertConfig, PreTrainedConfig

from ...errors import ConfigError


class GlipConfig(PreTrainedConfig):
    """Sizes and constants of a GLIP detector; the defaults are GLIP-T.

    Args:
        embed_dim: width of the first Swin stage; doubles with each stage.
        depths, num_heads: blocks and attention heads of the four Swin stages.
        window_size: side of a Swin window in tokens.
        mlp_ratio: hidden width of a Swin MLP over its input width.
        drop_path_rate: stochastic depth of the last Swin block (linear from 0); training only.
        fpn_channels: width of the image maps after the feature pyramid.
        drop_block_prob, drop_block_size: DropBlock on the two finer merged maps; training only, 0 switches it off.
        num_fusion_layers: K, blocks of the fusion tower.
        fusion_dim, fusion_heads: inner width and heads of the bidirectional attention.
        fusion_dropout: dropout on both attention maps; training only.
        group_norm_groups: groups of the norm behind each deformable convolution.
        dynamic_relu_reduction: channels over hidden units in DYReLU.
        num_unused_classes: rows of the classifier that official checkpoints carry and nothing reads.
        max_text_tokens: longest caption in tokens, [CLS] and [SEP] included; the last of them is the
            "no object" slot of the training targets.
        strides: pixels per cell of the five image maps.
        anchor_scale: side of an anchor over its stride.
        prior_prob: initial probability of a token being matched.
        atss_topk: candidates per box and level when anchors are assigned.
        focal_alpha, focal_gamma: focal loss on token logits.
        box_loss_weight: factor of the GIoU loss.
        score_threshold: class probability above which a cell is a candidate.
        pre_nms_top: candidates kept per level.
        nms_threshold: IoU above which the lower-scored box of the same class is dropped.
        max_detections: boxes kept per image.
        text_config: BERT of the text tower; its sizes are also those of the tower's text layers.
    """

    model_type = "glip"
    sub_configs = {"text_config": BertConfig}

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.2,
        fpn_channels: int = 256,
        drop_block_prob: float = 0.3,
        drop_block_size: int = 3,
        num_fusion_layers: int = 6,
        fusion_dim: int = 2048,
        fusion_heads: int = 8,
        fusion_dropout: float = 0.1,
        group_norm_groups: int = 16,
        dynamic_relu_reduction: int = 4,
        num_unused_classes: int = 80,
        max_text_tokens: int = 256,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        anchor_scale: float = 8.0,
        prior_prob: float = 0.01,
        atss_topk: int = 9,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss_weight: float = 2.0,
        score_threshold: float = 0.05,
        pre_nms_top: int = 1000,
        nms_threshold: float = 0.6,
        max_detections: int = 100,
        text_config: BertConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.embed_dim = embed_dim
        self.depths, self.num_heads = list(depths), list(num_heads)
        self.window_size, self.mlp_ratio, self.drop_path_rate = window_size, mlp_ratio, drop_path_rate
        self.fpn_channels = fpn_channels
        self.drop_block_prob, self.drop_block_size = drop_block_prob, drop_block_size
        self.num_fusion_layers = num_fusion_layers
        self.fusion_dim, self.fusion_heads, self.fusion_dropout = fusion_dim, fusion_heads, fusion_dropout
        self.group_norm_groups, self.dynamic_relu_reduction = group_norm_groups, dynamic_relu_reduction
        self.num_unused_classes = num_unused_classes
        self.max_text_tokens = max_text_tokens
        self.strides, self.anchor_scale, self.prior_prob = list(strides), anchor_scale, prior_prob
        self.atss_topk, self.focal_alpha, self.focal_gamma = atss_topk, focal_alpha, focal_gamma
        self.box_loss_weight = box_loss_weight
        self.score_threshold, self.pre_nms_top = score_threshold, pre_nms_top
        self.nms_threshold, self.max_detections = nms_threshold, max_detections
        if text_config is None:
            text_config = BertConfig()
        elif isinstance(text_config, dict):
            text_config = BertConfig(**{k: v for k, v in text_config.items() if k != "model_type"})
        self.text_config = text_config
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """All faults at once."""
        faults = []
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            faults.append(f"a Swin backbone has four stages, got depths {self.depths} and num_heads {self.num_heads}")
        for stage, heads in enumerate(self.num_heads):
            if (self.embed_dim << stage) % heads:
                faults.append(f"width {self.embed_dim << stage} of stage {stage} is no multiple of its {heads} heads")
        if self.fusion_dim % self.fusion_heads:
            faults.append(f"fusion_dim {self.fusion_dim} is no multiple of fusion_heads {self.fusion_heads}")
        if self.fpn_channels % self.group_norm_groups:
            faults.append(
                f"fpn_channels {self.fpn_channels} is no multiple of group_norm_groups {self.group_norm_groups}"
            )
        if self.strides != [8, 16, 32, 64, 128]:
            faults.append(f"strides are given by the architecture: [8, 16, 32, 64, 128], got {self.strides}")
        if not 3 <= self.max_text_tokens <= self.text_config.max_position_embeddings:
            faults.append(
                f"max_text_tokens {self.max_text_tokens} must be between 3 and the text tower's "
                f"{self.text_config.max_position_embeddings} positions"
            )
        if faults:
            raise ConfigError(*faults)

    @property
    def text_dim(self) -> int:
        """Width of text tokens."""
        return self.text_config.hidden_size

    @classmethod
    def glip_t(cls, **overrides: Any) -> GlipConfig:
        """GLIP-T (`glip_Swin_T_O365_GoldG`): 231,780,222 parameters."""
        return cls(**overrides)

    @classmethod
    def glip_l(cls, **overrides: Any) -> GlipConfig:
        """GLIP-L (`glip_Swin_L`): 430,422,384 parameters."""
        sizes = {
            "embed_dim": 192,
            "depths": (2, 2, 18, 2),
            "num_heads": (6, 12, 24, 48),
            "window_size": 12,
            "drop_path_rate": 0.4,
            "num_fusion_layers": 8,
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def tiny(cls, **overrides: Any) -> GlipConfig:
        """The same architecture at toy width, for tests and small experiments: about 0.5 M parameters."""
        sizes = {
            "embed_dim": 16,
            "depths": (1, 2, 2, 1),
            "num_heads": (1, 2, 2, 4),
            "window_size": 4,
            "drop_path_rate": 0.1,
            "fpn_channels": 32,
            "num_fusion_layers": 2,
            "fusion_dim": 64,
            "fusion_heads": 4,
            "group_norm_groups": 4,
            "num_unused_classes": 4,
            "max_text_tokens": 32,
            "text_config": BertConfig(
                vocab_size=128,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            ),
        }
        return cls(**{**sizes, **overrides})


# transformers' automatic classes (AutoTokenizer among them) read config.json and are to know whose it is
AutoConfig.register(GlipConfig.model_type, GlipConfig, exist_ok=True)

__all__ = ["GlipConfig"]
