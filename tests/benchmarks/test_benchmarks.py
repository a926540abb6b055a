"""The benchmarks run, print what they promise, and time two sides that compute the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROMISED = {"name", "ours_s", "plain_s", "ratio", "ours_peak_gb", "plain_peak_gb", "floor_s"}
NAMES = {"coop_100", "coop_1000", "dpt_fp32", "dpt_bf16", "sdpt_step", "fusion_20", "fusion_256"}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("method", ["coop", "dpt"])
def test_both_sides_compute_the_same_steps(method):
    """The loss of three steps in a row, the gradients of the first and the parameters after the last."""
    from benchmarks.ours import OurStep
    from benchmarks.plain import PlainStep
    from benchmarks.run import differences
    from benchmarks.shapes import QUICK

    ours, plain = (Step(QUICK, method, 6, torch.float32) for Step in (OurStep, PlainStep))
    sides = []
    for step in (ours, plain):
        loss = step()
        sides.append({"loss": loss, "gradients": {k: p.grad.clone() for k, p in step.parameters.items()}})
    loss, gradient = differences(*sides)
    assert loss <= 1e-5 and gradient <= 1e-5
    assert ours.parameters.keys() == plain.parameters.keys()
    for _ in range(2):
        assert ours() == pytest.approx(plain(), rel=1e-5)
    for name, p in plain.parameters.items():
        assert (ours.parameters[name] - p).norm() <= 1e-5 * p.norm(), name


def gradient_differences(ours, plain):
    assert ours.parameters.keys() == plain.parameters.keys()
    pairs = {k: (ours.parameters[k].grad, p.grad) for k, p in plain.parameters.items()}
    assert all(b.norm() > 1e-5 for _, b in pairs.values())
    return {k: ((a - b).norm() / b.norm()).item() for k, (a, b) in pairs.items()}


@pytest.mark.parametrize("visible", ["both", "text_queries"])
def test_both_sides_compute_the_same_sdpt_step(visible):
    """Loss and gradients of every layer's prototypes, and the loss behind an update."""
    from benchmarks.detection_shapes import QUICK_GLIP
    from benchmarks.ours_detection import OurSdptStep
    from benchmarks.plain_glip import PlainSdptStep

    ours, plain = OurSdptStep(QUICK_GLIP, 9, visible), PlainSdptStep(QUICK_GLIP, 9, frozen=True, visible=visible)
    assert ours() == pytest.approx(plain(), rel=1e-6)
    assert max(gradient_differences(ours, plain).values()) <= 1e-5
    for a, b in zip(ours.parameters["prototypes.tokens"].grad, plain.parameters["prototypes.tokens"].grad):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert ours() == pytest.approx(plain(), rel=1e-6)


def test_what_the_authors_leave_trainable_gets_gradients():
    from benchmarks.detection_shapes import QUICK_GLIP
    from benchmarks.plain_glip import PlainSdptStep

    step = PlainSdptStep(QUICK_GLIP, 9)
    step()
    moved = {k for k, v in step.weights.values.items() if v.grad is not None}
    assert {k.split(".")[2] for k in moved if k.startswith("rpn.head.")} >= {"dyhead_tower", "bbox_pred", "scales"}
    assert not any(".b_attn." in k or k.startswith("backbone.") for k in moved)


@pytest.mark.parametrize("valid", [9, 32])
def test_both_sides_compute_the_same_fusion_attention(valid):
    from benchmarks.detection_shapes import QUICK_GLIP
    from benchmarks.ours_detection import OurFusion
    from benchmarks.plain_glip import PlainFusion

    ours, plain = OurFusion(QUICK_GLIP, valid), PlainFusion(QUICK_GLIP, valid)
    assert ours() == pytest.approx(plain(), rel=1e-5)
    assert max(gradient_differences(ours, plain).values()) <= 1e-5


