"""Frozen transformer blocks as single autograd steps, for a CPU.

Autograd would keep several tensors of four times the width per layer and make a pass over memory for
every small operation; a CPU pays for both (a page fault per 4 kB of fresh memory costs more than the
arithmetic on it). Weights are frozen, so the backward pass needs little, and these functions say what:

    block        kept for the backward pass                          worked out again
    attention    input, its row statistics, q, k, v, probabilities   LayerNorm's output, attended rows
    MLP          input, its row statistics, fc1's output             LayerNorm's output, activation

Both walk over slices, so that wide temporaries are small and their memory is used again. Results
equal the modules' up to rounding; gradients reach inputs and prompts, never weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLICE_BYTES = 16 << 20
"""Size of the widest temporary of one slice: small enough to be reused, wide enough for fast products."""

ACTIVATIONS = {"quick_gelu": 1.702, "gelu": 1.0}
"""Hugging Face's name -> factor on the activation's argument."""


def slices(count: int, bytes_each: int) -> list[slice]:
    """Cut `count` items into slices of about SLICE_BYTES."""
    step = max(1, SLICE_BYTES // max(1, bytes_each))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def norm_backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Gradient at the input of a frozen LayerNorm."""
    args = (grad, x, list(norm.normalized_shape), mean, rstd, norm.weight, norm.bias, [True, False, False])
    return torch.ops.aten.native_layer_norm_backward(*args)[0]


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNorm(x), and each row's mean and inverse standard deviation."""
    return torch.native_layer_norm(x, list(norm.normalized_shape), norm.weight, norm.bias, norm.eps)


class FrozenMLP(torch.autograd.Function):
    """x + fc2(act(fc1(LayerNorm(x)))) of rows (R, d); act is one of ACTIVATIONS."""

    @staticmethod
    def forward(ctx, x: Tensor, norm: nn.LayerNorm, mlp: nn.Module, keep: bool) -> Tensor:
        fc1, fc2, act = mlp.fc1, mlp.fc2, mlp.config.hidden_act
        # quick_gelu(u) = u · sigmoid(1.702 u) = silu(1.702 u) / 1.702: both factors ride along in the products
        factor = ACTIVATIONS[act]
        wide, rows = fc1.out_features, len(x)
        out = torch.empty_like(x)
        hidden = x.new_empty(rows if keep else 0, wide)
        statistics = []
        for part in slices(rows, wide * x.element_size()):
            normed, *stats = layer_norm(norm, x[part])
            statistics.append(stats)
            into = hidden[part] if keep else x.new_empty(len(normed), wide)
            torch.addmm(fc1.bias, normed, fc1.weight.T, beta=factor, alpha=factor, out=into)
            if act == "quick_gelu":
                active = torch.ops.aten.silu.out(into, out=torch.empty_like(into) if keep else into)
            else:
                active = torch.nn.functional.gelu(into)
            torch.add(x[part], fc2.bias, out=out[part]).addmm_(active, fc2.weight.T, alpha=1 / factor)
        if keep:
            ctx.save_for_backward(x, hidden, *(torch.cat(s) for s in zip(*statistics)))
            ctx.norm, ctx.mlp, ctx.act = norm, mlp, act
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, hidden, mean, rstd = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty_like(x)
        for part in slices(len(x), hidden.shape[1] * x.element_size()):
            wide = grad[part] @ ctx.mlp.fc2.weight
            if ctx.act == "quick_gelu":
                torch.ops.aten.silu_backward.grad_input(wide, hidden[part], grad_input=wide)
            else:
                torch.ops.aten.gelu_backward.grad_input(wide, hidden[part], grad_input=wide)
            narrow = norm_backward(wide @ ctx.mlp.fc1.weight, x[part], mean[part], rstd[part], ctx.norm)
            torch.add(narrow, grad[part], out=dx[part])
        return dx, None, None, None


