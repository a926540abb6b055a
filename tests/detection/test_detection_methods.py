"""What holds for every method on a detector."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import nn
from transformers import BatchEncoding

from duotune import attach, list_methods, load
from duotune.errors import ArtifactError, ClassNamesError, ConfigError, PortError, UnknownNameError
from duotune.methods import DETECTION_METHODS, METHODS
from duotune.model import PromptedDetector

NAMES = ["cat", "red square", "hair drier", "house boats"]
NEW_NAMES = ["tree", "red cell"]
ALL = list(DETECTION_METHODS)
LEARNING = [name for name in ALL if name != "zero_shot"]
CACHING = ["zero_shot", "linear_probe", "text_prompt", "sdpt"]
LIMITS = {"score_threshold": 0.01, "max_detections": 20}


def digest(model) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def test_the_table():
    assert set(ALL) == {"zero_shot", "linear_probe", "full", "text_prompt", "vpt", "sdpt"}
    assert {m for m in ALL if not DETECTION_METHODS.get(m).needs_pixels} == set(CACHING)
    assert set(list_methods()) == {*ALL, *METHODS}


@pytest.mark.parametrize("method", LEARNING)
def test_training_changes_what_the_method_owns_and_no_backbone_byte(backbone, pixels, labels, method):
    before = digest(backbone.model)
    model = attach(backbone, method, NAMES).train()
    assert isinstance(model, PromptedDetector)
    trained = [p for group in model.method.param_groups() for p in group.params]
    assert len({id(p) for p in trained}) == len(trained) > 0
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    assert model.num_trainable_parameters() == sum(p.numel() for p in trained)
    start = [p.detach().clone() for p in trained]
    optimiser = torch.optim.AdamW(trained, lr={"full": 1e-3}.get(method, 1e-2))
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        out = model(pixels, labels=labels)
        assert torch.equal(out["loss"], sum(out["losses"].values()))
        out["loss"].backward()
        optimiser.step()
        losses.append(out["loss"].item())
    assert min(losses[1:]) < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(start, trained))
    assert digest(backbone.model) == before
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules()), "dropout of frozen parts is alive"


def test_zero_shot_learns_nothing(shared_backbone, pixels, labels):
    model = attach(shared_backbone, "zero_shot", NAMES)
    assert model.num_trainable_parameters() == 0 and model.method.param_groups() == []
    assert model(pixels, labels=labels)["loss"] > 0


@pytest.mark.parametrize("method", ALL)
def test_detach_returns_the_same_model_with_the_same_bits(backbone, pixels, labels, method):
    original, ids = backbone.model, torch.tensor([[2, 7, 5, 8, 3]] * 2)
    with torch.no_grad():
        before = original(pixels, ids)
    model = attach(backbone, method, NAMES).train()
    loss = model(pixels, labels=labels)["loss"]
    if loss.requires_grad:
        loss.backward()
        with torch.no_grad():
            for p in model.method.parameters():
                p.add_(0.1)
    detached = model.detach()
    assert detached is original
    with torch.no_grad():
        after = detached(pixels, ids)
    for name in ("logits", "box_deltas", "centerness"):
        assert torch.equal(before[name], after[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detached.modules())


@pytest.mark.parametrize("method", ALL)
def test_before_training_it_is_the_zero_shot_detector_or_close(shared_backbone, pixels, method):
    """Exactly, where tokens start at nothing; tokens that are there change something."""
    with torch.no_grad():
        plain = attach(shared_backbone, "zero_shot", NAMES).eval()(pixels)["logits"]
        other = attach(shared_backbone, method, NAMES).eval()(pixels)["logits"]
    if method in ("vpt", "sdpt"):
        assert (plain - other).abs().max() > 1e-4
    else:
        torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", CACHING)
def test_cached_feature_maps_change_nothing(shared_backbone, pixels, labels, monkeypatch, method):
    model = attach(shared_backbone, method, NAMES).train()
    with torch.no_grad():
        maps = shared_backbone.encode_image(pixels)
    fresh = model(pixels, labels=labels)
    monkeypatch.setattr(type(shared_backbone), "encode_image", lambda *a: pytest.fail("the image tower ran"))
    cached = model(feature_maps=maps, labels=labels)
    assert torch.equal(fresh["logits"], cached["logits"]) and torch.equal(fresh["loss"], cached["loss"])


@pytest.mark.parametrize("method", ["vpt", "full"])
def test_methods_that_train_the_image_tower_say_that_they_need_pixels(shared_backbone, method):
    model = attach(shared_backbone, method, NAMES)
    with pytest.raises(ConfigError, match=f"{method} .* needs pixel_values"):
        model(feature_maps=[torch.zeros(1, 32, 2, 2)] * 5)


@pytest.mark.parametrize("method", ALL)
def test_outputs_do_not_depend_on_the_batch(shared_backbone, pixels, method):
    model = attach(shared_backbone, method, NAMES).eval()
    with torch.no_grad():
        whole = model(pixels)["logits"]
        single = torch.cat([model(p[None])["logits"] for p in pixels])
    assert (single - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("method", ["linear_probe", "vpt", "sdpt"])
def test_evaluation_remembers_and_training_forgets(shared_backbone, pixels, method):
    model = attach(shared_backbone, method, NAMES).eval()
    with torch.no_grad():
        first = model(pixels)["logits"]
        assert torch.equal(model(pixels)["logits"], first)
        model.train()
        for p in model.method.parameters():
            p += 0.1 * torch.randn_like(p)
        changed = model.eval()(pixels)["logits"]
        assert not torch.equal(changed, first)


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "vpt", "sdpt", "full"])
def test_new_classes_equal_a_method_attached_to_them(shared_backbone, pixels, method):
    model = attach(shared_backbone, method, NAMES).eval()
    fresh = attach(shared_backbone, method, NEW_NAMES, "a {} in a smear", seed=5).eval()
    fresh.method.load_state_dict(model.method.state_dict())
    model.set_classes(NEW_NAMES, "a {} in a smear")
    assert model.method.caption.text == "a tree in a smear. a red cell in a smear"
    with torch.no_grad():
        assert torch.equal(model(pixels)["logits"], fresh(pixels)["logits"])


def test_a_text_prompt_is_bound_to_its_caption(shared_backbone, pixels):
    model = attach(shared_backbone, "text_prompt", NAMES)
    assert model.method.shift.shape == (shared_backbone.caption(NAMES).length, 32)
    with pytest.raises(ClassNamesError, match="learnt for 'cat. red square.*use sdpt"):
        model.set_classes(NEW_NAMES)
    assert model.class_names == tuple(NAMES)  # what it still reads
    with pytest.raises(ClassNamesError, match="reads 'cat. red"):
        model(pixels, captions=[shared_backbone.caption(NEW_NAMES)] * 2)


def test_captions_of_their_own(shared_backbone, pixels):
    """A batch whose images have different captions, as in grounding data."""
    model = attach(shared_backbone, "sdpt", NAMES).eval()
    captions = [shared_backbone.caption(NEW_NAMES), shared_backbone.caption(["dog"])]
    labels = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "positive_map": caption.positive_map([0])} for caption in captions
    ]
    out = model(pixels, captions, labels)
    alone = model(pixels[1:], captions[1:], labels[1:])
    length = captions[1].length
    torch.testing.assert_close(out["logits"][1:, :, :length], alone["logits"], rtol=1e-5, atol=1e-5)
    assert out["loss"].requires_grad


def test_labels_are_scaled_to_original_pixels(shared_backbone, pixels, labels):
    model = attach(shared_backbone, "zero_shot", NAMES)
    sizes, originals = torch.tensor([[64, 96]] * 2), torch.tensor([[32, 96]] * 2)
    scaled = model(pixels, labels=labels, image_sizes=sizes, original_sizes=originals)["loss"]
    by_hand = [{**label, "scale": torch.tensor([1.0, 2.0])} for label in labels]
    assert torch.equal(scaled, model(pixels, labels=by_hand)["loss"])
    assert not torch.equal(scaled, model(pixels, labels=labels)["loss"])


@pytest.mark.parametrize("method", ALL)
def test_save_and_load(glip_folder, pixels, pictures, tmp_path, method):
    model = attach(str(glip_folder), method, NAMES)
    with torch.no_grad():
        for p in model.method.parameters():
            p.add_(0.05 * torch.randn_like(p)) if p.requires_grad else None
    folder = model.save(tmp_path / "artifact")
    back = load(folder)
    assert isinstance(back, PromptedDetector) and back.class_names == tuple(NAMES)
    assert torch.equal(back(pixels)["logits"], model.eval()(pixels)["logits"])
    stored = (folder / "prompt.safetensors").stat().st_size
    assert (stored < 4 * model.num_trainable_parameters() + 5_000) or method == "full"
    for row, expected in zip(back.detect(pictures, **LIMITS), model.detect(pictures, batch_size=2, **LIMITS)):
        assert len(row["boxes"]) > 0 and row["names"] == [NAMES[i] for i in row["labels"].tolist()]
        assert expected["names"]


def test_an_artifact_of_another_width(glip_folder, shared_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = attach(shared_backbone, "sdpt", NAMES).save(tmp_path / "artifact")
    path = folder / "prompt.safetensors"
    save_file({k: v[..., :48].contiguous() for k, v in load_file(path).items()}, path)
    with pytest.raises(ArtifactError, match="not the file that prompt.json describes"):
        load(folder, shared_backbone)


# ------------------------------------------------------------------ counts, ports, faults


class MetaTokenizer:
    is_fast = True

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


def test_missing_ports_are_told_before_weights_load(tiny_clip, tiny_clip_folder, glip_folder, tmp_path):
    empty = tmp_path / "no-weights"
    empty.mkdir()
    (empty / "config.json").write_bytes((tiny_clip_folder / "config.json").read_bytes())
    for backbone in (tiny_clip, str(empty)):
        with pytest.raises(PortError, match="sdpt needs .*fusion layers; .* offers text tower, vision tower; try glip"):
            attach(backbone, "sdpt", NAMES)
    (empty / "config.json").write_bytes((glip_folder / "config.json").read_bytes())
    with pytest.raises(PortError, match="dpt needs text tower, vision tower; .* offers .*fusion layers.*; try clip"):
        attach(str(empty), "dpt", NAMES)
    with pytest.raises(UnknownNameError, match="did you mean 'sdpt'"):
        attach(str(empty), "sdptt", NAMES)


def test_one_name_over_two_kinds_of_backbone(tiny_clip, shared_backbone):
    for name in ("zero_shot", "linear_probe", "vpt"):
        assert type(attach(tiny_clip, name, NAMES).method) is METHODS.get(name)
        assert type(attach(shared_backbone, name, NAMES).method) is DETECTION_METHODS.get(name)


FAULTS = {
    "sdpt": ({"num_prototype_tokens": 0, "layers": [1, 1], "visible": "all", "init": "ones", "lr": 0.0}, 5),
    "vpt": ({"num_visual_tokens": 0, "visual_lr": 0.0}, 2),
    "text_prompt": ({"lr": 0.0}, 1),
    "linear_probe": ({"lr": -1.0}, 1),
    "full": ({"lr": 0.0, "text_lr": 0.0}, 2),
}


@pytest.mark.parametrize("method", LEARNING)
def test_a_config_names_all_its_faults_at_once(shared_backbone, method):
    settings, count = FAULTS[method]
    with pytest.raises(ConfigError) as caught:
        attach(shared_backbone, method, NAMES, **settings)
    assert len(caught.value.faults) == count


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


def test_a_copy_of_the_model_can_be_made(shared_backbone, pixels):
    model = attach(shared_backbone, "sdpt", NAMES).eval()
    twin = copy.deepcopy(model)
    assert isinstance(twin.method, nn.Module) and torch.equal(twin(pixels)["logits"], model(pixels)["logits"])


def test_half_precision_backbones_train(backbone, pixels, labels):
    backbone.to(torch.bfloat16)
    for method in ("sdpt", "vpt", "text_prompt", "linear_probe"):
        model = attach(backbone, method, NAMES).train()
        model(pixels, labels=labels)["loss"].backward()
        for p in model.parameters():
            if p.requires_grad:
                assert p.dtype == torch.float32 and p.grad.isfinite().all()