def test_a_run_prints_one_json_object_last(tmp_path):
    out = tmp_path / "out.json"
    options = ["coop_100", "--quick", "--repeats", "2", "--threads", "1", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert PROMISED <= set(result) and result["name"] == "coop_100"
    assert result["loss_difference"] <= 1e-5 and result["gradient_difference"] <= 1e-5
    assert result["threads"] == 1 and result["step_gflop"] > 0
    for key in PROMISED - {"name"}:
        assert result[key] > 0, key
    assert result == json.loads(out.read_text())


@pytest.mark.parametrize("name", ["sdpt_step", "fusion_20", "fusion_256"])
def test_the_detection_benchmarks_report_the_same(monkeypatch, tmp_path, capsys, name):
    """As above, both sides in this process, which starts faster."""
    from benchmarks import flops, run, worker

    rate = flops.matmul_rate
    monkeypatch.setattr(flops, "matmul_rate", lambda *args, **rest: rate(*args, **rest, seconds=0.01))

    def side(kind, bench, dtype, quick, repeats, threads):
        worker.main(kind, bench.name, dtype, str(int(quick)), str(repeats), str(threads), str(tmp_path / "side.pt"))
        return torch.load(tmp_path / "side.pt")

    monkeypatch.setattr(run, "side", side)
    run.main([name, "--quick", "--repeats", "2"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert PROMISED <= set(result) and result["name"] == name
    assert result["loss_difference"] <= 1e-5 and result["gradient_difference"] <= 1e-5
    assert all(result[key] > 0 for key in PROMISED - {"name"})
    assert (result["plain_frozen_s"] is not None) == (name == "sdpt_step")


def test_what_does_not_fit_is_left_out(monkeypatch):
    """The plain side is neither started nor invented where its estimate exceeds the memory."""
    from benchmarks import run

    started = []

    def side(kind, *rest):
        started.append(kind)
        return {"seconds": [2.0, 1.0], "cpu_seconds": [4.0], "peak": 3e9, "rate": 1e12, "cpu_rate": 1e12, "threads": 1}

    monkeypatch.setattr(run, "side", side)
    monkeypatch.setattr(run, "available_bytes", lambda: 16e9)
    result = run.run("coop_1000")
    assert started == ["ours"] and result["ours_s"] == 1.0 and result["ours_peak_gb"] == 3.0
    assert result["ours_cpu_s"] == 4.0 and result["cpu_ratio"] is None
    assert result["plain_s"] is result["ratio"] is result["plain_peak_gb"] is None


def test_an_unknown_name_lists_the_known_ones(capsys):
    from benchmarks import run

    assert set(run.BENCHMARKS) == NAMES
    with pytest.raises(SystemExit) as ended:
        run.main(["coop_10"])
    assert ended.value.code != 0
    message = capsys.readouterr().err
    assert all(name in message for name in NAMES)


def test_the_estimate_of_the_plain_peak():
    from benchmarks.plain import plain_peak_bytes
    from benchmarks.shapes import VIT_B16

    assert plain_peak_bytes(VIT_B16, "coop", 1000, torch.float32) > 24e9
    assert 3e9 < plain_peak_bytes(VIT_B16, "coop", 100, torch.float32) < 8e9


def test_flops_by_hand():
    """A text tower of one layer with 3 classes, and an image tower of two layers, counted product by product."""
    from benchmarks.flops import prompted_image_step, text_step
    from benchmarks.shapes import NAME_LENGTHS, QUICK

    shape, d = replace(QUICK, text_layers=1), QUICK.text_width
    shared, own = 1 + QUICK.context_tokens, [n + 2 for n in NAME_LENGTHS[:3]]
    keys_and_values = 2 * d * d * 2 * (shared + sum(own))
    ends = 3 * 2 * d * d * (1 + 1 + 4 + 4)  # query, output and the MLP's two products
    scores_and_sums = sum(2 * 2 * d * (shared + n) for n in own)
    projection = 3 * 2 * d * QUICK.embed
    assert text_step(shape, 3) == 2 * (keys_and_values + ends + scores_and_sums + projection)

    d, images, rows = QUICK.vision_width, QUICK.batch, QUICK.batch * QUICK.image_tokens
    keys = QUICK.image_tokens + QUICK.visual_tokens
    patches = 2 * (rows - images) * 3 * QUICK.patch**2 * d
    qkv, rest = 2 * rows * 3 * d * d, 2 * rows * 9 * d * d + 2 * 2 * d * rows * keys
    last = 2 * rows * 2 * d * d + images * (2 * 10 * d * d + 2 * 2 * d * keys)
    assert prompted_image_step(QUICK) == patches + qkv + rest + rest + last + last


def test_flops_of_a_fusion_layer_by_hand():
    """One position, one text token and one prototype, product by product."""
    from benchmarks.detection_shapes import QUICK_GLIP
    from benchmarks.flops_detection import convolutions, fusion_products

    shape = replace(QUICK_GLIP, height=8, width=8, prototypes=1, inner=8, fusion_heads=2)
    assert shape.positions == 5 and shape.sizes == [(1, 1)] * 5
    d, text, inner, heads = shape.channels, shape.text_width, 8, 2
    scores = 2 * heads * d * (2 * 5 + 1)  # two keys for five positions; the text token asks the visual prototype, too
    updates = 2 * heads * d * (2 * 5 + 6)  # two keys' values for positions; six rows for the text token
    wide, narrow = fusion_products(shape, 1)
    assert wide == scores + updates
    keys_and_values, folded = 2 * 2 * 2 * text * inner, 2 * 2 * 2 * inner * d
    assert narrow == keys_and_values + folded + 2 * inner * (d + text) + 2 * inner * (d + text)
    assert convolutions(shape) == 2 * 9 * d * (d * (5 + 4 + 4) + 27 * 5)


def test_the_rate_is_a_rate():
    from benchmarks.flops import matmul_rate

    wall, cpu = matmul_rate(torch.float32, 256, 64, seconds=0.01)
    assert 1e7 < wall < 1e15 and 1e7 < cpu < 1e15


def test_a_profile_names_the_matrix_products(capsys):
    from benchmarks import profile

    profile.main(["dpt_fp32", "--quick", "--rows", "40"])
    printed = capsys.readouterr().out
    assert "aten::mm" in printed and "aten::addmm" in printed and "FrozenAttention" in printed


def test_the_count_of_kernels_prints_what_it_promises():
    """In a process of its own: a device is registered once per process."""
    command = [sys.executable, "-m", "benchmarks.kernels", "--quick", "glip_sdpt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = json.loads(done.stdout.splitlines()[-1])
    parts = [line[part] for part in ("step", "prediction", "step_with_torchvision", "prediction_with_torchvision")]
    assert all(part.keys() == {"kernels", "syncs", "copies", "blocking"} for part in parts)
    assert line["step"]["syncs"] == 0 and line["prediction"]["syncs"] == 1
    assert line["step_with_torchvision"]["kernels"] < line["step"]["kernels"]
