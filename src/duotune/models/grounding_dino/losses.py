"""Matching and losses of Grounding DINO (arXiv 2303.05499, section 3.5), written from the papers.

Each box is matched with one query (Hungarian matching over token, L1 and GIoU costs). Tokens learn with a sigmoid
focal loss over the tokens of the caption, matched boxes with L1 and GIoU. The same is asked of the output of every
decoder layer and of the positions that the encoder chose, each with a matching of its own.

    total = Σ over outputs  [2 · focal + 5 · L1 + 2 · (1 - GIoU)] / number of boxes in the batch

transformers has such a loss too; what is wrong with it is told in `docs/backbones.md`. Queries with noise (DINO's
denoising) take part in pre-training alone and are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...precision import wide
from ...processes import mean_over_processes
from ..glip.losses import area, token_focal_loss

UNLIKELY = 1e9
"""Cost in place of one that is no finite number: such a pair is matched where there is no other."""


@dataclass
class LossWeights:
    """Weights of matching costs and of losses; `alpha` and `gamma` are the focal loss's."""

    token_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    token: float = 2.0
    box: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass
class Prediction:
    """One output for a batch.

    Attributes:
        logits: (B, Q, T). boxes: (B, Q, 4) centre x, centre y, width, height in 0..1 of the picture.
    """

    logits: Tensor
    boxes: Tensor


@dataclass
class Target:
    """What is in one picture.

    Attributes:
        boxes: (M, 4) as in `Prediction`. tokens: (M, T) float 0/1, tokens of each box's phrase.
    """

    boxes: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, boxes: Tensor, positive_map: Tensor, size: Tensor, length: int) -> Target:
        """Args:
        boxes: (M, 4) xyxy pixels. positive_map: (M, T'), nonzero for tokens of the phrase; T' may be any length.
        size: (2,) height and width of the picture in pixels. length: T.
        """
        height, width = size.tolist()
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], 1)
        rows = (positive_map[:, :length] != 0).to(boxes)
        return cls(boxes, F.pad(rows, (0, length - rows.shape[1])))


def corners(boxes: Tensor) -> Tensor:
    """Centre and size (…, 4) -> xyxy."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., arXiv 1902.09630) of xyxy boxes (…, 4), broadcast, -> (…)."""
    tiny = torch.finfo(boxes.dtype).tiny
    own, other = area(boxes[..., 2:] - boxes[..., :2]), area(others[..., 2:] - others[..., :2])
    low, high = torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    inter = area((high - low).clamp(min=0))
    union = (own + other - inter).clamp(min=tiny)
    low, high = torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    hull = area(high - low).clamp(min=tiny)
    return inter / union - (hull - union) / hull


@torch.no_grad()
def costs(logits: Tensor, boxes: Tensor, target: Target, text_mask: Tensor, weights: LossWeights) -> Tensor:
    """(…, Q, M): what it costs to make a query responsible for a box of one picture, always finite.

    The token cost of a pair is the mean, over the tokens of the box's phrase, of what the focal loss would be with
    this token positive less what it would be with it negative.

    Args:
        logits: (…, Q, T). boxes: (…, Q, 4). text_mask: (T,), nonzero for tokens of the caption.
    """
    gain = token_focal_loss(logits, torch.ones_like(logits), weights.alpha, weights.gamma)
    gain = gain - token_focal_loss(logits, torch.zeros_like(logits), weights.alpha, weights.gamma)
    tokens = target.tokens * (text_mask != 0)
    token_cost = gain @ (tokens / tokens.sum(1, keepdim=True).clamp(min=1)).T
    box_cost = torch.cdist(boxes, target.boxes, p=1)
    giou_cost = -generalized_iou(corners(boxes)[..., None, :], corners(target.boxes))
    cost = weights.token_cost * token_cost + weights.box_cost * box_cost + weights.giou_cost * giou_cost
    return torch.nan_to_num(cost, nan=UNLIKELY, posinf=UNLIKELY, neginf=-UNLIKELY)


