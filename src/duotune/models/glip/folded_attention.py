"""Attention of few keys with thousands of positions, both ways at once, without a score matrix in memory.

    S = F Xᵀ + o              rows of F: (head, key), keys already folded with the positions' projection
    image side   out[p]  = sum over heads of softmax_key(S)[·, p] · values
    text side    context = softmax_position(S) X

Scores are made for a run of positions that stays in cache, used for both sides and dropped; the text side's softmax,
which runs over all positions, keeps a running maximum. The backward pass makes the scores again (one ninth of all
products), so memory grows neither with layers x positions x keys nor with the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 2 << 20
"""Bytes of scores held at a time on a CPU, whose caches they stay in."""

DEVICE_CHUNK_BYTES = 64 << 20
"""The same on an accelerator, where a run costs a dozen kernel launches and caches are no help."""

SHORTEST_RUN = 64
"""Positions at a time, however many keys there are."""

SCORE_LIMIT = 50_000.0
"""Attention scores and text activations are clamped to +- this, which keeps float16 finite."""


def clamp_scores(x: Tensor) -> Tensor:
    """Clamp in half precision. In float32 scores of that size do not occur, and the pass would cost time and memory."""
    return x.clamp(-SCORE_LIMIT, SCORE_LIMIT) if x.dtype in (torch.float16, torch.bfloat16) else x


class FoldedKeys(NamedTuple):
    """Keys, already folded with the positions' projection, and what belongs to them.

    Attributes:
        folded: (B, heads, keys, d). offset: (B, heads, keys), added to scores. values: (B, heads, keys, d).
        length: of the keys the first, which ask positions; the others are asked alone.
        hidden: (B, keys), true for keys that positions do not see.
        unseen: (B, N), true for positions that keys do not see.
    """

    folded: Tensor
    offset: Tensor
    values: Tensor
    length: int
    hidden: Tensor | None = None
    unseen: Tensor | None = None


def folded_attention(visual: Tensor, extra: Tensor | None, keys: FoldedKeys) -> tuple[Tensor, Tensor]:
    """-> (image side (B, N, d), text side (B, heads, length, d)).

    Args:
        visual: (B, N, d) positions. extra: (B, n, d), further ones that ask nothing: they are in the text side alone.
    """
    kind = visual.device.type
    tensors = [visual, extra, *keys[:3]]
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        tensors = [t if t is None else t.to(dtype) for t in tensors]
    with torch.autocast(kind, enabled=False):
        return _FoldedAttention.apply(*tensors, *keys[3:])


class _FoldedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        visual: Tensor,
        extra: Tensor | None,
        folded: Tensor,
        offset: Tensor,
        values: Tensor,
        length: int,
        hidden: Tensor | None,
        unseen: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        batch, heads, keys, dim = folded.shape
        rows = folded.view(batch, heads * keys, dim)
        asked = values.reshape(batch, heads * keys, dim)
        text_rows, text_offset = _asking(folded, length), _asking(offset, length)
        out = visual.new_empty(visual.shape)
        running = _RunningSoftmax(text_rows, heads)
        wide = {"dtype": running.total.dtype, "device": visual.device}
        log_image = torch.empty(batch, heads, 1, visual.shape[1], **wide) if any(ctx.needs_input_grad) else None
        for part in _chunks(visual, rows):
            x = visual[:, part]
            scores = _scores(rows, offset.view(batch, -1), x).view(batch, heads, keys, -1)
            running.add(_for_text(scores, length, unseen, part), x)
            scores = _hide(scores, hidden)
            top = scores.amax(2, keepdim=True)
            weights = scores.sub_(top).exp_()
            mass = weights.sum(2, keepdim=True)
            weights = weights.div_(mass).to(x.dtype).view(batch, heads * keys, -1)
            out[:, part] = torch.bmm(weights.transpose(1, 2), asked)
            if log_image is not None:
                log_image[..., part] = mass.log_().add_(top)
        if extra is not None:
            running.add(_scores(text_rows, text_offset, extra).view(batch, heads, length, -1), extra)
        context, log_text = running.result()
        ctx.save_for_backward(visual, extra, folded, offset, values, hidden, unseen, context, log_text, log_image)
        ctx.length = length
        if not _reaches_positions(ctx):
            ctx.mark_non_differentiable(out)
        return out, context.to(visual.dtype).view(batch, heads, length, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_context: Tensor) -> tuple[Tensor | None, ...]:
        visual, extra, folded, offset, values, hidden, unseen, context, log_text, log_image = ctx.saved_tensors
        need_visual, need_extra, need_folded, need_offset, need_values, *_ = ctx.needs_input_grad
        length, (batch, heads, keys, dim) = ctx.length, folded.shape
        rows, asked = folded.view(batch, -1, dim), values.reshape(batch, -1, dim)
        grad_context = grad_context.reshape(batch, -1, dim)
        mean = (grad_context.float() if context.dtype == torch.float32 else grad_context).mul(context).sum(-1, True)
        grad_visual = torch.empty_like(visual) if need_visual else None
        wide = {"dtype": context.dtype, "device": context.device}
        grad_rows, grad_asked = (torch.zeros(batch, heads * keys, dim, **wide) for _ in range(2))
        grad_offset = torch.zeros(batch, heads * keys, **wide)

        def text_side(scores: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            """Scores (B, heads, length, P) -> their softmax and their gradient, both (B, heads length, P)."""
            weights = (scores - log_text).exp_().view(batch, heads * length, -1)
            return weights, torch.bmm(grad_context, x.transpose(1, 2)).to(mean.dtype).sub_(mean).mul_(weights)

        with torch.autocast(visual.device.type, enabled=False):
            for part in _chunks(visual, rows) if _reaches_positions(ctx) else ():
                x, grad = visual[:, part], grad_out[:, part]
                scores = _scores(rows, offset.view(batch, -1), x).view(batch, heads, keys, -1)
                to_text, grad_to_text = text_side(_for_text(scores, length, unseen, part), x)
                limits = _limits(scores, x.dtype)
                weights = _hide(scores, hidden).sub_(log_image[..., part]).exp_()
                grad_weights = torch.bmm(asked, grad.transpose(1, 2)).view(weights.shape).to(weights.dtype)
                grad_scores = torch._softmax_backward_data(grad_weights, weights, 2, weights.dtype)
                grad_scores[:, :, :length] += grad_to_text.view(batch, heads, length, -1)
                grad_scores = (grad_scores if limits is None else grad_scores * limits).view(batch, heads * keys, -1)
                if need_values:
                    _accumulate(grad_asked, weights.to(x.dtype).view(batch, heads * keys, -1), grad)
                narrow = grad_scores.to(x.dtype)
                if need_folded:
                    _accumulate(grad_rows, narrow, x)
                if need_offset:
                    grad_offset += grad_scores.sum(-1)
                if need_visual:
                    found = torch.bmm(narrow.transpose(1, 2), rows)
                    grad_visual[:, part] = found.baddbmm_(to_text.to(x.dtype).transpose(1, 2), grad_context)
            grad_extra = None
            grad_rows, grad_offset = grad_rows.view(batch, heads, keys, dim), grad_offset.view(batch, heads, keys)
            if extra is not None:
                text_rows = _asking(folded, length)
                scores = _scores(text_rows, _asking(offset, length), extra)
                weights, grad_scores = text_side(scores.view(batch, heads, length, -1), extra)
                limits = _limits(scores, extra.dtype)
                grad_scores = grad_scores if limits is None else grad_scores * limits
                narrow = grad_scores.to(extra.dtype)
                grad_rows[:, :, :length] += torch.bmm(narrow, extra).view(batch, heads, length, dim)
                grad_offset[:, :, :length] += grad_scores.sum(-1).view(batch, heads, length)
                if need_extra:
                    grad_extra = torch.bmm(narrow.transpose(1, 2), text_rows)
                    grad_extra.baddbmm_(weights.to(extra.dtype).transpose(1, 2), grad_context)
        kind = folded.dtype
        return (
            grad_visual,
            grad_extra,
            grad_rows.to(kind) if need_folded else None,
            grad_offset.to(kind) if need_offset else None,
            grad_asked.view(values.shape).to(kind) if need_values else None,
            None,
            None,
            None,
        )


def _reaches_positions(ctx: Any) -> bool:
    """Whether the image side has a gradient to pass on: further positions alone are not in it."""
    return any(ctx.needs_input_grad[i] for i in (0, 2, 3, 4))


class _RunningSoftmax:
    """softmax(S) X over columns that come in runs: maxima, sums of exponentials and sums of rows so far."""

    def __init__(self, rows: Tensor, heads: int):
        batch, count, _ = rows.shape
        wide = {"dtype": torch.promote_types(rows.dtype, torch.float32), "device": rows.device}
        self.top = torch.full((batch, heads, count // heads, 1), -torch.inf, **wide)
        self.mass = torch.zeros(self.top.shape, **wide)
        self.total = torch.zeros(rows.shape, **wide)

    def add(self, scores: Tensor, x: Tensor) -> None:
        """scores (B, heads, length, P), x (B, P, d)."""
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - top).exp_(), (self.top - top).exp_()
        self.mass.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        self.total.mul_(shrink.view(len(x), -1, 1))
        _accumulate(self.total, weights.view(len(x), -1, x.shape[1]).to(x.dtype), x)
        self.top = top

    def result(self) -> tuple[Tensor, Tensor]:
        """Weighted means of rows (B, heads length, d), and log sums of exponentials (B, heads, length, 1)."""
        return self.total / self.mass.view(len(self.total), -1, 1), self.top + self.mass.log()


def _scores(rows: Tensor, offset: Tensor, x: Tensor) -> Tensor:
    """(B, R, d), (B, R), (B, P, d) -> (B, R, P), float32 at least."""
    scores = torch.baddbmm(offset.unsqueeze(-1), rows, x.transpose(1, 2))
    return clamp_scores(scores).to(torch.promote_types(scores.dtype, torch.float32))


def _limits(scores: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Where the clamp let gradients through; None where there is none."""
    return scores.abs() < SCORE_LIMIT if dtype in (torch.float16, torch.bfloat16) else None


