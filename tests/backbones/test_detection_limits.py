"""What `Detector.detections` may be told, for every detector alike."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from duotune import attach, load_backbone
from duotune.backbones.grounding_dino import GroundingDinoBackbone
from duotune.errors import ClassNamesError, ConfigError, DataError
from duotune.grounding import Caption
from duotune.models.grounding_dino import Pictures

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from tiny_glip import save_tiny_glip  # noqa: E402
from tiny_grounding_dino import make_model, make_tokenizer  # noqa: E402


@pytest.fixture(scope="module", params=["glip", "grounding_dino"])
def backbone(request, tmp_path_factory):
    if request.param == "glip":
        return load_backbone(str(save_tiny_glip(tmp_path_factory.mktemp("backbones") / "glip")), device="cpu")
    pictures = Pictures(short_side=80, long_side=112)
    return GroundingDinoBackbone("tiny", make_model(request.param), make_tokenizer(), pictures)


def test_limits_and_sizes_that_do_not_fit_are_told_at_once(backbone):
    model = attach(backbone, "zero_shot", ["cat", "dog"])
    picture = Image.new("RGB", (90, 70))
    with pytest.raises(ConfigError) as caught:
        model.detect([picture], threshold=1, score_threshold=2.0, nms_threshold=float("nan"), max_detections=0)
    for part in ("unknown limits ['threshold']", "score_threshold must be in 0..1, not 2.0", "nms_threshold", "not 0"):
        assert part in str(caught.value)
    pixels, sizes = backbone.prepare([picture])
    with torch.no_grad():
        output = model(pixels, image_sizes=sizes)["output"]
    caption = model.method.caption
    with pytest.raises(DataError, match="1 images need as many captions and sizes, got 2 and 1"):
        backbone.detections(output, [caption] * 2, sizes)
    with pytest.raises(ClassNamesError, match="'.' has no token of any class"):
        backbone.detections(output, [Caption(".", ("",), ((),), 3)], sizes)
    assert len(backbone.detections(output, [caption], sizes, score_threshold=0.0, max_detections=3)[0]["scores"]) <= 3


def test_a_name_that_the_tokenizer_cannot_read_is_told(backbone, caplog):
    with caplog.at_level(logging.WARNING, "duotune"):
        attach(backbone, "zero_shot", ["cat", "dog"])
        assert not caplog.records
        attach(backbone, "zero_shot", ["cat", "\N{GRINNING FACE}"])
    assert "has no word for any part of '\N{GRINNING FACE}'" in caplog.text