def match_all(
    logits: Tensor, boxes: Tensor, targets: Sequence[Target], text_mask: Tensor, weights: LossWeights
) -> Tensor:
    """Hungarian matching of every output with every picture, in one copy to the host and one back.

    Args:
        logits: (O, B, Q, T). boxes: (O, B, Q, 4). text_mask: (B, T).

    Returns:
        (4, O n) int64: output, picture, query, and the box that it is responsible for, counted through all pictures; n
        is the sum of min(Q, M), and pairs come output after output.
    """
    from scipy.optimize import linear_sum_assignment

    outputs, pictures, queries = logits.shape[:3]
    found = [costs(logits[:, i], boxes[:, i], t, text_mask[i], weights).flatten() for i, t in enumerate(targets)]
    flat = torch.cat(found).cpu().numpy() if found else np.zeros(0)
    sizes = [len(target.boxes) for target in targets]
    starts = np.cumsum([0, *sizes])
    pairs = []
    for output in range(outputs):
        for picture, count in enumerate(sizes):
            start = outputs * queries * int(starts[picture]) + output * queries * count
            cost = flat[start : start + queries * count].reshape(queries, count)
            rows, columns = linear_sum_assignment(cost) if count else (np.zeros(0, int), np.zeros(0, int))
            same = np.ones_like(rows)
            pairs.append(np.stack([output * same, picture * same, rows, starts[picture] + columns]))
    return torch.from_numpy(np.concatenate(pairs, 1)).to(logits.device, non_blocking=True)


def match(
    logits: Tensor, boxes: Tensor, target: Target, text_mask: Tensor, weights: LossWeights
) -> tuple[Tensor, Tensor]:
    """One picture's queries and the boxes that they are responsible for: two (min(Q, M),) int64 tensors.

    Args:
        logits: (Q, T). boxes: (Q, 4). text_mask: (T,), nonzero for tokens of the caption.
    """
    _, _, rows, columns = match_all(logits[None, None], boxes[None, None], [target], text_mask[None], weights)
    return rows, columns


def output_losses(
    predictions: Sequence[Prediction], targets: Sequence[Target], text_mask: Tensor, weights: LossWeights, count: Tensor
) -> Tensor:
    """Weighted focal, L1 and GIoU losses of each output, (3, O).

    Args:
        predictions: O of them, of the same sizes.
        text_mask: (B, T), nonzero for tokens of the caption. count: what sums are divided by.
    """
    logits, boxes = (torch.stack([wide(v) for v in part]) for part in zip(*((p.logits, p.boxes) for p in predictions)))
    output, picture, query, row = match_all(logits, boxes, targets, text_mask, weights)
    true, tokens = (torch.cat(part) for part in zip(*((t.boxes, t.tokens) for t in targets)))
    wanted = torch.zeros_like(logits)
    wanted[output, picture, query] = tokens[row]
    focal = token_focal_loss(logits, wanted, weights.alpha, weights.gamma)
    token = (focal * (text_mask != 0)[:, None]).sum((1, 2, 3))
    found, true = boxes[output, picture, query], true[row]
    each = lambda values: values.view(len(logits), len(row) // len(logits)).sum(1)
    box = each((found - true).abs().sum(1))
    giou = each(1 - generalized_iou(corners(found), corners(true)))
    return torch.stack([weights.token * token, weights.box * box, weights.giou * giou]) / count


def detection_losses(
    layers: Sequence[Prediction],
    encoder: Prediction | None,
    targets: Sequence[Target],
    text_mask: Tensor,
    weights: LossWeights,
) -> dict[str, Tensor]:
    """Weighted losses of a batch, scalars; their sum is what is minimised.

    Args:
        layers: the decoder's, in order. encoder: of the positions that the encoder chose; None if it chose none.
        targets: one per picture. text_mask: (B, T), nonzero for tokens of the caption.

    Returns:
        loss_token, loss_box, loss_giou of the last layer; loss_auxiliary of all before it together; loss_encoder.
    """
    boxes = wide(layers[-1].boxes)
    targets = [Target(target.boxes.to(boxes), target.tokens.to(boxes)) for target in targets]
    count = boxes.new_full((), sum(len(t.boxes) for t in targets))
    found = output_losses(
        [*layers, *([] if encoder is None else [encoder])],
        targets,
        text_mask,
        weights,
        mean_over_processes(count, least=1),
    )
    last = len(layers) - 1
    losses = dict(zip(("loss_token", "loss_box", "loss_giou"), found[:, last]))
    if last:
        losses["loss_auxiliary"] = found[:, :last].sum()
    if encoder is not None:
        losses["loss_encoder"] = found[:, -1].sum()
    return losses
