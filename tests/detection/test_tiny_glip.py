"""The embedded detector: what it is, and that it finds what it was taught."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path

import pytest
import torch

import duotune
from duotune.data.detection import load_detection
from duotune.detection_evaluation import evaluate_detector

FOLDER = resources.files("duotune") / "assets" / "tiny-glip"


@pytest.fixture(scope="module")
def backbone():
    return duotune.load_backbone("tiny-glip", device="cpu")


@pytest.fixture(scope="module")
def scenes():
    data = load_detection("tiny-scenes")
    return dataclasses.replace(data, test=data.test[:40])


def test_it_is_small_and_whole(backbone):
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size <= 15e6 and (FOLDER / "README.md").is_file()
    assert next(backbone.model.parameters()).dtype == torch.float32  # stored in half precision
    assert duotune.load_backbone("tiny-glip", dtype="float16", device="cpu").model.dtype == torch.float16
    assert type(backbone.processor.tokenizer).__name__ == "BertTokenizer"
    assert all(parameter.isfinite().all() for parameter in backbone.model.parameters())


def test_every_embedded_task_fits_one_caption(backbone):
    for name in duotune.data.detection.EMBEDDED_DETECTION_TASKS:
        caption = backbone.caption(load_detection(name).class_names)
        unknown = backbone.processor.tokenizer.unk_token
        assert unknown not in backbone.processor.tokenizer.tokenize(caption.text)
        assert all(caption.tokens) and caption.length <= backbone.max_text_tokens


def test_it_finds_known_things_in_drawings_it_never_saw(backbone, scenes):
    """Far above what shuffled names give: it reads the caption."""
    model = duotune.attach(backbone, "zero_shot", scenes.class_names)
    found = evaluate_detector(model, scenes, batch_size=20, workers=0, progress=False)
    turned = scenes.select([*range(7, len(scenes.class_names)), *range(7)])
    wrong = dataclasses.replace(turned, class_names=scenes.class_names)
    other = evaluate_detector(model, wrong, batch_size=20, workers=0, progress=False)
    assert found.ap50 > 8.0 and other.ap50 < found.ap50 / 3


def test_the_measured_rows_are_of_these_weights(backbone):
    """Zero-shot AP of the documentation's rows, found again: other weights want all rows measured anew."""
    path = Path(__file__).parents[2] / "docs" / "data" / "embedded_detection.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (row,) = [row for row in rows if row["task"] == "tiny-scenes"]
    data = load_detection("tiny-scenes")
    model = duotune.attach(backbone, "zero_shot", data.class_names)
    found = evaluate_detector(model, data, batch_size=25, workers=0, progress=False)
    assert found.ap == pytest.approx(row["ap"], abs=0.2)
