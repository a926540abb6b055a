"""onnxruntime, which the tests of exports run what they wrote with."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from torch import nn


@pytest.fixture(scope="session")
def onnx_session():
    """(exported program) -> its ONNX model in onnxruntime, as a function of one array."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install duotune[test]")

    def open_session(program: torch.export.ExportedProgram):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            # optimising takes longer than the rest; onnxruntime does it, too
            written = torch.onnx.export(program, (), dynamo=True, verbose=False, optimize=False)
        model = written.model_proto.SerializeToString()
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, quiet, providers=["CPUExecutionProvider"])
        (source,) = (entry.name for entry in session.get_inputs())
        return lambda pixels: [torch.from_numpy(x) for x in session.run(None, {source: pixels.numpy()})]

    logger = logging.getLogger("torch.onnx")
    before, logger.disabled = logger.disabled, True
    yield open_session
    logger.disabled = before


@pytest.fixture(scope="session")
def export():
    """(exportable model, pixels) -> a program of any number of pictures."""

    def run(exportable: nn.Module, pixels: torch.Tensor) -> torch.export.ExportedProgram:
        return torch.export.export(
            exportable, (pixels,), dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=64)}}
        )

    return run
