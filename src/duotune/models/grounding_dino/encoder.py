"""The feature enhancer: in every layer image and text attend to each other, then each goes on alone.

    image ─ LayerNorm ─┐                   ┌─ + gamma_v · Δv ─ deformable attention over all levels ─ image
                       bidirectional attention
    text  ─ LayerNorm ─┘                   └─ + gamma_l · Δl ─ self-attention within sentences ────── text

The bidirectional attention is GLIP's but for names, widths and a mask of padded image positions, so it is run by the
same folded form. transformers' code subtracts maxima before its softmaxes, which changes nothing, and clamps what is
more than 50,000 below the maximum, which has no weight anyway.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...tracing import traced
from ..glip.fusion import BidirectionalAttention, FusionPrompts
from .text import sentence_mask, sentence_positions


class FoldedFusion(BidirectionalAttention):
    """The folded form over the weights of transformers' (MM)GroundingDinoBiMultiHeadAttention; holds none itself."""

    def __init__(self, attention: nn.Module):
        nn.Module.__init__(self)
        self.heads, self.head_dim, self.dropout = attention.num_heads, attention.head_dim, attention.dropout
        self.v_proj, self.l_proj = attention.vision_proj, attention.text_proj
        self.values_v_proj, self.values_l_proj = attention.values_vision_proj, attention.values_text_proj
        self.out_v_proj, self.out_l_proj = attention.out_vision_proj, attention.out_text_proj
        self.training = attention.training


@dataclass
class Layout:
    """Where the levels of a batch lie in a flat sequence of N positions, and what of them is image.

    Attributes:
        shapes: (h, w) of each level.
        masks: per level (B, h, w) bool, false where the picture is padded.
        mask: (B, N), the same, flat.
        ratios: (B, levels, 2), share of each level's width and height that is image.
        shape_tensor: (levels, 2) int64. level_starts: (levels,) int64, first position of each level.
        padded: whether any position is no image.
    """

    shapes: list[tuple[int, int]]
    masks: list[Tensor]
    mask: Tensor
    ratios: Tensor
    shape_tensor: Tensor
    level_starts: Tensor
    padded: bool

    @classmethod
    def of(cls, maps: Sequence[Tensor], sizes: Tensor) -> Layout:
        """sizes: (B, 4), height and width of the pictures, then those that they are padded to."""
        shapes = tuple(tuple(m.shape[-2:]) for m in maps)
        make = _layout if traced() else _kept_layout
        return make(shapes, tuple(map(tuple, sizes.tolist())), maps[0].dtype, maps[0].device)


def _layout(
    shapes: tuple[tuple[int, int], ...],
    sizes: tuple[tuple[int, int, int, int], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Layout:
    """A `Layout`, made on the host and copied."""
    own = torch.tensor(sizes)
    height, width = own[:, 2:].amax(0).tolist()
    inside = [torch.arange(n)[None] < own[:, axis, None] for axis, n in ((0, height), (1, width))]
    masks = []
    for shape in shapes:  # as nearest-neighbour interpolation of the pixel mask
        rows, cols = (F.interpolate(m[None].float(), n)[0].bool() for m, n in zip(inside, shape))
        masks.append(rows[:, :, None] & cols[:, None, :])
    count = lambda line: line.sum(1).to(dtype) / line.shape[1]
    ratios = torch.stack([torch.stack([count(m[:, 0]), count(m[:, :, 0])], 1) for m in masks], 1)
    mask = torch.cat([m.flatten(1) for m in masks], 1)
    lengths = torch.tensor([h * w for h, w in shapes])
    there = lambda x: x.to(device, non_blocking=True)
    return Layout(
        list(shapes),
        [there(m) for m in masks],
        there(mask),
        there(ratios),
        there(torch.tensor(shapes)),
        there(lengths.cumsum(0) - lengths),
        not bool(mask.all()),
    )


@functools.lru_cache(16)
def _kept_layout(*where: Any) -> Layout:
    """Pictures of one size come again and again."""
    with torch.inference_mode(False):  # it may be needed where gradients are
        return _layout(*where)


def flatten(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, d, h, w) -> (B, N, d): level after level, row-major."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def unflatten(flat: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Inverse of `flatten`: views in channels-last memory."""
    parts = flat.split([h * w for h, w in shapes], 1)
    return [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes)]


def sine_positions(positions: Tensor, width: int, dtype: torch.dtype, temperature: float = 10_000.0) -> Tensor:
    """(B, T) -> (B, T, width) sines and cosines in turn, as transformers' text enhancer adds them."""
    pair = torch.arange(width, dtype=torch.float32, device=positions.device).div(2, rounding_mode="floor")
    angle = positions[..., None].to(dtype) * (2 * math.pi) / temperature ** (2 * pair / width)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2).to(dtype)


def fuse(
    core: nn.Module,
    maps: Sequence[Tensor],
    sizes: Tensor,
    text: Tensor,
    text_mask: Tensor,
    starts: Tensor,
    prompts: FusionPrompts | None = None,
    checkpointing: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Maps and text behind the encoder, of the same shapes.

    Args:
        core: the `model` of a transformers' (MM)GroundingDinoForObjectDetection.
        maps, text: from `encode_image` and `encode_text`. sizes: see `Layout.of`.
        text_mask: (B, T), nonzero for tokens of the caption. starts: (B, T), see `text.sentence_starts`.
        prompts: asked in every layer for learnt tokens; see `FusionPrompts`.
        checkpointing: recompute a layer in the backward pass instead of keeping its inner tensors.
    """
    layout = Layout.of(maps, sizes)
    where = {
        "position_embeddings": _positions(core, maps, layout),
        "reference_points": core.encoder.get_reference_points(layout.shapes, layout.ratios, device=text.device),
        "spatial_shapes": layout.shape_tensor,
        "spatial_shapes_list": layout.shapes,
        "level_start_index": layout.level_starts,
    }
    visual_mask = layout.mask if layout.padded else None
    sees = sentence_mask(starts)
    text_positions = sine_positions(sentence_positions(starts), core.config.d_model, text.dtype)

    def run(number: int, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        layer = core.encoder.layers[number]
        fusion = layer.fusion_layer
        visual, text = fusion.layer_norm_vision(visual), fusion.layer_norm_text(text)
        tokens = prompts(number, visual, text) if prompts is not None else None
        delta_v, delta_l = FoldedFusion(fusion.attn)(visual, text, text_mask, tokens, visual_mask)
        visual = visual + fusion.drop_path(fusion.vision_param * delta_v)
        text = text + fusion.drop_path(fusion.text_param * delta_l)
        text, _ = layer.text_enhancer_layer(text, attention_masks=sees, position_embeddings=text_positions)
        visual, _ = layer.deformable_layer(visual, attention_mask=layout.mask, **where)
        return visual, text

    visual = flatten(maps)
    for number in range(len(core.encoder.layers)):
        if checkpointing and torch.is_grad_enabled():
            visual, text = checkpoint(run, number, visual, text, use_reentrant=False)
        else:
            visual, text = run(number, visual, text)
    return unflatten(visual, layout.shapes), text


def _positions(core: nn.Module, maps: Sequence[Tensor], layout: Layout) -> Tensor:
    """(B, N, d): where a position lies in its level, and which level that is."""
    parts = []
    for level, (one, mask) in enumerate(zip(maps, layout.masks)):
        sine = core.backbone.position_embedding(one, mask).to(one.dtype)
        parts.append(sine.flatten(2).transpose(1, 2) + core.level_embed[level])
    return torch.cat(parts, 1)
