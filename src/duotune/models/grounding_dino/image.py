"""Pixels to feature maps: transformers' backbone and input projections; a Swin with learnt tokens, block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..glip.swin import WindowTokens, window_merge, window_partition


def is_swin(core: nn.Module) -> bool:
    """Whether the image tower is transformers' SwinBackbone, which learnt tokens can enter."""
    return core.config.backbone_config.model_type == "swin"


def encode_image(core: nn.Module, pixel_values: Tensor, tokens: WindowTokens | None = None) -> list[Tensor]:
    """(B, 3, H, W) -> `num_feature_levels` maps (B, d, h, w), each half as large as the one before.

    Args:
        core: the `model` of a transformers' (MM)GroundingDinoForObjectDetection.
        tokens: asked before every block of a Swin for learnt tokens that its windows attend to.
    """
    backbone = core.backbone.conv_encoder.model
    if tokens is None:
        features = backbone(pixel_values).feature_maps
    else:
        features = swin_features(backbone, pixel_values, tokens)
    maps: list[Tensor] = []
    for level, project in enumerate(core.input_proj_vision):
        if level < len(features):
            maps.append(project(features[level]))
        else:  # coarser levels: first from the raw last map, then from each other
            maps.append(project(features[-1] if level == len(features) else maps[-1]))
    return maps


def swin_features(backbone: nn.Module, pixel_values: Tensor, tokens: WindowTokens) -> list[Tensor]:
    """Maps (B, C, h, w) of a SwinBackbone's output stages, with learnt tokens in its windows."""
    hidden, size = backbone.swin.embeddings(pixel_values)
    features = []
    for number, stage in enumerate(backbone.swin.encoder.layers):
        for index, block in enumerate(stage.blocks):
            learnt = tokens(number, index, hidden.unflatten(1, size))
            if learnt is None:
                hidden = block(hidden, size, always_partition=True)[0]
            else:
                hidden = _swin_block(block, hidden, size, learnt)
        name = f"stage{number + 1}"
        if name in backbone.out_features:
            normed = backbone.hidden_states_norms[name](hidden)
            features.append(normed.unflatten(1, size).permute(0, 3, 1, 2).contiguous())
        if stage.downsample is not None:
            hidden = stage.downsample(hidden, size)
            size = tuple(-(-side // 2) for side in size)
    return features


def _swin_block(block: nn.Module, hidden: Tensor, size: tuple[int, int], tokens: Tensor) -> Tensor:
    """(B, H * W, C) -> same. tokens: (n, C) or (B, n, C), normed as the block's input is."""
    height, width = size
    window = block.window_size
    y, _ = block.maybe_pad(block.layernorm_before(hidden).unflatten(1, size), height, width)
    padded = y.shape[1:3]
    tokens = block.layernorm_before(tokens if tokens.dim() == 3 else tokens[None])
    mask = block.get_attn_mask(*padded, dtype=y.dtype, device=y.device)
    y = _window_attention(block.attention, window_partition(block.cyclic_shift(y), window), mask, tokens)
    y = block.cyclic_shift(window_merge(y, window, *padded), reverse=True)[:, :height, :width]
    hidden = hidden + block.drop_path(block.dropout(y.flatten(1, 2)))
    return hidden + block.dropout(block.mlp(block.layernorm_after(hidden)))


def _window_attention(attention: nn.Module, windows: Tensor, mask: Tensor | None, tokens: Tensor) -> Tensor:
    """(B, windows, s, C) -> same; tokens (B or 1, n, C) are further keys and values and ask nothing themselves.

    Args:
        mask: (windows, s, s) added to the scores of a shifted block.
    """
    size, shape = windows.shape[2], (attention.num_attention_heads, attention.head_dim)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, shape).transpose(-3, -2)

    query = heads(attention.q_proj(windows)) * attention.scaling
    scores = query @ heads(attention.k_proj(windows)).mT + attention.relative_position_bias()
    if mask is not None:
        scores = scores + mask[:, None]
    extra = query @ heads(attention.k_proj(tokens)).mT[:, None]
    weights = torch.cat([scores, extra], -1).softmax(-1)
    out = weights[..., :size] @ heads(attention.v_proj(windows))
    out = out + weights[..., size:] @ heads(attention.v_proj(tokens))[:, None]
    return attention.o_proj(out.transpose(-3, -2).flatten(-2))
