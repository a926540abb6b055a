"""What each benchmark measures: its two sides, its floor and what the plain side would need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import detection_shapes as detection
from . import flops, flops_detection, shapes

QUICK_CLASSES = 6
QUICK_TOKENS = 9


@dataclass(frozen=True)
class Benchmark:
    """
    Attributes:
        method: "coop", "dpt", "sdpt", or "fusion" (the attention of one fusion layer alone).
        size: number of classes; of a detector, tokens of the caption.
        dtype: of our frozen weights. plain_dtype: of the plain step's.
    """

    name: str
    method: str
    size: int
    dtype: str
    plain_dtype: str
    what: str

    @property
    def on_detector(self) -> bool:
        return self.method in ("sdpt", "fusion")

    def shape(self, quick: bool) -> shapes.Shape | detection.DetectionShape:
        if self.on_detector:
            return detection.QUICK_GLIP if quick else detection.GLIP_T
        return shapes.QUICK if quick else shapes.VIT_B16

    def sized(self, quick: bool) -> int:
        """`size`, or a small one."""
        return (QUICK_TOKENS if self.on_detector else QUICK_CLASSES) if quick else self.size

    @property
    def plain_sides(self) -> dict[str, tuple[str, str]]:
        """Further plain runs: key in the result -> (side, dtype)."""
        if self.method == "sdpt":
            return {"plain_frozen": ("plain_frozen", self.plain_dtype)}
        return {"plain_same_dtype": ("plain", self.dtype)} if self.dtype != self.plain_dtype else {}


FUSION = "fusion attention, GLIP-T at 800x1088, forward and backward"
BENCHMARKS = {
    bench.name: bench
    for bench in (
        Benchmark("coop_100", "coop", 100, "float32", "float32", "CoOp, ViT-B/16, batch 32, 100 classes, fp32"),
        Benchmark("coop_1000", "coop", 1000, "float32", "float32", "CoOp, ViT-B/16, batch 32, 1000 classes, fp32"),
        Benchmark("dpt_fp32", "dpt", 100, "float32", "float32", "DPT, ViT-B/16, batch 32, 100 classes, fp32"),
        Benchmark(
            "dpt_bf16", "dpt", 100, "bfloat16", "float32", "DPT, ViT-B/16, batch 32, 100 classes, bf16 / plain fp32"
        ),
        Benchmark("sdpt_step", "sdpt", 20, "float32", "float32", "SDPT, GLIP-T, 800x1088, batch 1, 20 tokens, fp32"),
        Benchmark("fusion_20", "fusion", 20, "float32", "float32", f"{FUSION}, 20 valid tokens of 256, fp32"),
        Benchmark("fusion_256", "fusion", 256, "float32", "float32", f"{FUSION}, 256 valid tokens, fp32"),
    )
}


def make_step(side: str, bench: Benchmark, dtype: str, quick: bool) -> Callable[[], float]:
    """What is timed. side: "ours", "plain" or "plain_frozen"."""
    shape, size = bench.shape(quick), bench.sized(quick)
    if bench.on_detector:
        from . import ours_detection, plain_glip

        if bench.method == "fusion":
            return (ours_detection.OurFusion if side == "ours" else plain_glip.PlainFusion)(shape, size)
        if side == "ours":
            return ours_detection.OurSdptStep(shape, size)
        return plain_glip.PlainSdptStep(shape, size, frozen=side == "plain_frozen")
    from .ours import OurStep
    from .plain import PlainStep

    return (OurStep if side == "ours" else PlainStep)(shape, bench.method, size, getattr(torch, dtype))


def needed_flops(bench: Benchmark, quick: bool) -> float:
    """Of one step; see `flops`."""
    shape, size = bench.shape(quick), bench.sized(quick)
    count = {
        "coop": flops.coop_step,
        "dpt": flops.dpt_step,
        "sdpt": flops_detection.sdpt_step,
        "fusion": flops_detection.fusion_step,
    }
    return count[bench.method](shape, size)


def measured_rate(bench: Benchmark, quick: bool, device: str = "cpu") -> tuple[float, float]:
    """FLOPs per second of the step's heaviest product, by the clock and by processor time."""
    shape, dtype = bench.shape(quick), getattr(torch, bench.dtype)
    rate = functools.partial(flops.matmul_rate, **({} if device == "cpu" else {"device": device}))
    if bench.method == "sdpt":
        return rate(dtype, shape.positions, shape.channels, inner=9 * shape.channels)
    if bench.method == "fusion":
        rows = shape.fusion_heads * (bench.sized(quick) + shape.prototypes)
        return rate(dtype, shape.positions, shape.channels, inner=rows)
    if bench.method == "coop":
        return rate(dtype, 447 if bench.sized(quick) <= 100 else 4317, shape.text_width)
    return rate(dtype, shape.batch * shape.image_tokens, shape.vision_width)


def plain_peak(bench: Benchmark, quick: bool) -> float:
    """Estimated bytes of the plain side."""
    shape, size = bench.shape(quick), bench.sized(quick)
    if bench.on_detector:
        return flops_detection.plain_peak_bytes(shape, bench.method)
    from .plain import plain_peak_bytes

    return plain_peak_bytes(shape, bench.method, size, getattr(torch, bench.plain_dtype))
