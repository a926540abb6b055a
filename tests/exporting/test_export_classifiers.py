"""Every classification method through torch.export and ONNX, for any number of pictures."""

from __future__ import annotations

import pytest
import torch

from duotune import attach
from duotune.methods import METHODS

NAMES = ["cat", "red square", "dog", "grey house boat"]
CASES = [(name, {}) for name in METHODS] + [("vpt", {"deep": False})]


@torch.no_grad()
def stir(model):
    """Parameters that start at zero or alike would hide what is wrong."""
    torch.manual_seed(1)
    for parameter in model.method.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "method, settings", CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_method_is_exported_for_any_batch(tiny_clip, export, onnx_session, method, settings):
    """1e-5 of the largest logit: float32 sums in another order; 1e-6 is what is seen."""
    model = stir(attach(tiny_clip, method, NAMES, **settings).train())
    pixels = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exportable = model.exportable()
    program = export(exportable, pixels[:2])
    computers = [program.module()]
    if not settings:
        run = onnx_session(program)
        computers.append(lambda x: run(x)[0])
    with torch.no_grad():
        expected = model.eval()(pixels)["logits"]
    limit = 1e-5 * expected.abs().max()
    assert (expected - expected.flip(0)).abs().max() > 100 * limit  # pictures differ
    for count in (5, 1):
        for compute in computers:
            assert (compute(pixels[:count]) - expected[:count]).abs().max() < limit


def test_the_text_tower_is_not_exported(tiny_clip, export):
    """With classes fixed its features are constants; what an export left behind does not reach later predictions."""
    model = stir(attach(tiny_clip, "coop", NAMES))
    pixels = torch.randn(2, 3, 32, 32)
    exportable = model.exportable()
    program = export(exportable, pixels)
    targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
    read = {targets[node.name] for node in program.graph.nodes if node.op == "placeholder" and node.users}
    assert len(read) > 40 and not [name for name in read if "text_model" in str(name) or "context" in str(name)]
    before = program.module()(pixels)
    stir(model)
    with torch.no_grad():
        after = model(pixels)["logits"]
    assert type(after) is torch.Tensor and (after - before).abs().max() > 1e-3
    again = export(model.exportable(), pixels).module()(pixels)
    assert (again - after).abs().max() < 1e-5 * after.abs().max()
