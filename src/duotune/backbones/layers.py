"""Frozen CLIP layers, run by hand on the Hugging Face modules' own weights.

Three differences from calling the modules, all exact: rows that nobody reads are not computed (the
outputs of prompt tokens; every row but the pooled one in the last layer), rows that all texts share
are computed once, and on a CPU whole blocks are single autograd steps (`frozen`).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tracing import hand_written
from .frozen import ACTIVATIONS, FrozenAttention, FrozenMLP
from .texts import TextEnds


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., N, d) -> (..., heads, N, d / heads)"""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """(..., heads, N, h) -> (..., N, heads * h)"""
    return x.transpose(-2, -3).flatten(-2)


def single_step(layer: nn.Module, x: Tensor) -> bool:
    """Whether the blocks of `frozen` serve here."""
    return hand_written(x) and layer.mlp.config.hidden_act in ACTIVATIONS and x.dtype == layer.mlp.fc1.weight.dtype


def feed_forward(layer: nn.Module, x: Tensor) -> Tensor:
    """x + MLP(LayerNorm2(x)) of any rows (..., d)."""
    if not single_step(layer, x):
        return x + layer.mlp(layer.layer_norm2(x))
    keep = torch.is_grad_enabled() and x.requires_grad
    return FrozenMLP.apply(x.reshape(-1, x.shape[-1]), layer.layer_norm2, layer.mlp, keep).view(x.shape)


def vision_layer(layer: nn.Module, x: Tensor, prompts: Tensor | None, last: bool) -> Tensor:
    """One vision layer; prompt tokens serve as keys and values and have no output.

    Args:
        layer: a `CLIPEncoderLayer`.
        x: (B, N, d) the sequence.
        prompts: (P, d) shared by the batch, (B, P, d), or None.
        last: compute the first row (CLS) alone.

    Returns:
        (B, N, d), or (B, 1, d) if `last`.
    """
    if prompts is not None:
        prompts = prompts.to(x.dtype)
    if not single_step(layer, x):
        return feed_forward(layer, vision_attention(layer, x, prompts, last))
    keep = torch.is_grad_enabled() and (x.requires_grad or (prompts is not None and prompts.requires_grad))
    return feed_forward(layer, FrozenAttention.apply(x, prompts, layer.layer_norm1, layer.self_attn, last, keep))


def vision_attention(layer: nn.Module, x: Tensor, prompts: Tensor | None, last: bool) -> Tensor:
    """x + attention(LayerNorm1(x), prompts) as autograd sees it; arguments as for `vision_layer`."""
    attention = layer.self_attn
    heads = attention.num_heads
    h = layer.layer_norm1(x)
    keys, values = attention.k_proj(h), attention.v_proj(h)
    if prompts is not None:
        p = layer.layer_norm1(prompts)
        # a (P, d) prompt is projected once, not once per image
        keys = torch.cat([keys, attention.k_proj(p).expand(x.shape[0], -1, -1)], dim=1)
        values = torch.cat([values, attention.v_proj(p).expand(x.shape[0], -1, -1)], dim=1)
    if last:
        h, x = h[:, :1], x[:, :1]
    queries = attention.q_proj(h)
    attended = F.scaled_dot_product_attention(
        split_heads(queries, heads), split_heads(keys, heads), split_heads(values, heads), scale=attention.scale
    )
    return x + attention.out_proj(merge_heads(attended))


