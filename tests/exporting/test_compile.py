"""Training steps under torch.compile: how often a graph breaks, and that losses and gradients are eager's.

Backends that run what was traced operation by operation serve: "eager" with autograd's backward, "aot_eager" with a
traced one. They need no compiler.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from duotune import attach, load_backbone
from duotune.methods import METHODS
from duotune.methods.base import Progress

NAMES = ["cat", "red square", "dog", "grey house boat"]
CASES = [(name, {}) for name in METHODS] + [
    ("vpt", {"deep": False}),
    ("coop", {"position": "middle", "class_specific": True}),
]


def step(model: nn.Module, compiled: nn.Module, **inputs) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of one step; `compiled` is the model or a compiled one."""
    model.zero_grad(set_to_none=True)
    loss = compiled(**inputs)["loss"]
    if loss.requires_grad:
        loss.backward()
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def compiled_step(model: nn.Module, backend: str, **inputs) -> tuple[int, Tensor, list[Tensor]]:
    """Graph breaks, loss and gradients of a compiled step."""
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    try:
        loss, gradients = step(model, torch.compile(model, backend=backend), **inputs)
        assert counters["stats"]["calls_captured"] > 10  # something was compiled
        return sum(counters["graph_break"].values()), loss, gradients
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize(
    "method, settings", CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_no_graph_breaks_on_clip(tiny_clip, method, settings):
    """1e-5: the plain operations sum in another order than the hand-written steps."""
    model = attach(tiny_clip, method, NAMES, **settings).train()
    inputs = {"pixel_values": torch.randn(3, 3, 32, 32), "labels": torch.tensor([3, 0, 1]), "progress": Progress(0, 2)}
    loss, gradients = step(model, model, **inputs)
    backend = "aot_eager" if method == "dpt" else "eager"  # the method with most parts
    breaks, compiled_loss, compiled_gradients = compiled_step(model, backend, **inputs)
    assert breaks == 0
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-5, atol=1e-6)
    assert len(compiled_gradients) == len(gradients) and bool(gradients) == (method != "zero_shot")
    for ours, eager in zip(compiled_gradients, gradients):
        assert (ours - eager).norm() <= 1e-5 * eager.norm() + 1e-7


def test_no_graph_breaks_on_glip():
    """A step of SDPT on kept feature maps, as a trainer makes it: fusion, deformable convolutions, head, losses.

    1e-4 of the loss and 1e-2 of the gradients: hand-written steps are left out, and where a sampling point or a ReLU
    lies within rounding of its kink, the gradient takes the other side (see tests/models/test_glip_reference.py).
    """
    backbone = load_backbone("tiny-glip", device="cpu")
    model = attach(backbone, "sdpt", NAMES).train()
    caption, pixels = model.method.caption, torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = backbone.encode_image(pixels)
    boxes = torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60]])
    labels = [
        {"boxes": boxes, "positive_map": caption.positive_map([0, 2])},
        {"boxes": boxes[1:], "positive_map": caption.positive_map([3])},
    ]
    inputs = {
        "pixel_values": pixels,
        "feature_maps": maps,
        "labels": labels,
        "image_sizes": torch.tensor([[64, 96]] * 2),
    }
    loss, gradients = step(model, model, **inputs)
    breaks, compiled_loss, compiled_gradients = compiled_step(model, "eager", **inputs)
    assert breaks == 0
    torch.testing.assert_close(compiled_loss, loss, rtol=1e-4, atol=0)
    assert len(compiled_gradients) == len(gradients) > 0
    for ours, eager in zip(compiled_gradients, gradients):
        assert (ours - eager).norm() <= 1e-2 * eager.norm()
