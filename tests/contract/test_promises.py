"""What every method promises on every backbone that has its ports, whatever kind of model it is."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from subjects import (
    CASES,
    KINDS,
    NAMES,
    NEW_NAMES,
    NEW_TEMPLATE,
    Case,
    digest,
    hooks,
    inputs,
    kept,
    labels,
    outputs,
    plain_outputs,
)
from torch import nn

from closeness import all_close
from duotune import attach, load
from duotune.artifacts import describe, restore
from duotune.backbones.base import Detector
from duotune.errors import ClassNamesError, ConfigError
from duotune.methods.base import MethodConfig
from duotune.model import PromptedDetector, PromptedModel

# promise -> class -> why it does not hold; each test makes sure that it indeed does not
EXCEPTIONS = {
    "new classes": {
        "LinearProbe": "a head has a row per class it was trained on",
        "TextPrompt": "its rows belong to the tokens of one caption",
        "TaskResidual": "it has a residual per class",
    },
    "starts as zero-shot unless at random": {"LinearProbe": "its head starts at zero"},
    "an artifact holds what was trained alone": {"Full": "an artifact is a whole model"},
}


def excepted(promise: str, case: Case) -> bool:
    return case.kind.__name__ in EXCEPTIONS[promise]


def test_exceptions_name_classes_that_exist():
    assert {name for names in EXCEPTIONS.values() for name in names} <= {kind.__name__ for _, kind in KINDS}


def predict(model: PromptedModel, **given) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return outputs(model(**(given or inputs(model.backbone))))


def same(a: dict, b: dict) -> bool:
    return all_close(a, b)


def apart(a: dict, b: dict) -> float:
    """Largest difference of logits, relative to the largest of `b`."""
    return ((a["logits"] - b["logits"]).abs().max() / b["logits"].abs().max()).item()


def shake(model: PromptedModel, by: float = 0.05) -> None:
    """As if trained: every trained number moves."""
    with torch.no_grad():
        for p in model.method.parameters():
            if p.requires_grad:
                p.add_(by * torch.randn_like(p))


# ------------------------------------------------------------------ training


def test_the_backbone_keeps_its_bytes_and_has_no_gradient(run):
    backbone = run.model.backbone
    assert digest(backbone.model) == run.digest
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_training_lowers_the_loss_and_moves_every_parameter_that_asks_for_it(run, case):
    assert bool(run.start) == (case.kind.Config is not MethodConfig), "a method with settings learns something"
    assert set(run.start) <= {f"method.{name}" for name, _ in run.model.method.named_parameters()}
    now = dict(run.model.named_parameters())
    assert not [name for name, old in run.start.items() if torch.equal(now[name], old)]
    if run.start:
        assert run.losses[2] < run.losses[1]


def test_param_groups_hold_what_is_trained_once(run):
    grouped = [id(p) for group in run.model.method.param_groups() for p in group.params]
    trained = {id(p): p.numel() for p in run.model.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(trained)
    assert run.model.num_trainable_parameters() == sum(trained.values())


def test_frozen_parts_stay_in_eval_mode(run):
    run.model.train()
    assert run.model.method.training and not any(m.training for m in run.model.backbone.modules())


def test_detach_gives_the_model_back_bit_for_bit(run):
    detached = run.model.detach()
    after = plain_outputs(run.model.backbone)
    assert detached is run.model.backbone.model and len(after) > 1
    assert digest(detached) == run.digest and hooks(detached) == run.hooks
    assert all_close(after, run.plain)


# ------------------------------------------------------------------ what is counted


def dpt_count(b, c, classes):
    width = b.vision_width
    generator = (b.embed_dim + 1) * width + 2 * 32 * width + width**2 + (c.num_extra_tokens + 2) * width
    visual = c.num_visual_tokens * (b.vision_layers - 1) * width
    return c.num_context_tokens * b.text_width + visual + generator + (2 + classes) * width


COUNTS = {  # class -> (backbone, config, number of classes) -> how many numbers training may change
    "ZeroShot": lambda b, c, classes: 0,
    "LinearProbe": lambda b, c, classes: (b.embed_dim + 1) * classes,
    "CoOp": lambda b, c, classes: c.num_context_tokens * b.text_width,
    "VPT": lambda b, c, classes: c.num_visual_tokens * b.vision_layers * b.vision_width,
    "VLP": lambda b, c, classes: COUNTS["CoOp"](b, c, classes) + COUNTS["VPT"](b, c, classes),
    "DPT": dpt_count,
    "TaskResidual": lambda b, c, classes: b.embed_dim * classes,
    "DetectionZeroShot": lambda b, c, classes: 0,
    "DetectionLinearProbe": lambda b, c, classes: sum(p.numel() for p in b.copy_head().parameters() if p.requires_grad),
    "DetectionVPT": lambda b, c, classes: c.num_visual_tokens * sum(map(sum, b.block_widths)),
    "TextPrompt": lambda b, c, classes: b.caption(NAMES).length * b.text_width,
    "SDPT": lambda b, c, classes: c.num_prototype_tokens * b.num_fusion_layers * b.fusion_width,
    "Full": lambda b, c, classes: sum(p.numel() for p in b.model.parameters()),
}


def test_every_class_has_a_count():
    assert set(COUNTS) == {kind.__name__ for _, kind in KINDS}


@pytest.mark.parametrize("settings", ["default", "three of each"])
def test_what_is_trained_is_what_the_settings_say(backbone, case, settings):
    fields = [f.name for f in dataclasses.fields(case.kind.Config) if f.name.startswith("num_")]
    model = attach(backbone, case.method, NAMES, config=dict.fromkeys(fields, 3) if settings != "default" else None)
    expected = COUNTS[case.kind.__name__](backbone, model.method.config, len(NAMES))
    if case.kind.__name__ == "Full":
        expected -= sum(p.numel() for p in case.subject.unread(backbone.model).parameters())
    assert model.num_trainable_parameters() == expected


# ------------------------------------------------------------------ starts, copies, artifacts


def test_a_start_depends_on_the_seed_alone_and_is_zero_shot_unless_at_random(backbone, case):
    torch.manual_seed(123)
    generator = torch.get_rng_state()
    models = [attach(backbone, case.method, NAMES, seed=seed).eval() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), generator)
    first, again, other = (model.method.state_dict() for model in models)
    assert all(torch.equal(first[k], again[k]) for k in first)
    at_random = any(not torch.equal(first[k], other[k]) for k in first)
    plain = attach(backbone, "zero_shot", NAMES, models[0].method.template).eval()
    difference = apart(predict(models[0]), predict(plain))
    if at_random or excepted("starts as zero-shot unless at random", case):
        assert difference > 1e-4
    else:
        assert difference <= 1e-5


def test_an_artifact_opens_in_a_fresh_model_with_the_same_outputs(run, folders, case, tmp_path):
    model = run.model.eval()
    folder, expected = model.save(tmp_path / "artifact"), predict(model)
    backbone = model.backbone
    by_name = case.method == "zero_shot"  # loading weights takes long; once per backbone is enough
    back = load(folder, None if by_name else backbone)
    assert back.class_names == tuple(NAMES) and not back.training and type(back) is type(model)
    assert isinstance(back, PromptedDetector) == isinstance(backbone, Detector)
    assert same(predict(back), expected)
    fresh = attach(backbone, case.method, NAMES, seed=7).eval()
    restore(fresh, folder)
    assert same(predict(fresh), expected)
    trained = {name for name, p in model.method.named_parameters() if p.requires_grad}
    stored = set(describe(folder).tensors)
    assert (stored <= trained) != excepted("an artifact holds what was trained alone", case)
    assert all(name.startswith(case.kind.training_only) for name in trained - stored)


def test_a_copy_gives_the_same_outputs(run):
    model = run.model.eval()
    assert same(predict(copy.deepcopy(model)), predict(model))


# ------------------------------------------------------------------ classes


def test_new_classes_equal_a_method_attached_to_them(backbone, case):
    model = attach(backbone, case.method, NAMES).eval()
    shake(model)
    before = predict(model)
    if excepted("new classes", case):
        with pytest.raises(ClassNamesError, match="knows 4 classes, got 2 names|learnt for 'cat.*use sdpt"):
            model.set_classes(NEW_NAMES)
        assert model.class_names == tuple(NAMES) and same(predict(model), before)
        return
    template, state = model.method.template, {k: v.clone() for k, v in model.method.artifact_state().items()}
    fresh = attach(backbone, case.method, NEW_NAMES, NEW_TEMPLATE, seed=5).eval()
    fresh.method.load_state_dict(state, strict=False)
    model.set_classes(NEW_NAMES, NEW_TEMPLATE)
    assert model.class_names == tuple(NEW_NAMES)
    assert same(predict(model.eval()), predict(fresh)) and not same(predict(model), before)
    model.set_classes(NAMES, template)
    assert same(predict(model.eval()), before)
    assert all(torch.equal(model.method.artifact_state()[k], v) for k, v in state.items())


def test_classes_that_cannot_be_read_leave_the_model_as_it_was(backbone, case):
    model = attach(backbone, case.method, NAMES).eval()
    before, template = predict(model), model.method.template
    with pytest.raises(ClassNamesError):
        model.set_classes(["w " * 200, *NAMES[1:]])
    assert model.class_names == tuple(NAMES) and model.method.template == template
    assert same(predict(model), before)


def test_bad_class_names(backbone, case):
    bad = {(): "non-empty list", ("cat", " "): "non-empty strings", ("cat", "dog", "cat"): "'cat'"}
    for names, message in [*bad.items(), ("cat", "a list of strings"), ([1, 2], "a list of strings")]:
        with pytest.raises(ClassNamesError, match=message):
            attach(backbone, case.method, names)


# ------------------------------------------------------------------ batches, caches


def test_outputs_do_not_depend_on_the_batch(backbone, case):
    model, given = attach(backbone, case.method, NAMES).eval(), inputs(backbone)
    whole = predict(model)
    single = [predict(model, **{k: v[i : i + 1] for k, v in given.items()}) for i in range(len(given["pixel_values"]))]
    backwards = predict(model, **{k: v.flip(0) for k, v in given.items()})
    for name, expected in whole.items():
        allowed = (case.subject.tolerance if name == "logits" else 1e-5) * expected.abs().max()
        assert (torch.cat([part[name] for part in single]) - expected).abs().max() <= allowed
        assert (backwards[name].flip(0) - expected).abs().max() <= allowed


def test_evaluation_remembers_and_training_forgets(backbone, case):
    model = attach(backbone, case.method, NAMES).eval()
    first = predict(model)
    assert same(predict(model), first)
    model.train()
    shake(model, 0.1)
    changed = predict(model.eval())
    assert same(changed, first) != bool(model.num_trainable_parameters())
    if not any(isinstance(m, nn.Dropout) for m in model.method.modules()):
        assert apart(predict(model.train()), changed) <= 1e-5


CACHING = [case for case in CASES if case.kind.needs_frozen_features]


@pytest.mark.parametrize("case", CACHING, ids=str)
def test_what_a_cache_keeps_changes_nothing(backbone, case, monkeypatch):
    model, given, wanted = attach(backbone, case.method, NAMES).train(), inputs(backbone), labels(backbone)
    stored, results = kept(backbone), []
    ways = [given, {**given, **stored}]
    if not case.kind.needs_pixels:
        ways.append(stored)
    for way in ways:
        if way is stored:
            monkeypatch.setattr(type(backbone), "encode_image", lambda *a, **k: pytest.fail("the image tower ran"))
        model.zero_grad()
        out = model(**way, labels=wanted)
        if out["loss"].requires_grad:
            out["loss"].backward()
        grads = [p.grad.clone() for p in model.method.parameters() if p.grad is not None]
        results.append([out["logits"].detach(), out["loss"].detach(), *grads])
    assert len(results[0]) >= 2
    for other in results[1:]:
        assert all_close(other, results[0])


NEEDING_PIXELS = [case for case in CASES if case.kind.needs_pixels]


@pytest.mark.parametrize("case", NEEDING_PIXELS, ids=str)
def test_methods_that_act_in_the_image_tower_say_that_they_need_pixels(backbone, case):
    with pytest.raises(ConfigError, match=f"{case.method} .* needs pixel_values"):
        attach(backbone, case.method, NAMES)(**kept(backbone))


def test_caches_are_used_by_some_and_not_by_others():
    assert CACHING and NEEDING_PIXELS and {case.folder for case in CACHING} == {case.folder for case in NEEDING_PIXELS}


# ------------------------------------------------------------------ settings


def test_settings_of_another_type_and_unknown_ones_are_told_all_at_once(backbone, case):
    wrong = {f.name: object() for f in dataclasses.fields(case.kind.Config)}
    with pytest.raises(ConfigError, match="unknown setting of .* 'colour'") as caught:
        attach(backbone, case.method, NAMES, config={**wrong, "colour": "red"})
    assert len(caught.value.faults) == len(wrong) + 1
    assert all(any(fault.startswith(f"{name} must be ") for fault in caught.value.faults) for name in wrong)
