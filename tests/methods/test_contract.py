"""What holds for every method on a dual encoder."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from types import SimpleNamespace

import pytest
import torch

from duotune import attach
from duotune.backbones.base import Backbone, Port
from duotune.errors import ClassNamesError, ConfigError, PortError, UnknownNameError
from duotune.methods import DETECTION_METHODS, METHODS
from duotune.methods.base import ImageBatch, Progress

NAMES = ["cat", "red square", "dog", "grey house boat", "flower"]
NEW_NAMES = ["tree", "blue car", "plane"]
ALL = list(METHODS)
METHOD_CONFIGS = {name: METHODS.get(name).Config for name in METHODS} | {"sdpt": DETECTION_METHODS.get("sdpt").Config}
LEARNING = [name for name in ALL if name != "zero_shot"]
WITH_TEXT = ["coop", "vlp", "dpt"]


def test_the_table_holds_the_six_methods():
    assert set(ALL) == {"zero_shot", "linear_probe", "coop", "vpt", "vlp", "dpt"}


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def digest(model) -> str:
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


@pytest.fixture
def backbone(tiny_clip):
    return copy.deepcopy(tiny_clip)


def optimiser(model):
    groups = model.method.param_groups()
    return torch.optim.SGD([{"params": g.params, "lr": g.lr} for g in groups], momentum=0.9, weight_decay=5e-4)


@pytest.mark.parametrize("method", LEARNING)
def test_training_changes_every_parameter_and_no_backbone_byte(backbone, pixels, method):
    before = digest(backbone.model)
    model = attach(backbone, method, NAMES, num_candidates=5) if method == "dpt" else attach(backbone, method, NAMES)
    model.train()
    start = {k: p.detach().clone() for k, p in model.method.named_parameters()}
    optimise, losses = optimiser(model), []
    for epoch in (0, 30, 30):
        optimise.zero_grad()
        loss = model(pixels, labels=LABELS, progress=Progress(epoch, 60))["loss"]
        loss.backward()
        optimise.step()
        losses.append(loss.item())
    assert losses[2] < losses[1]
    assert digest(backbone.model) == before
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    for name, p in model.method.named_parameters():
        assert not torch.equal(p, start[name]), f"{name} was not trained"


@pytest.mark.parametrize("method", LEARNING)
def test_param_groups_hold_every_parameter_once(tiny_clip, method):
    model = attach(tiny_clip, method, NAMES)
    grouped = [id(p) for group in model.method.param_groups() for p in group.params]
    assert len(grouped) == len(set(grouped)) > 0
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    assert model.num_trainable_parameters() == sum(p.numel() for p in model.method.parameters())


def test_zero_shot_learns_nothing(tiny_clip):
    model = attach(tiny_clip, "zero_shot", NAMES)
    assert model.num_trainable_parameters() == 0 and model.method.param_groups() == []


@pytest.mark.parametrize("method", ALL)
def test_detach_returns_the_same_model_with_the_same_bits(backbone, pixels, method):
    ids = backbone.tokenizer(["a photo of a cat."], return_tensors="pt").input_ids
    original = backbone.model
    with torch.no_grad():
        before = original(input_ids=ids, pixel_values=pixels)
    model = attach(backbone, method, NAMES).train()
    out = model(pixels, labels=LABELS)
    if out["loss"].requires_grad:
        out["loss"].backward()
    detached = model.detach()
    assert detached is original
    with torch.no_grad():
        after = detached(input_ids=ids, pixel_values=pixels)
    assert torch.equal(before.logits_per_image, after.logits_per_image)
    assert torch.equal(before.image_embeds, after.image_embeds)
    assert torch.equal(before.text_embeds, after.text_embeds)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in detached.modules())


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("training", [True, False])
def test_cached_frozen_features_change_nothing(tiny_clip, pixels, method, training):
    if not METHODS.get(method).needs_frozen_features:
        pytest.skip(f"{method} reads no frozen features")
    model = attach(tiny_clip, method, NAMES).train(training)
    with torch.no_grad():
        frozen = tiny_clip.encode_image(pixels)
    results = []
    for given in (None, frozen):
        model.zero_grad()
        out = model(pixels, frozen_features=given, labels=LABELS)
        if out["loss"].requires_grad:
            out["loss"].backward()
        results.append(
            [out["logits"].detach(), *(p.grad.clone() for p in model.method.parameters() if p.grad is not None)]
        )
    assert len(results[0]) == len(results[1]) >= 1
    assert all(torch.equal(a, b) for a, b in zip(*results))
    if not model.method.needs_pixels:
        assert torch.equal(model(frozen_features=frozen)["logits"], results[0][0])


@pytest.mark.parametrize("method", [m for m in ALL if not METHODS.get(m).needs_pixels])
def test_no_pixels_are_encoded_when_features_are_cached(tiny_clip, monkeypatch, method):
    model = attach(tiny_clip, method, NAMES)
    monkeypatch.setattr(tiny_clip, "encode_image", lambda *a: pytest.fail("the image tower ran"))
    assert model(torch.zeros(2, 3, 32, 32), frozen_features=torch.randn(2, 32))["logits"].shape == (2, 5)


@pytest.mark.parametrize("method", ALL)
def test_logits_do_not_depend_on_the_batch(tiny_clip, pixels, method):
    model = attach(tiny_clip, method, NAMES).eval()
    with torch.no_grad():
        whole = model(pixels)["logits"]
        single = torch.cat([model(p[None])["logits"] for p in pixels])
        backwards = model(pixels.flip(0))["logits"].flip(0)
    assert (single - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert (backwards - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("method", ALL)
def test_evaluation_remembers_text_and_training_forgets_it(tiny_clip, pixels, method):
    model = attach(tiny_clip, method, NAMES).eval()
    with torch.no_grad():
        first = model(pixels)["logits"]
        assert torch.equal(model(pixels)["logits"], first)
        if method == "zero_shot":
            return
        model.train()
        for p in model.method.parameters():
            p += 0.1 * torch.randn_like(p)
        model.eval()
        changed = model(pixels)["logits"]
        assert not torch.equal(changed, first)
        trained = model.train()(pixels)["logits"]
        assert (trained - changed).abs().max() <= 1e-5 * changed.abs().max()


@pytest.mark.parametrize("method", ["zero_shot", "coop", "vpt", "vlp", "dpt"])
def test_new_classes_equal_a_method_attached_to_them(tiny_clip, pixels, method):
    model = attach(tiny_clip, method, NAMES).eval()
    state = {k: v.clone() for k, v in model.method.artifact_state().items()}
    model(pixels)
    model.set_classes(NEW_NAMES, "a drawing of a {}.")
    fresh = attach(tiny_clip, method, NEW_NAMES, "a drawing of a {}.", seed=5).eval()
    fresh.method.load_state_dict(state, strict=False)
    with torch.no_grad():
        logits = model.eval()(pixels)["logits"]
        assert logits.shape == (6, 3) and model.class_names == tuple(NEW_NAMES)
        assert torch.equal(logits, fresh(pixels)["logits"])
        back = model.set_classes(NAMES, "a photo of a {}.")(pixels)["logits"]
        assert torch.equal(back, model(pixels)["logits"]) and back.shape == (6, 5)
    for name, value in state.items():
        assert torch.equal(model.method.artifact_state()[name], value), f"{name} did not survive"


def test_a_linear_probe_refuses_new_classes(tiny_clip):
    model = attach(tiny_clip, "linear_probe", NAMES)
    with pytest.raises(ClassNamesError, match="knows 5 classes, got 3 names"):
        model.set_classes(NEW_NAMES)


@pytest.mark.parametrize("method", WITH_TEXT)
def test_a_class_specific_context_refuses_another_number_of_classes(tiny_clip, method):
    model = attach(tiny_clip, method, NAMES, class_specific=True)
    with pytest.raises(ClassNamesError, match="learnt for 5 classes, got 3.*class_specific=False"):
        model.set_classes(NEW_NAMES)


@pytest.mark.parametrize("method", ALL)
def test_a_random_start_depends_on_the_seed_alone(tiny_clip, method):
    torch.manual_seed(123)
    generator = torch.get_rng_state()
    first, again, other = (attach(tiny_clip, method, NAMES, seed=s).method.state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(first[k], again[k]) for k in first)
    if method in ("coop", "vpt", "vlp", "dpt"):
        assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("method", ALL)
def test_the_artifact_state_is_enough_to_predict(tiny_clip, pixels, method):
    model = attach(tiny_clip, method, NAMES).eval()
    state = model.method.artifact_state()
    assert not any(k.startswith(("aux", "backbone")) for k in state)
    again = attach(tiny_clip, method, NAMES, seed=7).eval()
    again.method.load_state_dict(state, strict=False)
    with torch.no_grad():
        assert torch.equal(model(pixels)["logits"], again(pixels)["logits"])


def test_the_auxiliary_head_is_for_training_alone(tiny_clip):
    model = attach(tiny_clip, "dpt", NAMES)
    left_out = set(model.method.state_dict()) - set(model.method.artifact_state())
    assert left_out and all(k.startswith("aux.") for k in left_out)


FAULTS = {
    "coop": ({"num_context_tokens": 0, "position": "last", "text_lr": 0.0}, 3),
    "vpt": ({"num_visual_tokens": 0, "visual_lr": -1.0}, 2),
    "vlp": ({"num_context_tokens": 0, "num_visual_tokens": 0}, 2),
    "dpt": ({"deep": False, "num_candidates": 0, "class_aware_from": -1, "aux_loss_weight": -0.1}, 4),
    "linear_probe": ({"init": "ones", "lr": 0.0}, 2),
}


@pytest.mark.parametrize("method", LEARNING)
def test_a_config_names_all_its_faults_at_once(tiny_clip, method):
    settings, count = FAULTS[method]
    with pytest.raises(ConfigError) as caught:
        attach(tiny_clip, method, NAMES, **settings)
    assert len(caught.value.faults) == count
    with pytest.raises(ConfigError, match="unknown setting of .* 'colour'"):
        attach(tiny_clip, method, NAMES, colour="red")


def test_settings_of_another_type_are_told_with_all_other_faults(tiny_clip):
    wrong = {"num_context_tokens": "four", "text_lr": None, "class_specific": 1, "position": "up", "colour": "red"}
    with pytest.raises(ConfigError) as caught:
        attach(tiny_clip, "coop", NAMES, **wrong)
    told = "; ".join(caught.value.faults)
    assert len(caught.value.faults) == 5 and "unknown setting of CoOpConfig 'colour'" in told
    for piece in ("num_context_tokens must be int, not 'four'", "text_lr must be float, not None", "not 'up'"):
        assert piece in told
    assert "class_specific must be bool, not 1" in told
    with pytest.raises(ConfigError, match="layers must be .*, not .1, 'two'."):
        METHOD_CONFIGS["sdpt"].from_dict({"layers": [1, "two"]})


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_every_setting_of_every_method_has_its_type_checked(name):
    """Built directly, not only from a dictionary; the defaults themselves fit."""
    config = METHOD_CONFIGS[name]
    config().validate()
    fields = [f.name for f in dataclasses.fields(config)]
    for field in fields:
        with pytest.raises(ConfigError, match=f"^{field} must be "):
            config(**{field: object()}).validate()


BAD_NAMES = {
    "none": ([], "non-empty list"),
    "empty": (["cat", " "], "non-empty strings"),
    "doubled": (["cat", "dog", "cat"], "'cat'"),
}


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("names", BAD_NAMES)
def test_bad_class_names(tiny_clip, method, names):
    given, message = BAD_NAMES[names]
    with pytest.raises(ClassNamesError, match=message):
        attach(tiny_clip, method, given)


def test_class_names_that_the_tokenizer_reads_the_same(tiny_clip, monkeypatch):
    """Letter case, to a tokenizer that lower-cases; not to one that does not."""
    with pytest.raises(ClassNamesError, match="reads the same in 'Cat' and 'cat'; 'DOG' and 'dog': rename"):
        attach(tiny_clip, "zero_shot", ["Cat", "tree", "cat", "DOG", "dog"])
    attach(tiny_clip, "zero_shot", ["Cat", "tree", "dog"])
    by_letters = lambda texts, **_: SimpleNamespace(input_ids=[[ord(letter) for letter in text] for text in texts])
    monkeypatch.setattr(tiny_clip, "tokenizer", by_letters)
    attach(tiny_clip, "linear_probe", ["Cat", "tree", "cat"])


@pytest.mark.parametrize("template", ["a photo", "a {} and a {}", ("a {}.", "nothing")])
def test_bad_templates(tiny_clip, template):
    with pytest.raises(ClassNamesError, match="must contain one '{}'"):
        attach(tiny_clip, "zero_shot", NAMES, template)


@pytest.mark.parametrize("method", WITH_TEXT)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_too_much_context_says_how_much_fits(tiny_clip, method, position):
    longest = tiny_clip.max_text_tokens - 1 - max(tiny_clip.tokenize([f"{n}." for n in NAMES]).eos.tolist())
    attach(tiny_clip, method, NAMES, num_context_tokens=longest, position=position)(torch.randn(1, 3, 32, 32))
    with pytest.raises(ClassNamesError, match=f"at most {longest} context tokens"):
        attach(tiny_clip, method, NAMES, num_context_tokens=longest + 1, position=position)


def test_class_aware_layers_beyond_the_tower(tiny_clip):
    with pytest.raises(ConfigError, match="layers 1 to 3"):
        attach(tiny_clip, "dpt", NAMES, class_aware_from=4)


def test_unknown_methods_and_missing_ports():
    with pytest.raises(UnknownNameError, match="did you mean 'coop'"):
        METHODS.get("coopp")

    class TextOnly(Backbone):
        ports = frozenset({Port.TEXT_TOWER})

    lacking = TextOnly("text-only", torch.nn.Linear(1, 1))
    for method in ALL:
        with pytest.raises(PortError, match=f"{method} needs vision tower; text-only offers text tower"):
            attach(lacking, method, NAMES)


def test_a_batch_needs_pixels_or_features():
    with pytest.raises(ConfigError, match="pixel_values or frozen_features"):
        ImageBatch()


def test_underscores_read_as_spaces(tiny_clip, pixels):
    for method in ("zero_shot", "coop"):
        a, b = (
            attach(tiny_clip, method, names)(pixels)["logits"]
            for names in (["red_square", "cat"], ["red square", "cat"])
        )
        assert torch.equal(a, b)


def test_backbone_stays_in_eval_mode(tiny_clip):
    model = attach(tiny_clip, "vlp", NAMES)
    model.train()
    assert model.method.training and not any(m.training for m in model.backbone.modules())


@pytest.mark.parametrize("method", [name for name in ALL if name != "linear_probe"])  # it reads no names
def test_classes_that_cannot_be_read_leave_the_model_as_it_was(tiny_clip, pixels, method):
    model = attach(tiny_clip, method, NAMES)
    model.eval()
    with torch.no_grad():
        before = model(pixels)["logits"]
        with pytest.raises(ClassNamesError):
            model.set_classes(["w " * 100, *NAMES[1:]], "a photo of a {}, " + "w " * 100)
        assert model.class_names == tuple(NAMES) and model.method.template == "a photo of a {}."
        assert torch.equal(model(pixels)["logits"], before)


@pytest.mark.parametrize("names", ["cat", [1, 2]])
def test_names_are_a_list_of_strings(tiny_clip, names):
    with pytest.raises(ClassNamesError, match="a list of strings"):
        attach(tiny_clip, "coop", names)