def to_heads(rows: Tensor, images: int, heads: int) -> Tensor:
    """(images · N, d) -> view (images, heads, N, d / heads)"""
    return rows.view(images, -1, heads, rows.shape[-1] // heads).transpose(1, 2)


def to_rows(by_head: Tensor) -> Tensor:
    """(images, heads, N, h) -> (images · N, heads · h)"""
    return by_head.transpose(1, 2).reshape(by_head.shape[0] * by_head.shape[2], -1)


class FrozenAttention(torch.autograd.Function):
    """x + out(attention(LayerNorm(x), prompts)): prompts are keys and values alone.

    x (B, N, d); prompts (P, d) shared by the batch, (B, P, d), or None -> (B, N, d), or (B, 1, d) if `last`.
    """

    @staticmethod
    def forward(ctx, x: Tensor, prompts: Tensor | None, norm: nn.LayerNorm, attn: nn.Module, last: bool, keep: bool):
        heads, images, n = attn.num_heads, *x.shape[:2]
        d = x.shape[2]
        prompt_count = 0 if prompts is None else prompts.shape[-2]
        queries = 1 if last else n
        size = (heads, n + prompt_count, d // heads)
        held = images if keep else 0
        q, k = x.new_empty(held, heads, queries, size[2]), x.new_empty(held, *size)
        v, p = torch.empty_like(k), x.new_empty(held, heads, queries, size[1])
        if prompt_count:
            normed_prompts, *prompt_stats = layer_norm(norm, prompts)
            # a (P, d) prompt is projected once, not once per image
            flat = normed_prompts.reshape(-1, d)
            prompt_k = to_heads(attn.k_proj(flat), len(flat) // prompt_count, heads)
            prompt_v = to_heads(attn.v_proj(flat), len(flat) // prompt_count, heads)
        out, statistics = x.new_empty(images, queries, d), []
        for part in slices(images, heads * queries * size[1] * x.element_size() + n * d * x.element_size()):
            count = part.stop - part.start
            normed, *stats = layer_norm(norm, x[part].reshape(-1, d))
            statistics.append(stats)
            k_part, v_part = (k[part], v[part]) if keep else (x.new_empty(count, *size), x.new_empty(count, *size))
            k_part[:, :, :n] = to_heads(attn.k_proj(normed), count, heads)
            v_part[:, :, :n] = to_heads(attn.v_proj(normed), count, heads)
            if prompt_count:
                shared = len(prompt_k) == 1
                k_part[:, :, n:] = prompt_k if shared else prompt_k[part]
                v_part[:, :, n:] = prompt_v if shared else prompt_v[part]
            asking = normed.view(count, n, d)[:, :queries].reshape(-1, d)
            # the scale of the scores rides along in the product that makes the queries
            q_rows = torch.addmm(attn.q_proj.bias, asking, attn.q_proj.weight.T, beta=attn.scale, alpha=attn.scale)
            q_part = to_heads(q_rows, count, heads).contiguous()
            k_flat, v_flat = k_part.flatten(0, 1), v_part.flatten(0, 1)
            p_part = p[part].flatten(0, 1) if keep else x.new_empty(count * heads, queries, size[1])
            torch.bmm(q_part.flatten(0, 1), k_flat.transpose(1, 2), out=p_part)
            torch.softmax(p_part, -1, out=p_part)
            if keep:
                q[part] = q_part
            attended = to_rows(torch.bmm(p_part, v_flat).view(count, heads, queries, size[2]))
            into = out[part].view(-1, d)
            torch.add(x[part][:, :queries].reshape(-1, d), attn.out_proj.bias, out=into)
            into.addmm_(attended, attn.out_proj.weight.T)
        if keep:
            prompt_saved = (prompts, *prompt_stats) if prompt_count else ()
            ctx.save_for_backward(x, q, k, v, p, *(torch.cat(s) for s in zip(*statistics)), *prompt_saved)
            ctx.norm, ctx.attn = norm, attn
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, q, k, v, p, mean, rstd, *prompt_saved = ctx.saved_tensors
        attn, (images, n, d), heads, queries = ctx.attn, x.shape, q.shape[1], q.shape[2]
        grad = grad.contiguous()
        need_x = ctx.needs_input_grad[0]
        dx = torch.empty_like(x) if need_x else None
        prompt_k, prompt_v = [], []
        for part in slices(images, p[0].numel() * x.element_size() + x[0].numel() * x.element_size()):
            count, rows = part.stop - part.start, slice(part.start * n, part.stop * n)
            d_out = grad[part].view(-1, d)
            d_attended = to_heads(d_out @ attn.out_proj.weight, count, heads).reshape(count * heads, queries, -1)
            p_part, shape = p[part].flatten(0, 1), k[part].shape
            dv = torch.bmm(p_part.transpose(1, 2), d_attended).view(shape)
            d_scores = torch.bmm(d_attended, v[part].flatten(0, 1).transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_scores, p_part, -1, p.dtype)
            dk = torch.bmm(d_scores.transpose(1, 2), q[part].flatten(0, 1)).view(shape)
            prompt_k.append(dk[:, :, n:])
            prompt_v.append(dv[:, :, n:])
            if not need_x:  # below the first prompt nothing needs a gradient
                continue
            dq = to_rows(torch.bmm(d_scores, k[part].flatten(0, 1)).view(count, heads, queries, -1))
            d_normed = to_rows(dk[:, :, :n]) @ attn.k_proj.weight
            d_normed.addmm_(to_rows(dv[:, :, :n]), attn.v_proj.weight)
            if queries == n:
                d_normed.addmm_(dq, attn.q_proj.weight, alpha=attn.scale)
            else:
                d_normed.view(count, n, d)[:, 0] += attn.scale * (dq @ attn.q_proj.weight)
            narrow = norm_backward(d_normed, x[part].reshape(-1, d), mean[rows], rstd[rows], ctx.norm)
            dx[part] = narrow.view(count, n, d)
            dx[part][:, :queries] += grad[part]
        d_prompts = None
        if prompt_saved and ctx.needs_input_grad[1]:
            prompts, prompt_mean, prompt_rstd = prompt_saved
            dk, dv = torch.cat(prompt_k), torch.cat(prompt_v)
            if prompts.ndim == 2:  # one prompt for all images
                dk, dv = dk.sum(0, keepdim=True), dv.sum(0, keepdim=True)
            d_normed = to_rows(dk) @ attn.k_proj.weight + to_rows(dv) @ attn.v_proj.weight
            d_prompts = norm_backward(d_normed.view_as(prompts), prompts, prompt_mean, prompt_rstd, ctx.norm)
        return dx, d_prompts, None, None, None, None
