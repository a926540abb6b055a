"""The measuring script of few shots: its rows, its protocols, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "embedded"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import few_shot

    return few_shot


def test_rows_of_both_protocols_and_going_on(script, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    options = ["--out", str(out), "--tasks", "tiny-effects", "--methods", "zero_shot,linear_probe", "--seeds", "1"]
    script.main([*options, "--shots", "2", "--protocol", "both"])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["method"], r["shots"], r["protocol"]) for r in rows] == [
        ("zero_shot", 0, "all"),
        ("linear_probe", 2, "all"),
        ("zero_shot", 0, "base_new"),
        ("linear_probe", 2, "base_new"),
    ]
    zero, probe, zero_halves, probe_halves = rows
    assert zero["parameters"] == 0 < probe["parameters"] and zero["images"] == probe["images"] == 406
    assert probe["accuracy"] > zero["accuracy"] > 100 / 7
    base, new = zero_halves["base"], zero_halves["new"]
    assert zero_halves["harmonic_mean"] == pytest.approx(2 * base * new / (base + new), abs=0.01)
    assert zero_halves["classes"] == 4 and zero_halves["new_classes"] == 3
    assert "base" in probe_halves and "new" not in probe_halves  # a probe of 4 classes knows no others
    capsys.readouterr()
    script.main([*options, "--shots", "2", "--protocol", "both"])
    assert not capsys.readouterr().out and len(out.read_text().splitlines()) == 4


def test_cases_are_rounds_of_seeds(script):
    found = list(script.cases(["a"], ["zero_shot", "coop"], [], 2, ["all"]))
    assert [(c["method"], c["shots"], c["seed"]) for c in found] == [
        ("zero_shot", 0, 1),
        *(("coop", n, seed) for seed in (1, 2) for n in (1, 2, 4, 8)),
    ]
