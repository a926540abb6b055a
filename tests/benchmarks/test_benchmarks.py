"""The benchmarks run, print what they promise, and time two sides that compute the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISED = {"name", "ours_s", "plain_s", "ratio", "ours_peak_gb", "plain_peak_gb", "floor_s"}


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks.run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["coop_100", "dpt_fp32"])
def test_ours_equals_plain(name, tmp_path):
    done = run(name, "--quick", "--repeats", "2", "--threads", "1", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert PROMISED <= set(result) and result["name"] == name
    assert result["loss_difference"] <= 1e-5 and result["gradient_difference"] <= 1e-5
    assert result["threads"] == 1 and result["step_gflop"] > 0
    for key in PROMISED - {"name"}:
        assert result[key] > 0, key
    assert result == json.loads((tmp_path / "out.json").read_text())


def test_an_unknown_name_lists_the_known_ones():
    done = run("coop_10")
    assert done.returncode != 0
    assert all(name in done.stderr for name in ("coop_100", "coop_1000", "dpt_fp32", "dpt_bf16"))


def test_the_plain_step_is_left_out_where_it_would_not_fit(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    import torch
    from benchmarks.plain import plain_peak_bytes
    from benchmarks.shapes import VIT_B16

    assert plain_peak_bytes(VIT_B16, "coop", 1000, torch.float32) > 24e9
    assert 3e9 < plain_peak_bytes(VIT_B16, "coop", 100, torch.float32) < 8e9


def test_flops_by_hand(monkeypatch):
    """A tower of one layer with 3 texts, counted product by product."""
    monkeypatch.syspath_prepend(str(ROOT))
    from dataclasses import replace

    from benchmarks.flops import text_step
    from benchmarks.shapes import NAME_LENGTHS, QUICK

    shape, d = replace(QUICK, text_layers=1), QUICK.text_width
    shared, own = 1 + QUICK.context_tokens, [n + 2 for n in NAME_LENGTHS[:3]]
    keys_and_values = 2 * d * d * 2 * (shared + sum(own))
    ends = 3 * 2 * d * d * (1 + 1 + 4 + 4)  # query, output and the MLP's two products
    scores_and_sums = sum(2 * 2 * d * (shared + n) for n in own)
    projection = 3 * 2 * d * QUICK.embed
    assert text_step(shape, 3) == 2 * (keys_and_values + ends + scores_and_sums + projection)
