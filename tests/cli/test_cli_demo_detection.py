"""The demo's part about the embedded detector."""

from __future__ import annotations

import dataclasses
import json

import pytest

import duotune.recipes.running as running
from duotune.artifacts import describe
from duotune.cli.demo_detection import PICTURES, RECIPES, compare_detectors, detection_recipes
from duotune.errors import ConfigError
from duotune.report import write_metrics, write_report


def test_methods_are_trained_measured_and_drawn(tmp_path, monkeypatch):
    """A few pictures of the real task, one epoch."""
    recipes = detection_recipes("tiny-scenes-concepts", seed=1, epochs=1)
    whole = running.load_data(recipes["sdpt"])
    few = dataclasses.replace(whole, train=whole.train[:4], val=(), test=whole.test[:PICTURES])
    monkeypatch.setattr(running, "load_data", lambda recipe: few)
    part = compare_detectors(recipes, tmp_path)

    assert [run.method for run in part.runs] == list(RECIPES) == ["zero_shot", "linear_probe", "full", "sdpt"]
    parameters = {run.method: run.trainable_parameters for run in part.runs}
    assert parameters["zero_shot"] == 0 < parameters["sdpt"] < parameters["linear_probe"] * 2 < parameters["full"]
    for run in part.runs:
        assert describe(tmp_path / run.method).method == run.method
        assert 0 <= run.ap <= run.ap50 <= 100 and run.artifact_bytes > 0
    assert len(part.pictures) == PICTURES
    assert all(list(row) == ["truth", *RECIPES] for row in part.pictures)
    assert all(picture.size == (256, 256) for row in part.pictures for picture in row.values())

    page = write_report(tmp_path / "report.html", "demo", {}, [], detection=part).read_text()
    assert page.count("<img") == PICTURES * (1 + len(RECIPES)) and "4 training and 6 test images" in page
    rows = json.loads(write_metrics(tmp_path / "metrics.json", [], part.runs).read_text())["detection"]
    assert all(set(row) == {"AP", "AP50", "trainable_parameters", "artifact_bytes", "seconds"} for row in rows.values())


def test_a_task_that_is_unknown_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match="tiny-scenes"):
        detection_recipes("tiny-scens", seed=1, epochs=None)
