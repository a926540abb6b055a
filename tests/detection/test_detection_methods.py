"""What detectors' methods have of their own; what holds for every method is in tests/contract."""

from __future__ import annotations

import pytest
import torch
from tiny_grounding_dino import KINDS, make_model, make_tokenizer, write_folder
from transformers import BatchEncoding

from closeness import close, same_boxes
from duotune import attach, load, load_backbone
from duotune.backbones.grounding_dino import GroundingDinoBackbone
from duotune.errors import ArtifactError, ClassNamesError, ConfigError, PortError

NAMES = ["cat", "red square", "hair drier", "house boats"]
NEW_NAMES = ["tree", "red cell"]
LIMITS = {"score_threshold": 1e-6, "max_detections": 20}


@pytest.fixture(scope="module", params=["glip", *KINDS])
def detector(request, shared_backbone, tmp_path_factory):
    """A backbone of each kind; tests must not change it."""
    if request.param == "glip":
        return shared_backbone
    folder = write_folder(tmp_path_factory.mktemp("backbones") / request.param, request.param)
    return load_backbone(str(folder), device="cpu")


def test_losses_are_the_sum_of_their_parts(detector, pixels, labels):
    out = attach(detector, "zero_shot", NAMES)(pixels, labels=labels)
    assert len(out["losses"]) > 1 and torch.equal(out["loss"], sum(out["losses"].values())) and out["loss"] > 0
    with pytest.raises(ConfigError, match="needs labels"):
        model = attach(detector, "zero_shot", NAMES)
        model.method.loss(model(pixels)["output"], labels, None)


@pytest.mark.parametrize("method", ["linear_probe", "vpt", "sdpt"])
def test_boxes_survive_saving(detector, pictures, tmp_path, method):
    model = attach(detector, method, NAMES)
    with torch.no_grad():
        for p in model.method.parameters():
            p.add_(0.05 * torch.randn_like(p)) if p.requires_grad else None
    folder = model.save(tmp_path / "artifact")
    assert (folder / "prompt.safetensors").stat().st_size < 4 * model.num_trainable_parameters() + 5_000
    found = load(folder, detector).detect(pictures, **LIMITS)
    for row, expected in zip(found, model.eval().detect(pictures, **LIMITS)):
        assert len(row["boxes"]) > 0 and row["names"] == [NAMES[i] for i in row["labels"].tolist()]
        assert same_boxes(row, expected)


def test_templates_of_each_class_go_with_their_classes(detector):
    model = attach(detector, "sdpt", ["cat", "red house"], template=["{} in snow", "a {}"])
    before = model.method.caption.text
    assert "cat in snow" in before and "a red house" in before
    model.set_classes(["red house", "cat"])
    assert model.method.template == ("a {}", "{} in snow") and "cat in snow" in model.method.caption.text
    with pytest.raises(ClassNamesError, match="template of its own.*'cat' is missing; 'dog' is unknown"):
        model.set_classes(["red house", "dog"])
    assert model.class_names == ("red house", "cat")
    model.set_classes(["red house", "dog"], template="{}")
    assert model.set_classes(["tree"]).method.template == "{}"


def test_a_template_says_how_each_class_reads(detector):
    model = attach(detector, "sdpt", NAMES).set_classes(NEW_NAMES, "a {} in a smear")
    assert model.method.caption.text.rstrip(".") == "a tree in a smear. a red cell in a smear"


def test_a_text_prompt_is_bound_to_its_caption(detector, pixels):
    model = attach(detector, "text_prompt", NAMES)
    assert model.method.shift.shape == (detector.caption(NAMES).length, 32)
    with pytest.raises(ClassNamesError, match="reads 'cat. red"):
        model(pixels, captions=[detector.caption(NEW_NAMES)] * 2)


def test_captions_of_their_own(detector, pixels):
    """A batch whose images have different captions, as in grounding data."""
    model = attach(detector, "sdpt", NAMES).eval()
    captions = [detector.caption(NEW_NAMES), detector.caption(["dog"])]
    labels = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "positive_map": caption.positive_map([0])} for caption in captions
    ]
    out = model(pixels, captions, labels)
    alone = model(pixels[1:], captions[1:], labels[1:])
    length, allowed = captions[1].length, 1e-4 if isinstance(detector, GroundingDinoBackbone) else 1e-5
    assert length < captions[0].length
    torch.testing.assert_close(out["logits"][1:, :, :length], alone["logits"], rtol=allowed, atol=allowed)
    assert out["loss"].requires_grad


@pytest.mark.parametrize("kind, biases", zip(KINDS, (0, 1)))  # MM: one, shared by the decoder's layers
def test_linear_probing_of_grounding_dino_trains_the_head(kind, biases):
    model = attach(GroundingDinoBackbone("tiny", make_model(kind), make_tokenizer()), "linear_probe", NAMES)
    width = 32
    assert model.num_trainable_parameters() == width * width + width + width * 4 + 4 + biases


