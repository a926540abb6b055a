"""The block of docs/exporting.md runs, and what it writes can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "exporting.md"


def test_the_block_of_the_page(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install duotune[test]")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)
    model, size = names["model"], names["model"].backbone.image_size
    pixels = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = model.eval()(pixels)["logits"]
    session = onnxruntime.InferenceSession("classifier.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixel_values": pixels.numpy()})
    loaded = torch.export.load("classifier.pt2").module()(pixels)
    for found in (torch.from_numpy(logits), loaded):
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
