"""What a box means at every border: annotation, resized picture, GLIP's targets, found boxes, AP, drawing.

GLIP counts corner pixels (width = x2 - x1 + 1), its resizing multiplies inclusive corners by the ratio of each axis,
and its found boxes go back through the inverse ratio and become COCO's width by + 1. Data here is continuous.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from coco_folder import write_folder
from PIL import Image

from closeness import same_boxes
from duotune import Predictor, attach
from duotune.backbones.glip import glip_labels
from duotune.data.detection import load_detection
from duotune.data.detection.captions import OneCaption
from duotune.data.detection.torch_dataset import DetectionDataset
from duotune.data.detection.transforms import DetectionTransform, no_augmentation
from duotune.detection_evaluation import evaluate_detector
from duotune.drawing import draw_boxes
from duotune.errors import ConfigError, DataError, PortError
from duotune.grounding import resized_size
from duotune.models.glip import GlipDetectionOutput
from duotune.models.glip.boxes import boxes_to_xywh, encode_boxes, pairwise_iou
from duotune.training.detection_features import DetectionCollator


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("coco") / "things", sizes=((61, 83), (90, 60), (64, 64)))


@pytest.fixture(scope="module")
def data(folder):
    return load_detection(folder)


@pytest.fixture
def model(backbone, data):
    return attach(backbone, "zero_shot", data.class_names)


def official_targets(item, height: int, width: int) -> np.ndarray:
    """COCO's [x, y, w, h] as GLIP's loader makes inclusive corners of it, then scaled to the resized picture."""
    x, y, x2, y2 = item.boxes.astype(np.float64).T
    w, h = x2 - x, y2 - y
    inclusive = np.stack([x, y, x + w - 1, y + h - 1], 1)
    ratio = np.array([width / item.width, height / item.height] * 2)
    return inclusive * ratio


@pytest.mark.parametrize("short", [32, 64, 100])
def test_training_boxes_are_those_of_the_official_loader(model, data, short):
    images = DetectionDataset(
        data.train, no_augmentation(short, 200), model.backbone.normalize, OneCaption(model.method.caption)
    )
    batch, seen = DetectionCollator(model.backbone.pad)([images[i] for i in range(len(images))]), 0
    scales = (batch["image_sizes"] / batch["original_sizes"]).flip(1)
    for item, label, scale, size in zip(data.train, batch["labels"], scales, batch["image_sizes"].tolist()):
        assert size == list(resized_size(item.height, item.width, short, 200))
        targets = glip_labels({**label, "scale": scale})["boxes"]
        np.testing.assert_allclose(targets, official_targets(item, *size), atol=1e-3)
        seen += len(targets)
    assert seen > 5


def test_a_flip_mirrors_boxes_and_keeps_their_size(data):
    item = data.train[0]
    image = Image.new("RGB", (item.width, item.height))
    plain, flipped = (DetectionTransform((item.height,), 999, p)(image, item.boxes, 0)[1] for p in (0.0, 1.0))
    np.testing.assert_allclose(flipped[:, 0] + plain[:, 2], item.width, atol=1e-4)
    np.testing.assert_allclose(flipped[:, 2:] - flipped[:, :2], plain[:, 2:] - plain[:, :2], atol=1e-4)
    pixels = np.zeros((item.height, item.width), dtype=np.uint8)
    x1, y1, x2, y2 = item.boxes[0].astype(int)
    pixels[y1:y2, x1:x2] = 255
    turned, boxes = DetectionTransform((item.height,), 999, 1.0)(Image.fromarray(pixels), item.boxes[:1], 0)
    x1, y1, x2, y2 = boxes[0].astype(int)
    expected = np.zeros_like(pixels)
    expected[y1:y2, x1:x2] = 255
    assert np.array_equal(np.asarray(turned), expected)


class Knowing:
    """Answers with boxes that are known: the nearest anchor of each is sure of its class, and decodes to it exactly."""

    def __init__(self, model, items):
        self.backbone, self.caption = model.backbone, model.method.caption
        self.items, self.asked = items, 0

    def forward(self, backbone, batch):
        from duotune.backbones.base import DetectorOutput

        with torch.no_grad():
            maps = backbone.encode_image(batch.pixel_values)
            out = backbone.read(*backbone.fuse(maps, backbone.encode_captions([self.caption] * len(batch))))
        anchors, raw = torch.cat(out.raw.anchors), out.raw
        logits = torch.full_like(raw.logits, -9.0)
        deltas, centerness = torch.zeros_like(raw.box_deltas), torch.full_like(raw.centerness, 9.0)
        for row in range(len(batch)):
            item = self.items[self.asked]
            self.asked += 1
            height, width = resized_size(item.height, item.width, backbone.short_side, backbone.long_side)
            targets = torch.tensor(official_targets(item, height, width), dtype=torch.float32)
            taken = pairwise_iou(anchors, targets)
            for k, (box, label) in enumerate(zip(targets, item.labels.tolist())):
                best = int(taken[:, k].argmax())
                taken[best] = -1
                logits[row, best, list(self.caption.tokens[label])] = 9.0
                deltas[row, best] = encode_boxes(box[None], anchors[best][None])[0]
        raw = GlipDetectionOutput(
            logits=logits, box_deltas=deltas, centerness=centerness, anchors=raw.anchors, text_mask=raw.text_mask
        )
        return DetectorOutput(logits, out.text_mask, raw)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_who_knows_the_boxes_has_an_ap_of_100(model, data, monkeypatch, batch_size):
    """Through resizing, anchors, decoding, scaling back and counting: no border moves a box."""
    knowing = Knowing(model, data.test)
    monkeypatch.setattr(model.method, "forward", knowing.forward)
    result = evaluate_detector(model, data, batch_size=batch_size, workers=0, progress=False, nms_threshold=1.0)
    assert result.ap == pytest.approx(100) and knowing.asked == len(data.test)
    for item, found in zip(data.test, result.predictions):
        order = lambda boxes: np.asarray(sorted(np.asarray(boxes, dtype=np.float64).round(2).tolist()))
        np.testing.assert_allclose(order(found.boxes), order(item.boxes), atol=0.02)


def test_inclusive_corners_back_to_cocos_width():
    found = torch.tensor([[3.0, 4, 12, 8]])
    assert boxes_to_xywh(found).tolist() == [[3, 4, 10, 5]]
    ours = found + torch.tensor([0.0, 0, 1, 1])
    assert (ours[:, 2:] - ours[:, :2]).tolist() == [[10, 5]]


def test_drawn_boxes_touch_the_pixels_they_hold():
    image = draw_boxes(Image.new("RGB", (40, 30), "white"), [(5.0, 6.0, 15.0, 16.0)], labels=[1])
    changed = (np.asarray(image) != 255).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 15, 5, 14)
    assert draw_boxes(image, []).tobytes() == image.tobytes() and draw_boxes(image, []) is not image
    texts = draw_boxes(Image.new("RGB", (40, 30), "white"), [(0.0, 0, 40, 30), (39.0, 29, 40, 30)], ["cat", "a dog"])
    assert texts.size == (40, 30)


# ------------------------------------------------------------------ evaluation and prediction from Python


def test_evaluation_says_what_does_not_fit(model, data, tiny_clip, tmp_path):
    from dataclasses import replace

    quiet = {"workers": 0, "progress": False}
    with pytest.raises(ConfigError, match="the model finds 1 classes, things has other 2"):
        evaluate_detector(attach(model.backbone, "zero_shot", ["cat"]), data, **quiet)
    with pytest.raises(DataError, match="things has no test pictures; choose .*--split.*: it has 6 train, 3 val"):
        evaluate_detector(model, replace(data, test=()), **quiet)
    with pytest.raises(ConfigError, match="split must be train, val or test, not 'valid'"):
        evaluate_detector(model, data, "valid", **quiet)
    with pytest.raises(ConfigError, match="measures detectors"):
        evaluate_detector(attach(tiny_clip, "zero_shot", ["cat"]), data, **quiet)
    with pytest.raises(ConfigError, match="has phrases"):
        evaluate_detector(model, replace(data, class_names=()), **quiet)
    with pytest.raises(ConfigError, match="unknown limits"):
        evaluate_detector(model, data, threshold=0.5, **quiet)


def test_lvis_keeps_more_boxes_and_counts_by_its_rules(model, data):
    from dataclasses import replace

    lvis = replace(data, frequencies=("r", "f"), test=tuple(replace(i, neg_labels=(0, 1)) for i in data.test))
    result = evaluate_detector(model, lvis, workers=0, progress=False, score_threshold=0.0, nms_threshold=1.0)
    plain = evaluate_detector(model, data, workers=0, progress=False, score_threshold=0.0, nms_threshold=1.0)
    assert max(len(p.scores) for p in plain.predictions) >= 100
    assert max(len(p.scores) for p in result.predictions) > max(len(p.scores) for p in plain.predictions)
    assert result.metrics.ap_rare is not None and plain.metrics.ap_rare is None


def test_an_interrupted_evaluation_goes_on(model, data, tmp_path, monkeypatch):
    import duotune.detection_evaluation as evaluation

    original, calls = evaluation.find_boxes, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    quiet = {"workers": 0, "progress": False, "score_threshold": 0.01}
    monkeypatch.setattr(evaluation, "find_boxes", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate_detector(model, data, out=tmp_path, **quiet)
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.setattr(evaluation, "find_boxes", original)
    rest, whole = evaluate_detector(model, data, out=tmp_path, **quiet), evaluate_detector(model, data, **quiet)
    assert (rest.resumed, whole.resumed) == (2, 0) and rest.ap == pytest.approx(whole.ap)
    for a, b in zip(rest.predictions, whole.predictions):
        assert same_boxes(vars(a), vars(b))
    assert "2 of them found before" in str(rest) and rest.to_json()


def test_another_picture_under_the_same_name_is_looked_at_anew(model, folder, tmp_path):
    import shutil

    changed = shutil.copytree(folder, tmp_path / "changed" / folder.name)
    before, quiet = load_detection(folder), {"workers": 0, "progress": False, "score_threshold": 0.01}
    evaluate_detector(model, before, out=tmp_path / "out", **quiet)
    picture = before.test[0].path
    with Image.open(picture) as image:
        Image.new("RGB", image.size).save(changed / picture.relative_to(folder))
    after = load_detection(changed)
    found = evaluate_detector(model, after, out=tmp_path / "out", **quiet)
    plain = evaluate_detector(model, after, **quiet)
    assert found.resumed == len(before.test) - 1 and found.ap == pytest.approx(plain.ap)
    assert same_boxes(vars(found.predictions[0]), vars(plain.predictions[0]))


def test_broken_pictures_are_left_out_by_name(model, folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "test" / "1.png").write_bytes(b"no picture")
    data = load_detection(copy)
    with pytest.raises(DataError, match="1 of 4 images cannot be read"):
        evaluate_detector(model, data, workers=0, progress=False)
    result = evaluate_detector(model, data, workers=0, progress=False, max_broken_share=0.5)
    assert len(result.items) == len(result.predictions) == 3 and list(result.broken) == [str(copy / "test" / "1.png")]
    assert "1 images could not be read" in str(result)


def test_predictor_finds_what_detect_finds(model, tiny_clip, data):
    predictor = Predictor(model)
    paths = [item.path for item in data.test]
    found = predictor.detect(paths, score_threshold=0.2, batch_size=2)
    plain = model.detect([Image.open(p).convert("RGB") for p in paths], batch_size=2)
    assert sum(len(row.boxes) for row in found) > 0
    for row, expected, path in zip(found, plain, paths):
        keep = expected["scores"] >= 0.2
        assert row.source == str(path) and row.labels == tuple(expected["labels"][keep].tolist())
        assert row.boxes == tuple(map(tuple, expected["boxes"][keep].tolist()))
        assert row.names == tuple(data.class_names[k] for k in row.labels)
    array = np.asarray(Image.open(paths[0]).convert("RGB"))
    assert predictor.detect(array)[0].source == "image 0"
    assert "nothing found" in str(predictor.detect(array, score_threshold=1.0)[0])
    with pytest.raises(PortError, match="use detect"):
        predictor.classify(array)
    with pytest.raises(PortError, match="use classify"):
        Predictor(attach(tiny_clip, "zero_shot", ["cat"])).detect(array)
    with pytest.raises(ConfigError, match="score_threshold must be a number in 0..1"):
        predictor.detect(array, score_threshold=-1)
    with pytest.raises(DataError, match="belong to a picture of"):
        found[0].draw(Image.new("RGB", (3, 3)))


def test_classes_in_another_order_are_the_same_task(data):
    turned = data.select([1, 0])
    assert turned.class_names == ("dog", "cat") and turned.category_ids == (2, 1)
    for a, b in zip(data.test, turned.test):
        assert [data.class_names[k] for k in a.labels] == [turned.class_names[k] for k in b.labels]
    assert turned.select([1, 0]).class_names == data.class_names
    with pytest.raises(DataError, match="each of 2 labels once"):
        data.select([0])
