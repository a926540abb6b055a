"""The fusion tower: in every block image and text attend to each other, then each goes on alone.

    image maps ─ LayerNorm ─┐                    ┌─ + gamma_v · Δv ─ dynamic convolution ─ image maps
                            bidirectional attention
    text       ─ LayerNorm ─┘                    └─ + gamma_l · Δl ─ BERT layer ────────── text

The residuals start at the *normed* tensors. `BidirectionalAttention` is the place for learned tokens: whatever is
handed to it as `FusionTokens` is attended to and asks nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...tracing import traced
from .dynamic_conv import DynamicConv
from .folded_attention import FoldedKeys, clamp_scores, folded_attention
from .initialization import tagged


@dataclass
class FusionTokens:
    """Learned tokens of one fusion layer, in the widths of the (normed) inputs.

    Attributes:
        visual: (n, visual width) or (B, n, visual width): further keys and values for text queries.
        text: (m, text width) or (B, m, text width): further keys and values for image queries.
    """

    visual: Tensor | None = None
    text: Tensor | None = None


FusionPrompts: TypeAlias = Callable[[int, Tensor, Tensor], "FusionTokens | None"]
"""`(layer, visual (B, N, d_v), text (B, T, d_l)) -> tokens`; both inputs are already normed. Layers count from 0."""


class BidirectionalAttention(nn.Module):
    """Cross attention in both directions over one score matrix.

    With q = V W_v^T + b_v (image), k = L W_l^T + b_l (text) and scores S = q k^T / sqrt(head dim), per head:

        Δv = softmax_text(S)  (L W_vl^T + b_vl) W_ov^T + b_ov
        Δl = softmax_image(S^T) (V W_vv^T + b_vv) W_ol^T + b_ol

    There are thousands of image positions and few text tokens, so nothing of the wide inner width is ever computed
    per image position: products are reordered to V (W_v^T k^T), (A V) W_vv^T and A (values W_ov^T). Same numbers up
    to rounding.
    """

    def __init__(self, visual_dim: int, text_dim: int, inner_dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, inner_dim // heads, dropout
        self.v_proj = tagged(nn.Linear(visual_dim, inner_dim), "xavier")
        self.l_proj = tagged(nn.Linear(text_dim, inner_dim), "xavier")
        self.values_v_proj = tagged(nn.Linear(visual_dim, inner_dim), "xavier")
        self.values_l_proj = tagged(nn.Linear(text_dim, inner_dim), "xavier")
        self.out_v_proj = tagged(nn.Linear(inner_dim, visual_dim), "xavier")
        self.out_l_proj = tagged(nn.Linear(inner_dim, text_dim), "xavier")

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        tokens: FusionTokens | None = None,
        visual_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """-> updates (Δv like visual, Δl like text).

        Args:
            visual: (B, N, d_v).
            text: (B, T, d_l). text_mask: (B, T), nonzero for tokens that image queries may attend to; None for all.
                Text queries run for every position, valid or not.
            tokens: further keys and values.
            visual_mask: (B, N), nonzero for positions that text queries may attend to; None for all, those of image
                padding too, which is how GLIP does it.
        """
        tokens = tokens or FusionTokens()
        batch, length = visual.shape[0], text.shape[1]
        keys = self._heads(self.l_proj(text))
        values_l = self._heads(self.values_l_proj(text))
        if tokens.text is not None:
            keys = torch.cat([keys, self._token_heads(self.l_proj, tokens.text, batch)], 2)
            values_l = torch.cat([values_l, self._token_heads(self.values_l_proj, tokens.text, batch)], 2)
        more = tokens.visual
        if more is not None:
            more = (more if more.dim() == 3 else more[None].expand(batch, -1, -1)).to(visual.dtype)
        hidden = None
        # where asking is free: a test on a tensor makes an accelerator wait and breaks a graph
        free = not traced() and text_mask is not None and text_mask.device.type == "cpu"
        if text_mask is not None and not (free and text_mask.all()):
            hidden = F.pad(text_mask.to(torch.bool), (0, keys.shape[2] - length), value=True).logical_not()
        unseen = None if visual_mask is None else visual_mask == 0

        keys = keys * self.head_dim**-0.5
        folded = keys @ self.v_proj.weight.view(self.heads, self.head_dim, -1)
        offset = (keys @ self.v_proj.bias.view(self.heads, self.head_dim, 1)).squeeze(-1)
        out_weight = self.out_v_proj.weight.view(-1, self.heads, self.head_dim).permute(1, 2, 0)
        values_l = values_l @ out_weight
        asked = FoldedKeys(folded, offset, values_l, length, hidden, unseen)
        if traced() or (self.training and self.dropout):
            return self._in_memory(visual, more, asked)
        delta_v, context = folded_attention(visual, more, asked)
        return delta_v + self.out_v_proj.bias, self._text_update(context, 1.0)

    def _in_memory(self, visual: Tensor, more: Tensor | None, asked: FoldedKeys) -> tuple[Tensor, Tensor]:
        """The same in plain operations, both maps in memory and thinned; arguments as `folded_attention`'s."""
        folded, offset, values, length, hidden, unseen = asked
        batch, heads, keys, _ = folded.shape
        everything = visual if more is None else torch.cat([visual, more], 1)
        scores = torch.baddbmm(offset.reshape(batch, -1, 1), folded.flatten(1, 2), everything.transpose(1, 2))
        scores = clamp_scores(scores).view(batch, heads, keys, -1)
        seen = scores[..., : visual.shape[1]]
        if hidden is not None:
            seen = seen.masked_fill(hidden[:, None, :, None], torch.finfo(scores.dtype).min)
        to_image = F.dropout(seen.softmax(2), self.dropout, self.training).flatten(1, 2)
        delta_v = to_image.transpose(1, 2) @ values.flatten(1, 2) + self.out_v_proj.bias
        asking = scores[:, :, :length]
        if unseen is not None:
            nobody = F.pad(unseen, (0, everything.shape[1] - unseen.shape[1]))
            asking = asking.masked_fill(nobody[:, None, None], torch.finfo(scores.dtype).min)
        to_text = F.dropout(asking.softmax(-1), self.dropout, self.training)
        context = (to_text.flatten(1, 2) @ everything).view(batch, heads, length, -1)
        # Each row of the attention sums to 1 unless dropout has thinned it.
        return delta_v, self._text_update(context, to_text.sum(-1, keepdim=True))

    def _text_update(self, context: Tensor, mass: Tensor | float) -> Tensor:
        """What text attends to (B, heads, T, d_v), and the sum of its attention -> (B, T, d_l)."""
        values = context @ self.values_v_proj.weight.view(self.heads, self.head_dim, -1).transpose(1, 2)
        values = values + mass * self.values_v_proj.bias.view(self.heads, 1, self.head_dim)
        return self.out_l_proj(values.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, inner) -> (B, heads, L, head dim)."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)

    def _token_heads(self, projection: nn.Linear, tokens: Tensor, batch: int) -> Tensor:
        """Keys or values of learned tokens: computed once if all samples share them."""
        projected = projection(tokens if tokens.dim() == 3 else tokens[None])
        return self._heads(projected).expand(batch, -1, -1, -1)


