"""Modulated deformable convolution (Zhu et al., arXiv 1811.11168) without a compiled extension.

    out[p] = sum_k W_k · mask[p, k] · x(p · stride - padding + k + offset[p, k]) + b

x(·) is bilinear with zeros outside the map. A sample is a weighted sum of four rows of the map seen as a table (H·W,
C), which is what `embedding_bag` computes in one pass; the sum over taps and channels is one matrix product. Work
goes in chunks of output positions and the samples are made again in the backward pass, so memory does not grow with
taps x positions.

On CUDA torchvision's operator is used when torchvision can be imported; `backend` says otherwise. On a CPU that
operator is a scalar loop on one thread, so the path below serves there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_BYTES = 32 << 20
"""Bytes of samples held at a time."""


@functools.lru_cache(1)
def torchvision_operator() -> Callable[..., Tensor] | None:
    """torchvision's `deform_conv2d`, or None if it is absent or built for another torch."""
    try:
        from torchvision.ops import deform_conv2d
    except Exception:  # a mismatched torchvision raises RuntimeError or OSError while it registers operators
        return None
    return deform_conv2d


def sampling_corners(
    offset: Tensor, mask: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Which four cells each sample reads, and with what weight.

    Args:
        offset: (B, 2 K, Ho, Wo), per tap (row-major) dy, dx in cells. mask: (B, K, Ho, Wo).
        size: H, W of the map that is read.

    Returns:
        index: (B, Ho Wo K, 4) int64, rows of the map as a table (H W, C).
        weight: same shape, differentiable in offset and mask; 0 for cells outside.
    """
    height, width = size
    batch, taps, out_height, out_width = mask.shape
    options = {"dtype": offset.dtype, "device": offset.device}
    offset = offset.view(batch, taps, 2, out_height * out_width).permute(0, 3, 1, 2)
    mask = mask.view(batch, taps, out_height * out_width).transpose(1, 2)
    base_y = (torch.arange(out_height, **options) * stride - padding).repeat_interleave(out_width)
    base_x = (torch.arange(out_width, **options) * stride - padding).repeat(out_height)
    tap_y = torch.arange(kernel[0], **options).repeat_interleave(kernel[1])
    tap_x = torch.arange(kernel[1], **options).repeat(kernel[0])
    y = base_y[:, None] + tap_y + offset[..., 0]
    x = base_x[:, None] + tap_x + offset[..., 1]
    top, left = y.detach().floor(), x.detach().floor()
    fraction_y, fraction_x = y - top, x - left
    # Far-away samples have no valid cell; clamping first keeps huge or infinite offsets out of the integer conversion.
    top, left = top.clamp(-2, height).long(), left.clamp(-2, width).long()

    def axis(low: Tensor, fraction: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        cells = torch.stack([low, low + 1], -1)
        shares = torch.stack([1 - fraction, fraction], -1)
        shares = torch.where((cells >= 0) & (cells < limit), shares, 0.0)
        return cells.clamp(0, limit - 1), shares

    rows, row_shares = axis(top, fraction_y, height)
    cols, col_shares = axis(left, fraction_x, width)
    index = (rows[..., :, None] * width + cols[..., None, :]).reshape(batch, -1, 4)
    weight = row_shares[..., :, None] * (col_shares * mask[..., None])[..., None, :]
    return index, weight.reshape(batch, -1, 4)


class _SampledProduct(torch.autograd.Function):
    """out[b, p] = concat_k(sum_j weight[b, p K + k, j] · table[b, index[b, p K + k, j]]) @ kernel."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
        """table (B, H W, C), index and weight (B, P K, 4), kernel (K C, O) -> (B, P, O)."""
        ctx.save_for_backward(table, index, weight, kernel)
        batch, channels = table.shape[0], table.shape[2]
        taps = kernel.shape[0] // channels
        out = table.new_empty(batch, index.shape[1] // taps, kernel.shape[1])
        for b, rows, samples in _chunks(out, taps, channels):
            sampled = F.embedding_bag(index[b, samples], table[b], per_sample_weights=weight[b, samples], mode="sum")
            torch.mm(sampled.view(-1, kernel.shape[0]), kernel, out=out[b, rows])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
        table, index, weight, kernel = ctx.saved_tensors
        need_table, _, need_weight, need_kernel = ctx.needs_input_grad
        channels = table.shape[2]
        taps = kernel.shape[0] // channels
        grad_table = torch.zeros_like(table) if need_table else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        grad_kernel = torch.zeros_like(kernel) if need_kernel else None
        with torch.autocast(grad.device.type, enabled=False):
            for b, rows, samples in _chunks(grad, taps, channels):
                leaves = {
                    "table": table[b].detach().requires_grad_(need_table),
                    "weight": weight[b, samples].detach().requires_grad_(need_weight),
                }
                with torch.enable_grad():
                    sampled = F.embedding_bag(
                        index[b, samples], leaves["table"], per_sample_weights=leaves["weight"], mode="sum"
                    )
                if need_kernel:
                    grad_kernel.addmm_(sampled.detach().view(-1, kernel.shape[0]).t(), grad[b, rows])
                wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
                if wanted:
                    grad_sampled = (grad[b, rows] @ kernel.t()).view(-1, channels)
                    found = dict(zip(wanted, torch.autograd.grad(sampled, list(wanted.values()), grad_sampled)))
                    if need_table:
                        grad_table[b] += found["table"]
                    if need_weight:
                        grad_weight[b, samples] = found["weight"]
        return grad_table, None, grad_weight, grad_kernel


def _chunks(out: Tensor, taps: int, channels: int):
    """(sample, slice of output positions, slice of samples) that keep the sampled rows within CHUNK_BYTES."""
    batch, positions, _ = out.shape
    step = max(1, CHUNK_BYTES // (taps * channels * out.element_size()))
    for b in range(batch):
        for start in range(0, positions, step):
            stop = min(start + step, positions)
            yield b, slice(start, stop), slice(start * taps, stop * taps)


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    backend: Literal["auto", "torch", "torchvision"] = "auto",
) -> Tensor:
    """Modulated deformable convolution, one group, dilation 1.

    Args:
        x: (B, C, H, W); channels-last memory is read without a copy.
        offset: (B, 2 K, Ho, Wo), per tap (row-major) dy, dx in cells. mask: (B, K, Ho, Wo).
        weight: (O, C, kh, kw), K = kh kw. bias: (O,) or None.
        backend: "torch" for the path of this module, "torchvision" for its operator, "auto" for torchvision's on CUDA
            if it can be imported.

    Returns:
        (B, O, Ho, Wo); in channels-last memory from the path of this module.

    Raises:
        ValueError: a size does not fit.
        ImportError: backend "torchvision" cannot be imported.
    """
    batch, channels, height, width = x.shape
    kernel_height, kernel_width = weight.shape[-2:]
    taps = kernel_height * kernel_width
    out_size = (
        (height + 2 * padding - kernel_height) // stride + 1,
        (width + 2 * padding - kernel_width) // stride + 1,
    )
    for name, tensor, planes in (("offset", offset, 2 * taps), ("mask", mask, taps)):
        if tensor.shape != (batch, planes, *out_size):
            raise ValueError(f"{name} should be {(batch, planes, *out_size)}, got {tuple(tensor.shape)}")
    if weight.shape[1] != channels:
        raise ValueError(f"weight reads {weight.shape[1]} channels, the input has {channels}")
    if backend == "torchvision" or (backend == "auto" and x.is_cuda):
        operator = torchvision_operator()
        if operator is not None:
            return operator(x, offset, weight, bias, stride=stride, padding=padding, mask=mask)
        if backend == "torchvision":
            raise ImportError("torchvision cannot be imported here; use backend='torch'")
    table = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    index, share = sampling_corners(offset, mask, (height, width), (kernel_height, kernel_width), stride, padding)
    kernel = weight.permute(2, 3, 1, 0).reshape(taps * channels, -1)
    out = _SampledProduct.apply(table, index, share, kernel)
    if bias is not None:
        out = out + bias
    return out.view(batch, *out_size, -1).permute(0, 3, 1, 2)


class ModulatedDeformConv(nn.Module):
    """3x3 modulated deformable convolution that is handed its offsets and mask; always in float32 or wider."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        bound = (in_channels * 9) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        # Sampling positions need more digits than half precision has.
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(
                x.to(dtype),
                offset.to(dtype),
                mask.to(dtype),
                self.weight.to(dtype),
                self.bias.to(dtype),
                self.stride,
                padding=1,
            )