class PackedTexts:
    """Index arithmetic for texts with a shared beginning, rows after each end token left out.

    Rows are laid out as [shared rows, own rows of text 0 up to its end, own rows of text 1, ...].

    Args:
        num_shared: S.
        length: L, padded length of the own parts.
        eos: (N,) end position of each text within its own part.
        device: where the texts are; that of `eos` if None.

    Attributes:
        length: L, no longer than the longest text.
        own: rows of texts laid out as (N, L) that are not behind an end.
        positions: of each own row in its text. end_rows: of all rows, the N end rows.
        causal: (L, L), true for keys behind their query. behind: (N, L), true behind each end.
    """

    def __init__(self, num_shared: int, length: int, eos: Tensor | TextEnds, device: torch.device | str | None = None):
        if device is None and isinstance(eos, Tensor):
            device = eos.device
        ends = TextEnds.of(eos).positions  # numbers: nothing below waits for the device
        self.num_shared, self.num_texts = num_shared, len(ends)
        self.length = max(ends) + 1 if ends else length
        index = lambda numbers: torch.tensor(list(numbers), dtype=torch.long, device=device)
        self.own = index(n * self.length + j for n, end in enumerate(ends) for j in range(end + 1))
        self.positions = index(num_shared + j for end in ends for j in range(end + 1))
        self.end_rows = index(num_shared - 1 + count for count in itertools.accumulate(end + 1 for end in ends))
        self.causal = torch.ones(self.length, self.length, dtype=torch.bool, device=device).triu(1)
        self.behind = torch.arange(self.length, device=device) > index(ends)[:, None]

    def pad(self, rows: Tensor) -> Tensor:
        """(number of own rows, d) -> (N, L, d), zeros after each end"""
        padded = rows.new_zeros(self.num_texts * self.length, rows.shape[-1]).index_copy(0, self.own, rows)
        return padded.view(self.num_texts, self.length, -1)

    def unpad(self, padded: Tensor) -> Tensor:
        """(N, L, d) -> (number of own rows, d)"""
        return padded.flatten(0, 1).index_select(0, self.own)


def text_layer(layer: nn.Module, rows: Tensor, packed: PackedTexts, last: bool) -> Tensor:
    """One causal text layer over packed rows.

    Args:
        layer: a `CLIPEncoderLayer`.
        rows: (R, d), laid out by `packed`.
        last: compute the N end rows alone.

    Returns:
        (R, d), or (N, d) if `last`.
    """
    attention, s = layer.self_attn, packed.num_shared
    heads = attention.num_heads
    h = layer.layer_norm1(rows)
    keys, values = attention.k_proj(h), attention.v_proj(h)
    shared_k, shared_v = split_heads(keys[:s], heads), split_heads(values[:s], heads)  # (H, S, h)
    own_k, own_v = split_heads(packed.pad(keys[s:]), heads), split_heads(packed.pad(values[s:]), heads)  # (N, H, L, h)
    if last:
        queries = attention.q_proj(h.index_select(0, packed.end_rows))
        own_q = split_heads(queries[:, None], heads)  # (N, H, 1, h)
        mask = packed.behind[:, None, None, :]
    else:
        queries = attention.q_proj(h)
        own_q = split_heads(packed.pad(queries[s:]), heads)
        mask = packed.causal
    # scores against the shared rows in one product per head, against the own rows per text; one softmax over both
    n, _, length, width = own_q.shape
    flat_q = own_q.transpose(0, 1).reshape(heads, n * length, width)
    to_shared = (flat_q @ shared_k.transpose(1, 2)).view(heads, n, length, s).transpose(0, 1)
    to_own = (own_q @ own_k.transpose(2, 3)).masked_fill(mask, float("-inf"))
    weights = (torch.cat([to_shared, to_own], dim=-1) * attention.scale).softmax(-1)
    from_shared = weights[..., :s].transpose(0, 1).reshape(heads, n * length, s) @ shared_v
    attended = from_shared.view(heads, n, length, width).transpose(0, 1) + weights[..., s:] @ own_v
    own_out = merge_heads(attended)
    if last:
        return feed_forward(layer, rows.index_select(0, packed.end_rows) + attention.out_proj(own_out[:, 0]))
    shared_out = F.scaled_dot_product_attention(
        split_heads(queries[:s], heads)[None], shared_k[None], shared_v[None], is_causal=True, scale=attention.scale
    )
    attended_rows = torch.cat([merge_heads(shared_out)[0], packed.unpad(own_out)])
    return feed_forward(layer, rows + attention.out_proj(attended_rows))