def test_labels_are_scaled_to_original_pixels(shared_backbone, pixels, labels):
    model = attach(shared_backbone, "zero_shot", NAMES)
    sizes, originals = torch.tensor([[64, 96]] * 2), torch.tensor([[32, 96]] * 2)
    scaled = model(pixels, labels=labels, image_sizes=sizes, original_sizes=originals)["loss"]
    by_hand = [{**label, "scale": torch.tensor([1.0, 2.0])} for label in labels]
    assert close(scaled, model(pixels, labels=by_hand)["loss"])
    assert not close(scaled, model(pixels, labels=labels)["loss"])


def test_an_artifact_of_another_width(glip_folder, shared_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = attach(shared_backbone, "sdpt", NAMES).save(tmp_path / "artifact")
    path = folder / "prompt.safetensors"
    save_file({k: v[..., :48].contiguous() for k, v in load_file(path).items()}, path)
    with pytest.raises(ArtifactError, match="not the file that prompt.json describes"):
        load(folder, shared_backbone)


class MetaTokenizer:
    is_fast, unk_token_id = True, -1

    def __call__(self, texts, **_):
        return BatchEncoding({"input_ids": [[i] for i in range(len(texts))]})


@pytest.mark.parametrize(
    "size, model_size, tokens", [("glip_t", 231_780_222, 122_880), ("glip_l", 430_422_384, 163_840)]
)
def test_sdpt_trains_the_papers_count(monkeypatch, size, model_size, tokens):
    from duotune.backbones.glip import GlipBackbone
    from duotune.grounding import Caption
    from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor

    config = getattr(GlipConfig, size)()
    monkeypatch.setattr(GlipBackbone, "caption", lambda *a: Caption("cat", ("cat",), ((1,),), 3))
    with torch.device("meta"):
        backbone = GlipBackbone(
            size, GlipForObjectDetection(config), GlipProcessor.from_config(config, MetaTokenizer())
        )
        model = attach(backbone, "sdpt", ["cat"]).train()
    assert sum(p.numel() for p in backbone.parameters()) == model_size
    assert model.num_trainable_parameters() == tokens
    assert not any(m.training for m in backbone.modules()) and model.method.training
    counts = {"zero_shot": 0, "text_prompt": 3 * 768, "linear_probe": 198_919, "full": model_size - 20_560}
    for method, expected in counts.items():
        with torch.device("meta"):
            assert attach(backbone, method, ["cat"]).num_trainable_parameters() == expected


def test_inputs_that_do_not_fit(shared_backbone, pixels, labels):
    model = attach(shared_backbone, "sdpt", NAMES)
    with pytest.raises(ConfigError, match="pixel_values or feature_maps"):
        model()
    with pytest.raises(ConfigError, match="2 images need as many labels, got 1"):
        model(pixels, labels=labels[:1])
    with pytest.raises(ConfigError, match="2 images need as many captions, got 3"):
        model(pixels, captions=[model.method.caption] * 3)
    with pytest.raises(ConfigError, match="layers .3. do not exist: the fusion layers of .* are 0 to 2"):
        attach(shared_backbone, "sdpt", NAMES, layers=[0, 3])
    with pytest.raises(ClassNamesError, match="2 templates for 4 classes"):
        attach(shared_backbone, "sdpt", NAMES, ["a {}", "{}"])
    with pytest.raises(ClassNamesError, match="takes .* tokens, the model reads 32"):
        attach(shared_backbone, "text_prompt", [f"{a} {b} hair drier" for a in NAMES for b in ("red", "in")])
    with pytest.raises(PortError, match="use detect"):
        model.classify([])


def test_layers_without_tokens_are_not_asked_for_any(shared_backbone, pixels):
    model = attach(shared_backbone, "sdpt", NAMES, layers=[1], num_prototype_tokens=2)
    assert model.num_trainable_parameters() == 2 * 64
    visual, text = torch.zeros(1, 4, 32), torch.zeros(1, 3, 32)
    assert model.method.tokens(0, visual, text) is None and model.method.tokens(2, visual, text) is None
    tokens = model.method.tokens(1, visual, text)
    assert tokens.visual.shape == (2, 32) and tokens.text.shape == (2, 32)


def test_half_precision_backbones_train(backbone, pixels, labels):
    backbone.to(torch.bfloat16)
    for method in ("sdpt", "vpt", "text_prompt", "linear_probe"):
        model = attach(backbone, method, NAMES).train()
        model(pixels, labels=labels)["loss"].backward()
        for p in model.parameters():
            if p.requires_grad:
                assert p.dtype == torch.float32 and p.grad.isfinite().all()
