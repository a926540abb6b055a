"""Modulated deformable convolution (Zhu et al., arXiv 1811.11168) without a compiled extension.

    out[p] = sum_k W_k · mask[p, k] · x(p · stride - padding + k + offset[p, k]) + b

x(·) is bilinear with zeros outside the map. A sample is a weighted sum of four rows of the map seen as a table (H·W,
C), which is what `embedding_bag` computes in one pass; the sum over taps and channels is one matrix product. Backwards,
each row of the table is a weighted sum of the samples that read it: the same operation once the reads are sorted.
Work goes in chunks of output positions that stay in cache; samples and indices are made again in the backward pass, so
memory does not grow with taps x positions. What is frozen costs nothing there.

That is for a CPU. On an accelerator each of these calls is a kernel to be launched, and a sort whose result has to be
known makes the host wait. There torchvision's operator is used if it can be imported, and otherwise all samples of all
taps are taken by one `grid_sample`; `backend` says otherwise. On a CPU torchvision's operator is a scalar loop on one
thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...tracing import traced

CHUNK_BYTES = 4 << 20
"""Bytes of samples held at a time; backwards four times as many, because chunks should hold all readers of a cell."""

JOINED_BYTES = 1 << 20
"""Up to so many bytes of samples per picture, all pictures of a batch are sampled at once: on small maps the calls cost
more than what they compute."""

SUM = 0  # mode of `embedding_bag`

OPERATOR_DEVICES = ("cuda",)
"""Where torchvision's operator is a kernel of its own."""

KEPT_GRIDS = 64
"""Sizes of maps for which places of taps are kept on their device: a pyramid of five needs 13 of at most 1 MB each."""


@functools.lru_cache(1)
def torchvision_operator() -> Callable[..., Tensor] | None:
    """torchvision's `deform_conv2d`, or None if it is absent or built for another torch."""
    try:
        from torchvision.ops import deform_conv2d
    except Exception:  # a mismatched torchvision raises RuntimeError or OSError while it registers operators
        return None
    return deform_conv2d


