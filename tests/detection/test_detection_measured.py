"""What a detector's measured numbers depend on: LVIS's number of boxes, and padding in batches."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from coco_folder import write_folder

from duotune import DetectionTrainingArguments, PromptTrainer, attach, evaluate_detector, load_detection
from duotune.training import detection


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_detection(write_folder(tmp_path_factory.mktemp("coco") / "things"))


def trainer(shared_backbone, data, tmp_path, **more):
    model = attach(copy.deepcopy(shared_backbone), "sdpt", data.class_names)
    args = {"metric_for_best": "ap", "score_threshold": 0.0, "dataloader_num_workers": 0, "disable_tqdm": True}
    arguments = DetectionTrainingArguments(output_dir=str(tmp_path), num_train_epochs=1, report_to=[], **args, **more)
    return PromptTrainer(model, arguments, data)


def test_lvis_is_validated_as_it_is_tested(shared_backbone, data, tmp_path, monkeypatch):
    """300 boxes of a picture count, however few the backbone keeps by itself."""
    lvis = dataclasses.replace(data, frequencies=("f", "r"))
    seen = []
    original = detection.find_boxes
    monkeypatch.setattr(detection, "find_boxes", lambda *a, **limits: seen.append(limits) or original(*a, **limits))
    for part, most in ((lvis, {"max_detections": 300}), (data, {})):
        training = trainer(shared_backbone, part, tmp_path)
        training.model.backbone.max_detections = training.model.backbone.processor.max_detections = 3
        seen.clear()
        validated = training.evaluate()["eval_ap"]
        assert seen and all(limits == {"score_threshold": 0.0, **most} for limits in seen)
        tested = evaluate_detector(training.model, part, "val", workers=0, progress=False, score_threshold=0.0)
        # one batch is one picture in both, so the same numbers are computed
        assert validated == pytest.approx(tested.ap, abs=1e-6)
        counts = [len(found.boxes) for found in tested.predictions]
        assert max(counts) > 3 if most else max(counts) <= 3


def test_padding_is_told_where_the_number_is(shared_backbone, data, tmp_path):
    model = attach(copy.deepcopy(shared_backbone), "zero_shot", data.class_names)
    how = {"workers": 0, "progress": False}
    alone, together = (evaluate_detector(model, data, batch_size=size, **how) for size in (1, 4))
    assert alone.note == "" and "pad" not in str(alone)
    assert together.note.startswith("batches of 4 hold pictures of several sizes") and together.note in str(together)
    assert "a batch size of 1 measures without it" in together.note
    remarks = trainer(shared_backbone, data, tmp_path / "a", per_device_eval_batch_size=2).remarks()
    assert any("--training per_device_eval_batch_size=1 measures without it" in remark for remark in remarks)
    assert not any("padded" in remark for remark in trainer(shared_backbone, data, tmp_path / "b").remarks())
    assert DetectionTrainingArguments(output_dir=str(tmp_path)).per_device_eval_batch_size == 1


def test_pictures_of_one_size_are_not_told(shared_backbone, tmp_path):
    transform = detection.detection_test_transform(shared_backbone)
    items = load_detection(write_folder(tmp_path / "same", sizes=((64, 64),))).test
    assert detection.padding_note(items, 4, transform, "x") == ""
    mixed = load_detection(write_folder(tmp_path / "mixed")).test
    assert detection.padding_note(mixed, 4, transform, "x") and detection.padding_note(mixed, 1, transform, "x") == ""
    turns = [*mixed[:1], *mixed[:1], *mixed[1:2], *mixed[1:2]]  # batches of one size each
    assert detection.padding_note(turns, 2, transform, "x") == ""
