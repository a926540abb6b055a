"""Prediction on every kind of input, and what happens to broken ones."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from closeness import ROUNDING
from duotune import attach
from duotune.errors import ArtifactError, ConfigError, DataError
from duotune.model import PromptedDetector
from duotune.predictor import Predictor
from duotune.training.features import evaluation_transform


@pytest.fixture(scope="module")
def model(tiny_clip, picture_data):
    return attach(tiny_clip, "dpt", picture_data.class_names, picture_data.template).eval()


@pytest.fixture
def path(picture_data):
    return picture_data.test[0].path


def test_all_kinds_of_input_agree(model, path):
    image = Image.open(path)
    inputs = [image, np.asarray(image), path, str(path), [path], [image]]
    answers = [Predictor(model).classify(x)[0] for x in inputs]
    assert len({(a.names, a.probabilities) for a in answers}) == 1
    assert [a.source for a in answers] == ["image 0", "image 0", str(path), str(path), str(path), "image 0"]
    pixels = torch.from_numpy(evaluation_transform(model.backbone)(image))[None]
    with torch.no_grad():
        expected = model(pixels)["logits"][0].softmax(-1).sort(descending=True)
    assert answers[0].names == tuple(model.class_names[i] for i in expected.indices)
    assert answers[0].probabilities == pytest.approx(expected.values.tolist(), rel=1e-5)
    assert sum(answers[0].probabilities) == pytest.approx(1, rel=1e-5)


def test_top_k_and_batches(model, picture_data):
    paths = [item.path for item in picture_data.test[:5]]
    whole = model.classify(paths, top_k=2)
    pieces = Predictor(model).classify(paths, top_k=2, batch_size=2)
    assert [p.names for p in whole] == [p.names for p in pieces] and len(whole[0].names) == 2
    for a, b in zip(whole, pieces):
        assert a.probabilities == pytest.approx(b.probabilities, rel=1e-4)
    assert len(model.classify(paths[0], top_k=99)[0].names) == 4


def test_an_artifact_folder_is_a_model(model, path, tmp_path):
    model.save(tmp_path)
    assert Predictor(tmp_path, device="cpu").classify(path) == Predictor(model).classify(path)
    with pytest.raises(ArtifactError):
        Predictor(tmp_path / "absent")


def test_a_folder_with_a_broken_picture(model, path, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.png").write_bytes(path.read_bytes())
    (tmp_path / "b" / "torn.png").write_bytes(path.read_bytes()[:100])
    (tmp_path / "b" / "z.png").write_bytes(path.read_bytes())
    (tmp_path / "notes.txt").write_text("no picture")
    answers = model.classify(tmp_path)
    assert [a.source for a in answers] == [str(tmp_path / x) for x in ("a.png", "b/torn.png", "b/z.png")]
    assert [a.error is None for a in answers] == [True, False, True]
    assert answers[1].names == () and "torn.png" in answers[1].error
    assert answers[0].probabilities == pytest.approx(answers[2].probabilities, rel=ROUNDING)
    assert "torn.png" in str(answers[1]) and "%" in str(answers[0])
    assert json.loads(answers[0].to_json())["names"] == list(answers[0].names)


def test_named_pictures_that_cannot_be_read_are_errors(model, path, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(path.read_bytes()[:100])
    for bad, match in [
        (torn, "torn.png"),
        (tmp_path / "absent.png", "no such file"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\); expected \(H, W, 3\) uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32 array"),
        (3, "cannot classify a int"),
        ([3], "image 0 is a int"),
    ]:
        with pytest.raises(DataError, match=match) as caught:
            model.classify(bad)
        assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no picture"):
        model.classify(tmp_path / "empty")
    with pytest.raises(
        ConfigError, match="top_k must be at least 1, not 0; batch_size must be a whole number, not 2.5"
    ):
        model.classify(path, top_k=0, batch_size=2.5)
    with pytest.raises(ConfigError, match="top_k must be a whole number, not 1.5"):
        model.classify(path, top_k=1.5)


@pytest.mark.parametrize("images", [None, ["photo.jpg"], np.zeros((4, 4, 3), np.uint8)])
def test_a_detector_itself_takes_pictures_alone(model, images):
    with pytest.raises(DataError, match="expected a list of PIL images"):
        PromptedDetector.detect(model, images)


def test_grey_and_transparent_pictures(model):
    for mode in ("L", "RGBA", "P", "1"):
        assert len(model.classify(Image.new(mode, (20, 30)))[0].names) == 4


def test_picture_objects_that_cannot_be_read(model, path, tmp_path):
    with pytest.raises(DataError, match="image 0 has 0 x 5 pixels"):
        model.classify(Image.new("RGB", (0, 5)))
    (tmp_path / "half.png").write_bytes(path.read_bytes()[:-60])
    with Image.open(tmp_path / "half.png") as half, pytest.raises(DataError, match="cannot read image 1"):
        model.classify([path, half])
