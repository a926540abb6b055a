"""SDPT on GLIP through torch.export and ONNX: fusion, deformable convolutions and head in plain operations."""

from __future__ import annotations

import copy

import pytest
import torch

from duotune import attach
from duotune.errors import ConfigError

NAMES = ["red square", "blue circle"]
PIXELS = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def glip():
    from duotune import load_backbone

    return load_backbone("tiny-glip", device="cpu")


@pytest.fixture
def one_layer(glip):
    """The first fusion layer alone: what costs an exporter its time is how many operations there are."""
    one = copy.deepcopy(glip)
    one.model.model.tower.blocks = one.model.model.tower.blocks[:1]
    one.num_fusion_layers = 1
    return one


def close(found, expected):
    """2e-6 of the largest number of each output: float32 places and sums, rounded elsewhere."""
    assert found.keys() == expected.keys() >= {"logits", "box_deltas", "centerness"}
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 2e-6 * value.abs().max(), name


def outputs(model, pixels):
    with torch.no_grad():
        raw = model.eval()(pixel_values=pixels)["output"].raw
    return {name: value for name, value in vars(raw).items() if isinstance(value, torch.Tensor)}


def test_a_detector_is_exported_for_any_batch(one_layer, export):
    model = attach(one_layer, "sdpt", NAMES)
    compute = export(model.exportable(PIXELS), PIXELS[:2]).module()
    for count in (3, 1):
        close(compute(PIXELS[:count]), outputs(model, PIXELS[:count]))


def test_onnxruntime_gives_the_same_boxes(glip, onnx_session):
    """All layers, a batch of two; any number of pictures is above and, in ONNX, in the slow test."""
    model, pixels = attach(glip, "sdpt", NAMES), PIXELS[:2]
    expected = outputs(model, pixels)
    run = onnx_session(torch.export.export(model.exportable(pixels), (pixels,)))
    close(dict(zip(expected, run(pixels))), expected)


@pytest.mark.slow
def test_onnxruntime_takes_any_batch(glip, export, onnx_session):
    model = attach(glip, "sdpt", NAMES)
    run = onnx_session(export(model.exportable(PIXELS), PIXELS[:2]))
    for count in (3, 1):
        expected = outputs(model, PIXELS[:count])
        close(dict(zip(expected, run(PIXELS[:count]))), expected)


def test_a_detector_has_to_be_told_the_size(glip):
    with pytest.raises(ConfigError, match=r"tiny-glip takes pictures of any size; give pixel_values"):
        attach(glip, "sdpt", NAMES).exportable()
