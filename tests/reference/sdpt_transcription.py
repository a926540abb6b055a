"""SDPT's equations once more, as plainly as they can be written, for `test_sdpt`.

Written from the paper (arXiv 2407.11414) and from what the authors' public code computes: captions padded to their
full length, every projection at its full width, tokens appended as rows to both sequences, all rows computed and those
of the tokens dropped at the end, a pseudo-inverse in every pass. Nothing of the library's fusion attention is used;
what is no part of the method (norms, text layers, dynamic convolutions) is called as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = -9e15


def appended_row(prototypes: Tensor, projection) -> Tensor:
    """(1, K, e) -> (1, K, d): (P - b) (Wᵀ)⁺."""
    return (prototypes - projection.bias.detach()) @ torch.linalg.pinv(projection.weight.detach().T)


def fusion(block, visual: Tensor, text: Tensor, mask: Tensor, prototypes: Tensor | None, visible: str):
    """Normed (B, N, d_v), (B, T, d_l), mask (B, T) -> their updates."""
    attn = block.attn
    batch, positions, length = len(visual), visual.shape[1], text.shape[1]
    mask = mask.to(visual.dtype)
    if prototypes is not None:
        visual = torch.cat([visual, appended_row(prototypes, attn.v_proj).repeat(batch, 1, 1)], 1)
        text = torch.cat([text, appended_row(prototypes, attn.l_proj).repeat(batch, 1, 1)], 1)
        # in the authors' code the mask of the appended rows is zero, which hides them from image queries
        seen = torch.ones if visible == "both" else torch.zeros
        mask = torch.cat([mask, seen(batch, prototypes.shape[1], dtype=mask.dtype)], 1)

    def heads(x):
        return x.reshape(batch, x.shape[1], attn.heads, attn.head_dim).permute(0, 2, 1, 3)

    query = heads(attn.v_proj(visual) * attn.head_dim**-0.5)
    key = heads(attn.l_proj(text))
    scores = query @ key.transpose(-1, -2)
    bias = torch.where(mask == 0, HIDDEN, 1.0)
    image_update = (scores + bias[:, None, None, :]).softmax(-1) @ heads(attn.values_l_proj(text))
    flipped = scores.transpose(-1, -2)
    flipped = flipped - flipped.max(-1, keepdim=True).values
    text_update = flipped.softmax(-1) @ heads(attn.values_v_proj(visual))
    merge = lambda x: x.permute(0, 2, 1, 3).reshape(batch, x.shape[2], -1)
    return attn.out_v_proj(merge(image_update))[:, :positions], attn.out_l_proj(merge(text_update))[:, :length]


def detector(model, pixel_values: Tensor, ids: Tensor, mask: Tensor, prototypes: dict[int, Tensor], visible: str):
    """Token logits (B, N, T), box deltas (B, N, 4), centerness (B, N) of captions padded to the full length.

    prototypes: fusion layer -> (1, K, e).
    """
    maps = model.model.encode_image(pixel_values)
    text, mask = model.model.encode_text(ids, mask, trim_text=False)
    sizes = [tuple(m.shape[-2:]) for m in maps]
    for layer, block in enumerate(model.model.tower.blocks):
        fuse = block.fusion
        visual = fuse.layer_norm_v(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1))
        text = fuse.layer_norm_l(text)
        delta_v, delta_l = fusion(fuse, visual, text, mask, prototypes.get(layer), visible)
        visual, text = visual + fuse.gamma_v * delta_v, text + fuse.gamma_l * delta_l
        levels = visual.split([h * w for h, w in sizes], 1)
        maps = [part.transpose(1, 2).reshape(len(part), -1, *size) for part, size in zip(levels, sizes)]
        maps, text = block.image(maps), block.text(text, mask)
    return model.head(maps, text)
