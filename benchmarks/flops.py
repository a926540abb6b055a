"""The floor of a step: the FLOPs it cannot avoid, divided by a measured matrix-multiplication rate.

Only matrix products are counted (2 FLOPs per multiply-add); element-wise work, memory traffic and
the optimiser are taken as free, so no implementation can reach the floor. Counted once: forward, and
backward towards the prompts (as many products again, because weights are frozen; where a layer's
input needs no gradient, less).
"""

from __future__ import annotations

import time

import torch

from .shapes import NAME_LENGTHS, Shape
from .timers import timer_of


def layer_rows(width: int, rows: float) -> float:
    """Forward FLOPs of one layer's projections: q, k, v, out (4 d²) and the MLP (8 d²) per row."""
    return 2 * rows * 12 * width**2


def attention(width: int, queries: float, keys: float) -> float:
    """Forward FLOPs of scores and weighted sums."""
    return 2 * queries * keys * 2 * width


def text_step(shape: Shape, num_classes: int) -> float:
    """Forward and backward through the text tower: shared rows once, own rows of each class up to its end."""
    shared = 1 + shape.context_tokens
    own = [NAME_LENGTHS[i % len(NAME_LENGTHS)] + 2 for i in range(num_classes)]  # name . [EOS]
    d = shape.text_width
    pairs = shared**2 / 2 + sum(n * (shared + n / 2) for n in own)
    full = layer_rows(d, shared + sum(own)) + attention(d, 1, pairs)
    # last layer: keys and values of all rows, everything else of the end rows alone
    rows = shared + sum(own)
    last = 2 * rows * 2 * d**2 + 2 * num_classes * 10 * d**2 + attention(d, 1, sum(shared + n for n in own))
    # going back, the first layer still needs all products: every row after the context depends on it through
    # attention, but the names' own embeddings do not; this saving (under 2 %) is not counted
    return 2 * ((shape.text_layers - 1) * full + last) + 2 * 2 * num_classes * d * shape.embed


def prompted_image_step(shape: Shape) -> float:
    """Forward and backward through the image tower with `visual_tokens` keys and values more in every layer."""
    d, n, p = shape.vision_width, shape.image_tokens, shape.visual_tokens
    images = shape.batch
    patches = 2 * images * (n - 1) * 3 * shape.patch**2 * d
    full = layer_rows(d, images * n) + attention(d, images * n, n + p)
    last = 2 * images * n * 2 * d**2 + 2 * images * 10 * d**2 + attention(d, images, n + p)
    # first layer: its input is a constant, so nothing goes back through q, k and v (3 d² per row)
    first_backward = full - 2 * images * n * 3 * d**2
    return patches + (shape.vision_layers - 1) * full + last + first_backward + (shape.vision_layers - 2) * full + last


def coop_step(shape: Shape, num_classes: int) -> float:
    """CoOp with cached image features."""
    return text_step(shape, num_classes)


def dpt_step(shape: Shape, num_classes: int) -> float:
    """DPT with cached frozen image features; CAVPT's own products (below 1 %) are left out."""
    return text_step(shape, num_classes) + prompted_image_step(shape)


def matmul_rate(
    dtype: torch.dtype, rows: int, width: int, seconds: float = 1.0, inner: int | None = None, device: str = "cpu"
) -> tuple[float, float]:
    """FLOPs per second of two products (rows, width) -> (rows, inner) -> (rows, width), by the clock and by processor
    time; the best of several. `inner` None is an MLP's, 4 width.

    Processor time counts every thread's seconds and no waiting, so it can be compared on a machine that is shared.
    """
    inner = 4 * width if inner is None else inner
    normal = lambda *size: torch.randn(*size, dtype=dtype, device=device)
    x, up, down = normal(rows, width), normal(inner, width), normal(width, inner)
    hidden, out = x.new_empty(rows, inner), torch.empty_like(x)

    def products() -> None:
        torch.mm(x, up.T, out=hidden)
        torch.mm(hidden, down.T, out=out)

    timer = timer_of(device)
    best, best_cpu, runs, begin = float("inf"), float("inf"), 0, time.perf_counter()
    while runs < 3 or time.perf_counter() - begin < seconds:
        start_cpu = time.process_time()
        _, elapsed = timer.time(products)
        best, best_cpu = min(best, elapsed), min(best_cpu, time.process_time() - start_cpu)
        runs += 1
    flops = 2 * rows * 2 * width * inner
    return flops / best, flops / max(best_cpu, 1e-9)