def _for_text(scores: Tensor, length: int, unseen: Tensor | None, part: slice) -> Tensor:
    """Scores (B, heads, keys, P) of the keys that ask, (B, heads, length, P)."""
    scores = scores[:, :, :length]
    if unseen is None:
        return scores
    return scores.masked_fill(unseen[:, None, None, part], torch.finfo(scores.dtype).min)


def _hide(scores: Tensor, hidden: Tensor | None) -> Tensor:
    """Scores (B, heads, keys, P) with those of hidden keys out of reach, in place."""
    if hidden is None:
        return scores
    return scores.masked_fill_(hidden[:, None, :, None], torch.finfo(scores.dtype).min)


def _asking(x: Tensor, length: int) -> Tensor:
    """(B, heads, keys, ...) -> (B, heads length, ...)."""
    return x[:, :, :length].flatten(1, 2)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in the precision of the total."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)


def _chunks(visual: Tensor, rows: Tensor) -> Iterator[slice]:
    """Runs of positions whose scores stay within the bytes of their device."""
    held = CHUNK_BYTES if visual.device.type == "cpu" else DEVICE_CHUNK_BYTES
    step = max(SHORTEST_RUN, held // (rows.shape[0] * rows.shape[1] * visual.element_size()))
    for start in range(0, visual.shape[1], step):
        yield slice(start, min(start + step, visual.shape[1]))