@dataclass
class _Samples:
    """Where the samples of one image lie; all but `rows` and `cols` in the order of (position, tap).

    Attributes:
        index: (P K, 4) int32, rows of the map as a table (H W, C).
        share: (P K, 4) weight of each row, the mask included; 0 for cells outside the map.
        rows, cols: two (K, P) each, shares of the upper and lower row and of the left and right column.
        edge_rows, edge_cols: two (K, P) each, 1 where that row or column lies in the map and 0 elsewhere.
    """

    index: Tensor
    share: Tensor
    rows: tuple[Tensor, Tensor]
    cols: tuple[Tensor, Tensor]
    edge_rows: tuple[Tensor, Tensor]
    edge_cols: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Geometry:
    """Sizes of the map that is read and of the output, and how one moves over the other.

    Attributes:
        images: maps that lie under each other in the table, in offsets, masks and output; sizes are those of one.
    """

    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: int
    padding: int
    images: int = 1

    @property
    def positions(self) -> int:
        return self.images * self.out_size[0] * self.out_size[1]

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def axis(self, offset: Tensor, dim: int) -> tuple[Tensor, ...]:
        """offset (K, P) in cells -> the lower of two cells (K, P) int32, their shares and whether they exist."""
        options = {"dtype": offset.dtype, "device": offset.device}
        base = torch.arange(self.out_size[dim], **options) * self.stride - self.padding
        tap = torch.arange(self.kernel[dim], **options)
        if dim == 0:
            base, tap = base.repeat_interleave(self.out_size[1]), tap.repeat_interleave(self.kernel[1])
        else:
            base, tap = base.repeat(self.out_size[0]), tap.repeat(self.kernel[0])
        place, limit = offset + base.repeat(self.images) + tap[:, None], self.size[dim]
        low = place.floor()
        share = place - low
        # Far-away samples have no cell: this keeps huge or infinite offsets out of the integer conversion.
        low = low.clamp(-2, limit)
        edges = [((low >= -i) & (low < limit - i)).to(offset.dtype) for i in (0, 1)]
        return low.to(torch.int32), (1 - share) * edges[0], share * edges[1], *edges

    def samples(self, offset: Tensor, mask: Tensor) -> _Samples:
        """offset (2 K, Ho, Wo), per tap dy, dx; mask (K, Ho, Wo)."""
        height, width = self.size
        planes = offset.reshape(self.taps, 2, -1)
        top, row0, row1, *edge_rows = self.axis(planes[:, 0], 0)
        left, col0, col1, *edge_cols = self.axis(planes[:, 1], 1)
        mask = mask.reshape(self.taps, -1)
        index = torch.empty(*mask.t().shape, 4, dtype=torch.int32, device=offset.device)
        share = torch.empty(*mask.t().shape, 4, dtype=offset.dtype, device=offset.device)
        down = [(top + i).clamp_(0, height - 1).mul_(width) for i in (0, 1)]
        if self.images > 1:
            above = torch.arange(0, self.images * height * width, height * width, dtype=torch.int32, device=mask.device)
            down = [row.add_(above.repeat_interleave(self.positions // self.images)) for row in down]
        right = [(left + i).clamp_(0, width - 1) for i in (0, 1)]
        masked = [row * mask for row in (row0, row1)]
        for i in (0, 1):
            for j in (0, 1):
                torch.add(down[i], right[j], out=index[:, :, 2 * i + j].t())
                torch.mul(masked[i], (col0, col1)[j], out=share[:, :, 2 * i + j].t())
        return _Samples(
            index.view(-1, 4), share.view(-1, 4), (row0, row1), (col0, col1), tuple(edge_rows), tuple(edge_cols)
        )

    def gradients(self, dots: Tensor, mask: Tensor, samples: _Samples) -> tuple[Tensor, Tensor]:
        """Products of the samples' gradients with the four cells (P K, 4) -> gradients of offset and mask."""
        upper_left, upper_right, lower_left, lower_right = dots.view(-1, self.taps, 4).permute(2, 1, 0).contiguous()
        mask = mask.reshape(self.taps, -1)
        upper = torch.addcmul(upper_left * samples.cols[0], upper_right, samples.cols[1])
        lower = torch.addcmul(lower_left * samples.cols[0], lower_right, samples.cols[1])
        grad_mask = torch.addcmul(upper * samples.rows[0], lower, samples.rows[1])
        grad_offset = dots.new_empty(self.taps, 2, dots.shape[0] // self.taps)
        torch.mul(mask, lower.mul_(samples.edge_rows[1]).sub_(upper.mul_(samples.edge_rows[0])), out=grad_offset[:, 0])
        left = torch.addcmul(upper_left * samples.rows[0], lower_left, samples.rows[1])
        right = torch.addcmul(upper_right * samples.rows[0], lower_right, samples.rows[1])
        torch.mul(mask, right.mul_(samples.edge_cols[1]).sub_(left.mul_(samples.edge_cols[0])), out=grad_offset[:, 1])
        shape = (-1, self.images * self.out_size[0], self.out_size[1])
        return grad_offset.view(shape), grad_mask.view(shape)


class _DeformConv(torch.autograd.Function):
    """See the module docstring; one (P, K C) @ (K C, O) product per chunk of P output positions."""

    @staticmethod
    def forward(
        ctx: Any, table: Tensor, offset: Tensor, mask: Tensor, kernel: Tensor, bias: Tensor | None, where: _Geometry
    ) -> Tensor:
        """table (B, H W, C), offset (B, 2 K, Ho, Wo), mask (B, K, Ho, Wo), kernel (K C, O) -> (B, Ho Wo, O)."""
        ctx.save_for_backward(table, offset, mask, kernel)
        ctx.where = where
        out = table.new_empty(len(table), where.positions, kernel.shape[1])
        for b in range(len(table)):
            samples = where.samples(offset[b], mask[b])
            for part, rows in _chunks(out.shape[1], where.taps, table, CHUNK_BYTES):
                columns = _gather(table[b], samples.index[rows], samples.share[rows]).view(-1, len(kernel))
                _product(columns, kernel, bias, out[b, part])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, offset, mask, kernel = ctx.saved_tensors
        where: _Geometry = ctx.where
        needs = dict(zip(("table", "offset", "mask", "kernel", "bias"), ctx.needs_input_grad))
        needs["places"] = needs.pop("offset") | needs.pop("mask")
        grad = grad.contiguous()
        grad_table = torch.zeros_like(table) if needs["table"] else None
        grad_kernel = torch.zeros_like(kernel, dtype=table.dtype) if needs["kernel"] else None
        grad_offset, grad_mask = (torch.empty_like(t) if needs["places"] else None for t in (offset, mask))
        grad_bias = grad.sum((0, 1)) if needs["bias"] else None
        with torch.autocast(grad.device.type, enabled=False):
            back = kernel.t()
            for b in range(len(table)) if needs["table"] or needs["places"] or needs["kernel"] else ():
                samples = where.samples(offset[b], mask[b])
                dots = torch.empty_like(samples.share) if needs["places"] else None
                columns = None
                for part, rows in _chunks(grad.shape[1], where.taps, table, 4 * CHUNK_BYTES):
                    index, share = samples.index[rows], samples.share[rows]
                    if needs["kernel"]:
                        grad_kernel.addmm_(_gather(table[b], index, share).view(-1, len(kernel)).t(), grad[b, part])
                    if not (needs["table"] or needs["places"]):
                        continue
                    if columns is None or len(columns) != part.stop - part.start:
                        columns = grad.new_empty(part.stop - part.start, len(kernel))
                    grad_samples = _product(grad[b, part], back, None, columns).view(len(index), -1)
                    if needs["places"]:
                        dots[rows] = _dots(grad_samples, table[b], index)
                    if needs["table"]:
                        _scatter(grad_table[b], grad_samples, index, share)
                if needs["places"]:
                    grad_offset[b], grad_mask[b] = where.gradients(dots, mask[b], samples)
        grad_kernel = grad_kernel.to(kernel.dtype) if needs["kernel"] else None
        return grad_table, grad_offset, grad_mask, grad_kernel, grad_bias, None


def _product(rows: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """out = rows @ kernel + bias, multiplied in the precision of the kernel."""
    if rows.dtype != kernel.dtype:
        rows, bias = rows.to(kernel.dtype), None if bias is None else bias.to(kernel.dtype)
        return out.copy_(rows @ kernel if bias is None else torch.addmm(bias, rows, kernel))
    return torch.mm(rows, kernel, out=out) if bias is None else torch.addmm(bias, rows, kernel, out=out)


def _chunks(positions: int, taps: int, table: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of output positions, and of their samples, that keep the sampled rows within `size` bytes."""
    step = max(1, size // (taps * table.shape[2] * table.element_size()))
    for start in range(0, positions, step):
        stop = min(start + step, positions)
        yield slice(start, stop), slice(start * taps, stop * taps)


def _gather(table: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """(S, C): sum_j share[s, j] · table[index[s, j]]."""
    bags = torch.arange(0, index.numel(), index.shape[1], dtype=index.dtype, device=index.device)
    return torch.embedding_bag(table, index.reshape(-1), bags, mode=SUM, per_sample_weights=share.reshape(-1))[0]


def _scatter(total: Tensor, rows: Tensor, index: Tensor, share: Tensor) -> None:
    """total[index[s, j]] += share[s, j] · rows[s], in place: the sum of each cell's readers, which sorting finds."""
    flat = index.reshape(-1)
    short = len(total) <= torch.iinfo(torch.int16).max  # half the digits to sort
    cells, order = (flat.to(torch.int16) if short else flat).sort(stable=True)
    first, last = int(cells[0]), int(cells[-1])
    counts = torch.bincount(flat - first, minlength=last - first + 1)
    bags = torch.zeros_like(counts, dtype=flat.dtype)
    torch.cumsum(counts[:-1], 0, out=bags[1:])
    readers = order.div(index.shape[1], rounding_mode="floor").to(flat.dtype)
    weights = share.reshape(-1)[order]
    total[first : last + 1] += torch.embedding_bag(rows, readers, bags, mode=SUM, per_sample_weights=weights)[0]


def _dots(rows: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """(S, 4): rows[s] · table[index[s, j]]."""
    flat, width = index.reshape(-1), index.shape[1]
    bags = torch.arange(0, len(flat), width, dtype=flat.dtype, device=flat.device)
    bag_of = torch.arange(len(rows), dtype=flat.dtype, device=flat.device).repeat_interleave(width)
    found = torch.ops.aten._embedding_bag_per_sample_weights_backward(rows, table, flat, bags, bag_of, SUM)
    return found.view(-1, width)


def _plain(
    x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """As `deform_conv2d`, of operations that every compiler and exporter knows; keeps all samples in memory."""
    (batch, channels, *size), (kernel_height, kernel_width) = x.shape, weight.shape[-2:]
    out_size, taps = offset.shape[-2:], kernel_height * kernel_width
    options = {"dtype": x.dtype, "device": x.device}
    rows, cols = (torch.arange(n, **options) * stride - padding for n in out_size)
    taps_y, taps_x = (torch.arange(n, **options) for n in weight.shape[-2:])
    y = (taps_y[:, None, None, None] + rows[:, None]).expand(-1, kernel_width, -1, len(cols))
    x_ = (taps_x[:, None, None] + cols).expand(kernel_height, -1, len(rows), -1)
    base = torch.stack([y, x_], 2).view(1, -1, *out_size)  # dy and dx of each tap in turn, as in `offset`
    place = (offset + base).unflatten(1, (taps, 2)).movedim(2, -1).flip(-1)  # grid_sample wants x before y
    # cells to -1..1 of the map's edges; what lies further out than a cell reads zeros, however far
    limit = torch.tensor([size[1], size[0]], **options)
    grid = (2 * torch.minimum(place.clamp(min=-2), limit + 1) + 1) / limit - 1
    samples = F.grid_sample(x, grid.flatten(1, 2), padding_mode="zeros", align_corners=False)
    samples = (samples * mask.flatten(1, 2)[:, None]).reshape(batch, channels * taps, -1)
    kernel = weight.reshape(weight.shape[0], -1)
    out = kernel @ samples.to(kernel.dtype)
    out = out if bias is None else out + bias.to(out.dtype)[:, None]
    return out.to(x.dtype).view(batch, -1, *out_size)


@functools.lru_cache(KEPT_GRIDS)
def _places(
    size: tuple[int, int],
    out_size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    padding: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """(2, K, Ho, Wo): row and column of every tap where offsets are 0, in the units of `grid_sample` (-1 to 1)."""
    with torch.inference_mode(False):
        found = []
        for axis in (0, 1):
            base = torch.arange(out_size[axis], dtype=dtype, device=device) * stride - padding
            tap = torch.arange(kernel[axis], dtype=dtype, device=device)
            tap, base = (tap[:, None], base[:, None]) if axis == 0 else (tap[None], base[None])
            place = tap.expand(kernel).reshape(-1, 1, 1) + base.expand(out_size)
            found.append((2 * place + 1) / size[axis] - 1)
        return torch.stack(found)


class _Sampled(torch.autograd.Function):
    """As `deform_conv2d` in few launches: one `grid_sample` of all taps and one product.

    Samples are not kept but taken again in the backward pass: over all layers they would be gigabytes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        offset: Tensor,
        mask: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: int,
    ) -> Tensor:
        ctx.where = (tuple(x.shape[-2:]), tuple(mask.shape[-2:]), tuple(weight.shape[-2:]), stride, padding)
        ctx.save_for_backward(x, offset, mask, weight)
        samples = _Sampled.samples(x, _Sampled.grid(ctx, offset), mask.shape[1])
        kernel = weight.flatten(1).expand(len(x), -1, -1)
        columns = (samples * mask[:, None].flatten(3)).to(kernel.dtype).flatten(1, 2)
        start = kernel.new_zeros(1) if bias is None else bias.to(kernel.dtype)[:, None]
        return torch.baddbmm(start, kernel, columns).to(x.dtype).view(len(x), -1, *mask.shape[-2:])

    @staticmethod
    def grid(ctx: Any, offset: Tensor) -> Tensor:
        """(B, K Ho, Wo, 2), x before y."""
        size, out_size, kernel, *_ = ctx.where
        places = _places(*ctx.where, offset.dtype, offset.device)
        offset = offset.view(len(offset), -1, 2, *out_size)
        grid = offset.new_empty(*offset.shape[:2], *out_size, 2)
        for axis in (0, 1):
            torch.add(places[axis], offset[:, :, axis], alpha=2 / size[axis], out=grid[..., 1 - axis])
            # what lies further out than a cell reads zeros, however far
            grid[..., 1 - axis].clamp_(-1 - 3 / size[axis], 1 + 3 / size[axis])
        return grid.flatten(1, 2)

    @staticmethod
    def samples(x: Tensor, grid: Tensor, taps: int) -> Tensor:
        """(B, C, K, Ho Wo)."""
        found = torch.grid_sampler_2d(x, grid, 0, 0, False)  # bilinear, zeros outside
        return found.view(*x.shape[:2], taps, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, offset, mask, weight = ctx.saved_tensors
        need_x, need_offset, need_mask, need_weight, need_bias, *_ = ctx.needs_input_grad
        grad_x = grad_offset = grad_mask = grad_weight = None
        flat = grad.flatten(2)
        grad_bias = flat.sum((0, 2)) if need_bias else None
        grid, planes = _Sampled.grid(ctx, offset), mask[:, None].flatten(3)
        with torch.autocast(grad.device.type, enabled=False):
            samples = _Sampled.samples(x, grid, mask.shape[1]) if need_mask or need_weight else None
            if need_weight:
                columns = (samples * planes).to(weight.dtype).flatten(1, 2)
                grad_weight = torch.bmm(flat.to(weight.dtype), columns.transpose(1, 2)).sum(0).view_as(weight)
            if need_x or need_offset or need_mask:
                back = weight.flatten(1).t().expand(len(x), -1, -1)
                found = torch.bmm(back, flat.to(weight.dtype)).to(x.dtype).view(*x.shape[:2], *planes.shape[2:])
                if need_mask:
                    grad_mask = (found * samples).sum(1).view_as(mask)
                if need_x or need_offset:
                    found = (found * planes).view(*x.shape[:2], *grid.shape[1:3])
                    wanted = [need_x, need_offset]
                    grad_x, grad_grid = torch.ops.aten.grid_sampler_2d_backward(found, x, grid, 0, 0, False, wanted)
                if need_offset:
                    grad_offset, size = torch.empty_like(offset), ctx.where[0]
                    parts = grad_offset.view(len(offset), -1, 2, *mask.shape[-2:])
                    grad_grid = grad_grid.view(*parts[:, :, 0].shape, 2)
                    for axis in (0, 1):
                        torch.mul(grad_grid[..., 1 - axis], 2 / size[axis], out=parts[:, :, axis])
        return grad_x, grad_offset, grad_mask, grad_weight, grad_bias, None, None


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    backend: Literal["auto", "torch", "torchvision", "sampled", "plain"] = "auto",
) -> Tensor:
    """Modulated deformable convolution, one group, dilation 1.

    Args:
        x: (B, C, H, W); channels-last memory is read without a copy.
        offset: (B, 2 K, Ho, Wo), per tap (row-major) dy, dx in cells. mask: (B, K, Ho, Wo).
        weight: (O, C, kh, kw), K = kh kw; where it is of less precision than x, columns are rounded to it before they
            are multiplied. bias: (O,) or None.
        backend: "torch" for the path that suits a CPU, "torchvision" for its operator, "sampled" for one `grid_sample`
            of all taps, "plain" for the same in operations that torch can record; "auto" for what suits x and is there.

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
    if backend == "auto":
        backend = _suited(x)
    if backend == "plain":
        return _plain(x, offset, mask, weight, bias, stride, padding)
    if backend == "sampled":
        return _Sampled.apply(x, offset.contiguous(), mask.contiguous(), weight, bias, stride, padding)
    if backend == "torchvision":
        operator = torchvision_operator()
        if operator is None:
            raise ImportError("torchvision cannot be imported here; use another backend")
        return operator(x, offset, weight.to(x.dtype), bias, stride=stride, padding=padding, mask=mask)
    table = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    kernel = weight.permute(2, 3, 1, 0).reshape(taps * channels, -1)
    images = 1
    if batch > 1 and out_size[0] * out_size[1] * len(kernel) * x.element_size() <= JOINED_BYTES:
        images = batch
        table = table.reshape(1, -1, channels)
        offset, mask = (t.transpose(0, 1).reshape(1, t.shape[1], -1, out_size[1]) for t in (offset, mask))
    where = _Geometry((height, width), out_size, (kernel_height, kernel_width), stride, padding, images)
    out = _DeformConv.apply(table, offset, mask, kernel, bias, where)
    return out.view(batch, *out_size, -1).permute(0, 3, 1, 2)


def _suited(x: Tensor) -> Literal["torch", "torchvision", "sampled", "plain"]:
    """What "auto" stands for."""
    if traced():
        return "plain"
    if x.device.type in OPERATOR_DEVICES and torchvision_operator() is not None:
        return "torchvision"
    return "torch" if x.device.type == "cpu" else "sampled"


class ModulatedDeformConv(nn.Module):
    """3x3 modulated deformable convolution that is handed its offsets and mask.

    Samples are taken in float32 or wider. The product is taken in float32, too, as the official code does also under
    autocast; weights stored in bfloat16 are multiplied in bfloat16.
    """

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
        weight = self.weight if self.weight.dtype == torch.bfloat16 else self.weight.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(
                x.to(dtype),
                offset.to(dtype),
                mask.to(dtype),
                weight,
                self.bias.to(dtype),
                self.stride,
                padding=1,
            )
