"""Grounding DINO's loss and SDPT's attention in it once more, as plainly as they can be written.

The loss from the equations of DETR (arXiv 2005.12872), GIoU (1902.09630), focal loss (1708.02002) and Grounding DINO
(2303.05499, section 3.5): loops over queries, boxes and tokens, in float64, and the best matching found by trying all.
The attention from the paper of SDPT (2407.11414): tokens appended as rows, all rows computed, those of the tokens
dropped at the end. Nothing of the library is used.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn


def focal(logit: float, positive: bool, alpha: float = 0.25, gamma: float = 2.0) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** gamma * math.log(p) if positive else -(1 - alpha) * p**gamma * math.log(1 - p)


def giou(box: list[float], other: list[float]) -> float:
    """Of (centre x, centre y, width, height)."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = box, other
    span = lambda c, s, d, t: min(c + s / 2, d + t / 2) - max(c - s / 2, d - t / 2)
    inter = max(span(ax, aw, bx, bw), 0) * max(span(ay, ah, by, bh), 0)
    union = aw * ah + bw * bh - inter
    hull_w = max(ax + aw / 2, bx + bw / 2) - min(ax - aw / 2, bx - bw / 2)
    hull_h = max(ay + ah / 2, by + bh / 2) - min(ay - ah / 2, by - bh / 2)
    return inter / union - (hull_w * hull_h - union) / (hull_w * hull_h)


def best_matching(cost: list[list[float]]) -> tuple[int, ...]:
    """cost[box][query] -> the query of each box, by trying all."""
    queries = range(len(cost[0])) if cost else range(0)
    total = lambda chosen: sum(row[q] for row, q in zip(cost, chosen))
    return min(itertools.permutations(queries, len(cost)), key=total)


def output_losses(logits, boxes, targets, valid, weights):
    """One output of a batch -> (focal, L1, GIoU) sums, not divided; weights are those of costs.

    Args:
        logits: per picture, query and token. boxes: per picture and query. targets: per picture a list of
            (box, set of positive tokens). valid: per picture the number of its tokens.
    """
    token_sum = box_sum = giou_sum = 0.0
    for picture, wanted in enumerate(targets):
        cost = []
        for box, tokens in wanted:
            row = []
            for logit, predicted in zip(logits[picture], boxes[picture]):
                token = sum(focal(logit[t], True) - focal(logit[t], False) for t in tokens) / len(tokens)
                distance = sum(abs(a - b) for a, b in zip(predicted, box))
                row.append(weights[0] * token + weights[1] * distance - weights[2] * giou(predicted, box))
            cost.append(row)
        matched = dict(zip(best_matching(cost), wanted))
        for query, (logit, predicted) in enumerate(zip(logits[picture], boxes[picture])):
            box, tokens = matched.get(query, (None, set()))
            token_sum += sum(focal(logit[t], t in tokens) for t in range(valid[picture]))
            if box is not None:
                box_sum += sum(abs(a - b) for a, b in zip(predicted, box))
                giou_sum += 1 - giou(predicted, box)
    return token_sum, box_sum, giou_sum


class PlainAttention(nn.Module):
    """Stands where transformers' bidirectional attention stands; called as that, with SDPT's tokens in it.

    Args:
        original: the attention whose weights are used.
        prototypes: (K, e), or None for none. visible: "both" or "text_queries".
    """

    def __init__(self, original: nn.Module, prototypes: Tensor | None, visible: str):
        super().__init__()
        self.original, self.prototypes, self.visible = original, prototypes, visible

    def forward(self, vision_features, text_features, vision_attention_mask=None, text_attention_mask=None):
        attn, batch = self.original, len(vision_features)
        positions, length = vision_features.shape[1], text_features.shape[1]
        hidden_v, hidden_l = vision_attention_mask, text_attention_mask  # true: must not be attended to
        if self.prototypes is not None:
            rows = lambda proj: (self.prototypes - proj.bias) @ torch.linalg.pinv(proj.weight.T)
            repeat = lambda row: row[None].repeat(batch, 1, 1)
            vision_features = torch.cat([vision_features, repeat(rows(attn.vision_proj))], 1)
            text_features = torch.cat([text_features, repeat(rows(attn.text_proj))], 1)
            flag = torch.ones(batch, len(self.prototypes), dtype=torch.bool)
            hidden_v = torch.cat([hidden_v, ~flag], 1)
            hidden_l = torch.cat([hidden_l, flag if self.visible == "text_queries" else ~flag], 1)
        heads = lambda x: x.view(batch, -1, attn.num_heads, attn.head_dim).transpose(1, 2)
        query, key = heads(attn.vision_proj(vision_features)), heads(attn.text_proj(text_features))
        scores = query @ key.transpose(-1, -2) / attn.head_dim**0.5
        to_text = scores.masked_fill(hidden_l[:, None, None, :], -math.inf).softmax(-1)
        to_image = scores.transpose(-1, -2).masked_fill(hidden_v[:, None, None, :], -math.inf).softmax(-1)
        join = lambda x: x.transpose(1, 2).reshape(batch, x.shape[2], -1)
        image = attn.out_vision_proj(join(to_text @ heads(attn.values_text_proj(text_features))))
        text = attn.out_text_proj(join(to_image @ heads(attn.values_vision_proj(vision_features))))
        return (image[:, :positions], None), (text[:, :length], None)