class VisionLanguageFusion(nn.Module):
    """Norms, bidirectional attention, scaled residuals (VLFuse)."""

    def __init__(
        self, visual_dim: int, text_dim: int, inner_dim: int, heads: int, dropout: float = 0.0, gamma: float = 1.0
    ):
        super().__init__()
        self.layer_norm_v = nn.LayerNorm(visual_dim)
        self.layer_norm_l = nn.LayerNorm(text_dim)
        self.attn = BidirectionalAttention(visual_dim, text_dim, inner_dim, heads, dropout)
        self.gamma_init = gamma
        self.gamma_v = nn.Parameter(torch.full((visual_dim,), gamma))
        self.gamma_l = nn.Parameter(torch.full((text_dim,), gamma))

    def forward(
        self,
        maps: list[Tensor],
        text: Tensor,
        text_mask: Tensor | None = None,
        prompts: Callable[[Tensor, Tensor], FusionTokens | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """maps: five (B, d_v, h, w); text: (B, T, d_l) -> the same shapes.

        Args:
            prompts: `(normed visual, normed text) -> tokens` of this layer.
        """
        visual = self.layer_norm_v(flatten_maps(maps))
        text = self.layer_norm_l(text)
        tokens = prompts(visual, text) if prompts is not None else None
        delta_v, delta_l = self.attn(visual, text, text_mask, tokens)
        visual = visual + self.gamma_v * delta_v
        return unflatten_maps(visual, [m.shape[-2:] for m in maps]), text + self.gamma_l * delta_l


def flatten_maps(maps: list[Tensor]) -> Tensor:
    """Maps (B, C, h, w) -> (B, N, C): level after level, row-major."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def unflatten_maps(flat: Tensor, sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Inverse of `flatten_maps`: views in channels-last memory."""
    parts = flat.split([h * w for h, w in sizes], 1)
    return [part.unflatten(1, tuple(size)).permute(0, 3, 1, 2) for part, size in zip(parts, sizes)]


class _SelfAttention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)


class _Output(nn.Module):
    def __init__(self, in_dim: int, dim: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(in_dim, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=eps)


class _Attention(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.self = _SelfAttention(dim)
        self.output = _Output(dim, dim, eps)


class _Intermediate(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.dense = nn.Linear(dim, hidden)


class FusionTextLayer(nn.Module):
    """A post-norm BERT layer with clamped activations. Names are BERT's, so its weights can be too."""

    def __init__(
        self, dim: int, heads: int, hidden: int, eps: float, dropout: float = 0.0, attention_dropout: float = 0.0
    ):
        super().__init__()
        self.heads, self.dropout, self.attention_dropout = heads, dropout, attention_dropout
        self.attention = _Attention(dim, eps)
        self.intermediate = _Intermediate(dim, hidden)
        self.output = _Output(hidden, dim, eps)

    def forward(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d). text_mask: (B, T), nonzero for tokens that may be attended to; None for all."""
        batch, length, dim = text.shape
        project = self.attention.self
        q, k, v = (
            layer(text).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (project.query, project.key, project.value)
        )
        scores = clamp_scores(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5)
        if text_mask is not None:
            scores = scores.masked_fill(text_mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
        attention = F.dropout(scores.softmax(-1), self.attention_dropout, self.training)
        context = (attention @ v).transpose(1, 2).reshape(batch, length, dim)
        text = self._residual(self.attention.output, context, text)
        hidden = clamp_scores(F.gelu(clamp_scores(self.intermediate.dense(text))))
        return clamp_scores(self._residual(self.output, hidden, text, clamp=True))

    def _residual(self, output: _Output, hidden: Tensor, skip: Tensor, clamp: bool = False) -> Tensor:
        hidden = output.dense(hidden)
        hidden = clamp_scores(hidden) if clamp else hidden
        return output.LayerNorm(skip + F.dropout(hidden, self.dropout, self.training))


class FusionBlock(nn.Module):
    """Fusion, then a text layer and a dynamic convolution that do not see each other."""

    def __init__(self, fusion: VisionLanguageFusion, text: FusionTextLayer, image: DynamicConv):
        super().__init__()
        self.fusion, self.text, self.image = fusion, text, image

    def forward(
        self,
        maps: list[Tensor],
        text: Tensor,
        text_mask: Tensor | None = None,
        prompts: Callable[[Tensor, Tensor], FusionTokens | None] | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        maps, text = self.fusion(maps, text, text_mask, prompts)
        # Text first: checkpointing then ends before the convolutions where these need no gradient.
        text = self.text(text, text_mask)
        return self.image(maps), text


class FusionTower(nn.Module):
    """K fusion blocks.

    Attributes:
        gradient_checkpointing: recompute a block in the backward pass instead of keeping its inner tensors. Also
            works in eval mode, because prompts are learned while the model stays there.
    """

    # what transformers' own switch sets
    _gradient_checkpointing_func = staticmethod(partial(checkpoint, use_reentrant=False))

    def __init__(self, blocks: list[FusionBlock]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.gradient_checkpointing = False

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, layer: int) -> FusionBlock:
        return self.blocks[layer]

    def steps(
        self,
        maps: list[Tensor],
        text: Tensor,
        text_mask: Tensor | None = None,
        prompts: FusionPrompts | None = None,
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        """(maps, text) behind each block."""
        for layer, block in enumerate(self.blocks):
            ask = None if prompts is None else _Asker(prompts, layer)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                maps, text = self._gradient_checkpointing_func(block.__call__, maps, text, text_mask, ask)
            else:
                maps, text = block(maps, text, text_mask, ask)
            yield maps, text

    def forward(self, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
        """Maps and text behind the last block; arguments as for `steps`."""
        for maps, text in self.steps(*args, **kwargs):  # noqa: B007  the last pair is wanted
            pass
        return maps, text


@dataclass
class _Asker:
    """One layer's view of the prompts."""

    prompts: FusionPrompts
    layer: int

    def __call__(self, visual: Tensor, text: Tensor) -> FusionTokens | None:
        return self.prompts(self.layer, visual, text)
