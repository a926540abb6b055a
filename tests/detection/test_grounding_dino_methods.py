"""What holds for every method on Grounding DINO and MM Grounding DINO; as on GLIP, but for what is theirs alone."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from tiny_grounding_dino import KINDS, make_model, make_tokenizer, write_folder

from duotune import attach, load, load_backbone
from duotune.backbones.grounding_dino import GroundingDinoBackbone
from duotune.errors import ClassNamesError, ConfigError
from duotune.methods import DETECTION_METHODS
from duotune.model import PromptedDetector

NAMES = ["cat", "red square", "hair drier", "house boats"]
NEW_NAMES = ["tree", "red cell"]
ALL = list(DETECTION_METHODS)
LEARNING = [name for name in ALL if name != "zero_shot"]
CACHING = ["zero_shot", "linear_probe", "text_prompt", "sdpt"]
LIMITS = {"max_detections": 20}
SIZES = torch.tensor([[64, 96], [48, 80]])


def digest(model) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def kinds():
    return {kind: GroundingDinoBackbone("tiny", make_model(kind), make_tokenizer()) for kind in KINDS}


@pytest.fixture(scope="module")
def shared(kinds):
    """A backbone that tests must not change, of the kind that has more to it."""
    return kinds["mm_grounding_dino"]


@pytest.fixture
def backbone(shared):
    return copy.deepcopy(shared)


@pytest.fixture(scope="module")
def pixels():
    batch = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    batch[1, :, 48:], batch[1, :, :, 80:] = 0, 0
    return batch


@pytest.fixture(scope="module")
def labels(shared):
    caption = shared.caption(NAMES)
    return [
        {"boxes": torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60]]), "positive_map": caption.positive_map([0, 2])},
        {"boxes": torch.tensor([[10.0, 20, 60, 44]]), "positive_map": caption.positive_map([3])},
    ]


@pytest.mark.parametrize("method", LEARNING)
@pytest.mark.parametrize("kind", KINDS)
def test_training_changes_what_the_method_owns_and_no_backbone_byte(kinds, pixels, labels, kind, method):
    backbone = copy.deepcopy(kinds[kind])
    before = digest(backbone.model)
    model = attach(backbone, method, NAMES).train()
    assert isinstance(model, PromptedDetector)
    trained = [p for group in model.method.param_groups() for p in group.params]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters() if p.requires_grad}
    assert model.num_trainable_parameters() == sum(p.numel() for p in trained) > 0
    start = [p.detach().clone() for p in trained]
    optimiser = torch.optim.AdamW(trained, lr={"full": 1e-3}.get(method, 1e-2))
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        out = model(pixels, labels=labels, image_sizes=SIZES)
        assert torch.equal(out["loss"], sum(out["losses"].values()))
        out["loss"].backward()
        optimiser.step()
        losses.append(out["loss"].item())
    assert min(losses[1:]) < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(start, trained))
    assert digest(backbone.model) == before
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules()), "dropout of frozen parts is alive"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_counted(kinds, kind):
    shared = kinds[kind]
    counts = {m: attach(shared, m, NAMES).num_trainable_parameters() for m in ALL}
    width, layers, tokens = 32, 2, 10
    assert counts["zero_shot"] == 0
    assert counts["sdpt"] == layers * tokens * shared.fusion_width == layers * tokens * 64
    assert counts["text_prompt"] == shared.caption(NAMES).length * width
    assert counts["vpt"] == tokens * (8 + 2 * 16 + 32 + 64)
    biases = 1 if shared.model.config.model_type == "mm-grounding-dino" else 0  # one, shared by the decoder's layers
    assert counts["linear_probe"] == width * width + width + width * 4 + 4 + biases
    unread = sum(p.numel() for p in shared.model.model.backbone.conv_encoder.model.swin.layernorm.parameters())
    assert counts["full"] == sum(p.numel() for p in shared.model.parameters()) - unread


def hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("method", ALL)
def test_detach_returns_the_same_model_with_the_same_bits(backbone, pixels, labels, method):
    original = backbone.model
    ids = backbone.tokenizer(["cat. dog."] * 2, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = original(pixels, ids)
    had = hooks(original)  # transformers has its own
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
    assert torch.equal(before.logits, after.logits) and torch.equal(before.pred_boxes, after.pred_boxes)
    assert hooks(detached) == had


@pytest.mark.parametrize("method", ALL)
def test_before_training_it_is_the_zero_shot_detector_or_close(shared, pixels, method):
    with torch.no_grad():
        plain = attach(shared, "zero_shot", NAMES).eval()(pixels, image_sizes=SIZES)
        other = attach(shared, method, NAMES).eval()(pixels, image_sizes=SIZES)
    if method in ("vpt", "sdpt"):
        assert (plain["logits"] - other["logits"]).abs().max() > 1e-4
    else:
        torch.testing.assert_close(plain["logits"], other["logits"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(plain["output"].raw.boxes, other["output"].raw.boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", CACHING)
def test_cached_feature_maps_change_nothing(shared, pixels, labels, monkeypatch, method):
    model = attach(shared, method, NAMES).train()
    with torch.no_grad():
        maps = shared.encode_image(pixels, image_sizes=SIZES)
    fresh = model(pixels, labels=labels, image_sizes=SIZES)
    monkeypatch.setattr(type(shared), "encode_image", lambda *a, **k: pytest.fail("the image tower ran"))
    cached = model(feature_maps=maps, labels=labels)
    assert torch.equal(fresh["logits"], cached["logits"]) and torch.equal(fresh["loss"], cached["loss"])


@pytest.mark.parametrize("method", ["vpt", "full"])
def test_methods_that_train_the_image_tower_say_that_they_need_pixels(shared, method):
    with pytest.raises(ConfigError, match=f"{method} .* needs pixel_values"):
        attach(shared, method, NAMES)(feature_maps=[torch.zeros(1, 32, 2, 2)] * 5)


@pytest.mark.parametrize("method", ALL)
def test_outputs_do_not_depend_on_the_batch(shared, pixels, method):
    model = attach(shared, method, NAMES).eval()
    with torch.no_grad():
        whole = model(pixels, image_sizes=SIZES)
        single = [model(p[None], image_sizes=s[None]) for p, s in zip(pixels, SIZES)]
    logits, boxes = (torch.cat(parts) for parts in zip(*[(s["logits"], s["output"].raw.boxes) for s in single]))
    assert (logits - whole["logits"]).abs().max() <= 2e-5 * whole["logits"].abs().max()
    assert (boxes - whole["output"].raw.boxes).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["zero_shot", "linear_probe", "vpt", "sdpt", "full"])
def test_new_classes_equal_a_method_attached_to_them(shared, pixels, method):
    model = attach(shared, method, NAMES).eval()
    fresh = attach(shared, method, NEW_NAMES, "a {} in a smear", seed=5).eval()
    fresh.method.load_state_dict(model.method.state_dict())
    model.set_classes(NEW_NAMES, "a {} in a smear")
    assert model.method.caption.text == "a tree in a smear. a red cell in a smear."
    with torch.no_grad():
        assert torch.equal(model(pixels)["logits"], fresh(pixels)["logits"])


def test_a_text_prompt_is_bound_to_its_caption(shared, pixels):
    model = attach(shared, "text_prompt", NAMES)
    assert model.method.shift.shape == (shared.caption(NAMES).length, 32)
    with pytest.raises(ClassNamesError, match="learnt for 'cat. red square.*use sdpt"):
        model.set_classes(NEW_NAMES)


def test_captions_of_their_own(shared, pixels):
    model = attach(shared, "sdpt", NAMES).eval()
    captions = [shared.caption(NEW_NAMES), shared.caption(["dog"])]
    labels = [
        {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "positive_map": caption.positive_map([0])} for caption in captions
    ]
    out = model(pixels, captions, labels)
    alone = model(pixels[1:], captions[1:], labels[1:])
    length = captions[1].length
    assert length < captions[0].length
    torch.testing.assert_close(out["logits"][1:, :, :length], alone["logits"], rtol=1e-4, atol=1e-4)
    assert out["loss"].requires_grad


@pytest.mark.parametrize(
    "kind, method", [*((KINDS[0], method) for method in ALL), (KINDS[1], "linear_probe"), (KINDS[1], "sdpt")]
)
def test_save_and_load(loaded, pictures, tmp_path, kind, method):
    model = attach(loaded[kind], method, NAMES)
    with torch.no_grad():
        for p in model.method.parameters():
            p.add_(0.05 * torch.randn_like(p)) if p.requires_grad else None
    folder = model.save(tmp_path / "artifact")
    back = load(folder, None if (kind, method) == (KINDS[0], "sdpt") else loaded[kind])
    assert isinstance(back, PromptedDetector) and back.class_names == tuple(NAMES)
    stored = (folder / "prompt.safetensors").stat().st_size
    assert (stored < 4 * model.num_trainable_parameters() + 5_000) or method == "full"
    for row, expected in zip(back.detect(pictures, **LIMITS), model.eval().detect(pictures, **LIMITS)):
        assert len(row["boxes"]) > 0 and row["names"] == [NAMES[i] for i in row["labels"].tolist()]
        assert all(torch.equal(row[name], expected[name]) for name in ("boxes", "scores", "labels"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Models that were written and loaded again."""
    place = tmp_path_factory.mktemp("grounding-dino")
    return {kind: load_backbone(str(write_folder(place / kind, kind)), device="cpu") for kind in KINDS}
