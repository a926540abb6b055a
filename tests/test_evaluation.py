"""Evaluation against a plain loop, from pixels, features and the cache; broken images; base and new classes."""

import json

import pytest
import torch

from closeness import ROUNDING
from duotune import attach
from duotune.data.base import ImageItem
from duotune.data.images import open_image
from duotune.errors import ClassNamesError, ConfigError, DataError
from duotune.evaluation import base_to_new, evaluate
from duotune.training.cache import FeatureCache
from duotune.training.features import evaluation_transform

QUIET = {"workers": 0, "progress": False}


def plain(model, items):
    """Predicted labels and their probabilities, one picture at a time."""
    transform, rows = evaluation_transform(model.backbone), []
    with torch.no_grad():
        for item in items:
            pixels = torch.from_numpy(transform(open_image(item)))[None]
            rows.append(model.eval()(pixels)["logits"][0].softmax(-1))
    probabilities = torch.stack(rows)
    return probabilities.argmax(1).tolist(), probabilities.max(1).values.tolist()


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "coop", "vpt", "vlp", "dpt"])
@pytest.mark.parametrize("cached", [False, True])
def test_evaluation_equals_a_plain_loop(tiny_clip, picture_data, tmp_path, method, cached):
    settings = {"init": "text"} if method == "linear_probe" else {}
    model = attach(tiny_clip, method, picture_data.class_names, picture_data.template, settings)
    predictions, confidences = plain(model, picture_data.test)
    right = [p == item.label for p, item in zip(predictions, picture_data.test)]
    model.train()
    cache = FeatureCache(tmp_path) if cached else None
    for _ in range(2):
        result = evaluate(model, picture_data.test, batch_size=7, cache=cache, **QUIET)
        assert list(result.predictions) == predictions
        assert result.confidences == pytest.approx(confidences, rel=1e-4)
        assert result.accuracy == pytest.approx(100 * sum(right) / len(right))
        assert model.training  # as it was
    assert result.num_images == 20 and result.seconds > 0
    assert result.per_class[2] == pytest.approx(100 * sum(right[10:15]) / 5)
    if cached and model.method.needs_frozen_features:
        assert (cache.statistics.hits, cache.statistics.misses) == (20, 20)


def test_text_features_are_computed_once(tiny_clip, picture_data, monkeypatch):
    model, calls = attach(tiny_clip, "coop", picture_data.class_names), []
    original = model.method.text.features
    monkeypatch.setattr(model.method.text, "features", lambda backbone: calls.append(1) or original(backbone))
    evaluate(model, picture_data.test, batch_size=4, **QUIET)
    assert len(calls) == 1


def test_workers_change_nothing(tiny_clip, picture_data):
    model = attach(tiny_clip, "vpt", picture_data.class_names)
    one = evaluate(model, picture_data.test, batch_size=6, **QUIET)
    two = evaluate(model, picture_data.test, batch_size=6, workers=2, progress=False)
    assert one.predictions == two.predictions
    assert one.confidences == pytest.approx(two.confidences, rel=ROUNDING)


def test_the_result_prints_and_serialises_and_plots(tiny_clip, picture_data, tmp_path):
    model = attach(tiny_clip, "zero_shot", picture_data.class_names, picture_data.template)
    result = evaluate(model, picture_data.test, **QUIET)
    assert "red square" in str(result) and "20 images in" in str(result)
    values = json.loads(result.to_json())
    assert values["accuracy"] == result.accuracy and len(values["predictions"]) == 20
    assert values["predictions"][0]["label"] == "red square"
    assert result.plot(tmp_path / "classes.png").stat().st_size > 1000


@pytest.mark.parametrize("method", ["zero_shot", "vpt"])
def test_broken_images_are_named_up_to_a_share(tiny_clip, picture_data, tmp_path, method):
    broken = tmp_path / "torn.png"
    broken.write_bytes(b"\x89PNG")
    items = (ImageItem(broken, 3), *picture_data.test)
    model = attach(tiny_clip, method, picture_data.class_names)
    result = evaluate(model, items, max_broken_share=0.1, **QUIET)
    assert list(result.broken) == [str(broken)] and result.num_images == 20
    assert result.items == picture_data.test
    with pytest.raises(DataError, match="1 of 21 images cannot be read.*torn.png"):
        evaluate(model, items, **QUIET)
    with pytest.raises(DataError, match="none of the 1 images"):
        evaluate(model, items[:1], max_broken_share=1.0, **QUIET)


def test_no_images_or_foreign_labels_are_errors(tiny_clip, picture_data):
    model = attach(tiny_clip, "zero_shot", ["cat", "dog"])
    with pytest.raises(DataError, match="no images"):
        evaluate(model, (), **QUIET)
    with pytest.raises(DataError, match="knows 2 classes, but an image has label 3"):
        evaluate(model, picture_data.test, **QUIET)


@pytest.mark.parametrize("method, settings", [("linear_probe", {}), ("coop", {"class_specific": True})])
def test_what_belongs_to_the_base_classes_says_nothing_of_new_ones(tiny_clip, picture_data, method, settings):
    base = picture_data.subset("base").class_names
    model = attach(tiny_clip, method, base, **settings)
    assert len(base) == len(picture_data.subset("new").class_names)  # as many outputs as new classes
    with pytest.raises(ClassNamesError, match="cannot classify into new ones"):
        base_to_new(model, picture_data, **QUIET)


def test_base_to_new(tiny_clip, picture_data):
    base, new = picture_data.subset("base"), picture_data.subset("new")
    model = attach(tiny_clip, "coop", base.class_names, base.template)
    result = base_to_new(model, picture_data, **QUIET)
    assert model.class_names == base.class_names
    assert result.base == evaluate(model, base.test, **QUIET).accuracy
    model.set_classes(new.class_names)
    assert result.new == evaluate(model, new.test, **QUIET).accuracy
    with pytest.raises(ConfigError, match="2 base classes"):
        base_to_new(model, picture_data, **QUIET)
