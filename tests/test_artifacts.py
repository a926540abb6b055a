"""Artifacts: what is saved comes back, float16 where that changes nothing, and faults are one line each."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from closeness import close
from duotune import artifacts, attach, load
from duotune.backbones import load_backbone
from duotune.errors import ArtifactError, ClassNamesError, ConfigError, UnknownNameError

METHODS = ["zero_shot", "linear_probe", "coop", "vpt", "vlp", "dpt"]
NAMES = ["cat", "dog", "red square"]


def make(backbone, method, seed=3, **settings):
    model = attach(backbone, method, NAMES, "a drawing of a {}.", settings, seed=seed)
    with torch.no_grad():  # as if trained: nothing at its start
        for i, p in enumerate(model.method.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return model.eval()


@pytest.fixture
def pixels():
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def logits(model, pixels):
    with torch.no_grad():
        return model.eval()(pixels)["logits"]


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_gives_the_same_logits(tiny_clip, pixels, tmp_path, method):
    model = make(tiny_clip, method)
    assert artifacts.save(model, tmp_path / "artifact") == tmp_path / "artifact"
    assert sorted(p.name for p in (tmp_path / "artifact").iterdir()) == ["prompt.json", "prompt.safetensors"]
    for backbone in (None, tiny_clip, tiny_clip.name):
        loaded = artifacts.load(tmp_path / "artifact", backbone, device="cpu")
        assert not loaded.training
        assert loaded.class_names == tuple(NAMES) and loaded.method.template == "a drawing of a {}."
        assert all(torch.equal(v, loaded.method.artifact_state()[k]) for k, v in model.method.artifact_state().items())
        assert close(logits(loaded, pixels), logits(model, pixels))


def test_what_training_alone_needs_is_left_out(tiny_clip, tmp_path):
    model = make(tiny_clip, "dpt")
    model.save(tmp_path)
    stored = load_file(tmp_path / "prompt.safetensors")
    assert any(k.startswith("aux") for k in model.method.state_dict())
    assert not any(k.startswith("aux") for k in stored)
    assert set(stored) == set(model.method.artifact_state())


def test_description_says_what_it_is(tiny_clip, tmp_path):
    model = make(tiny_clip, "vlp", num_visual_tokens=3)
    model.save(tmp_path)
    info = artifacts.describe(tmp_path)
    assert (info.method, info.config["num_visual_tokens"]) == ("vlp", 3)
    assert (info.backbone, info.fingerprint) == (tiny_clip.name, tiny_clip.fingerprint())
    assert info.num_bytes == (tmp_path / "prompt.safetensors").stat().st_size
    assert info.num_parameters == model.num_trainable_parameters()
    assert set(info.versions) == {"duotune", "torch", "transformers"}
    assert artifacts.ArtifactInfo.from_dict(json.loads(info.to_json())) == info
    shown = str(info)
    assert "cat, dog, red square" in shown and "text.context.tokens" in shown


# precision


def dtypes(folder):
    return {k: v.dtype for k, v in load_file(folder / "prompt.safetensors").items()}


def test_without_evidence_nothing_is_rounded(tiny_clip, tmp_path):
    artifacts.save(make(tiny_clip, "vlp"), tmp_path)
    assert set(dtypes(tmp_path).values()) == {torch.float32}


def test_float16_if_no_prediction_changes(tiny_clip, pixels, tmp_path):
    model = make(tiny_clip, "vlp")
    before, weights = logits(model, pixels), {k: v.clone() for k, v in model.method.state_dict().items()}
    artifacts.save(model, tmp_path, probe=[{"pixel_values": pixels}])
    assert set(dtypes(tmp_path).values()) == {torch.float16}
    assert all(torch.equal(v, weights[k]) for k, v in model.method.state_dict().items())  # the model is as it was
    loaded = artifacts.load(tmp_path, tiny_clip)
    assert torch.equal(logits(loaded, pixels).argmax(1), before.argmax(1))
    assert not close(logits(loaded, pixels), before)


def test_a_tensor_whose_rounding_changes_a_prediction_stays_float32(tiny_clip, tmp_path):
    """A head of two classes that differ by less than float16 can hold, and a bias that float16 holds well enough."""
    model = attach(tiny_clip, "linear_probe", ["cat", "dog"])
    features = torch.zeros(1, 32)
    features[0, 0] = 1
    with torch.no_grad():
        model.method.head.weight[:, 0] = torch.tensor([1.0, 1.0001])
        model.method.head.bias[:] = 0.3
    probe = [{"frozen_features": features}]
    assert artifacts.predicted_labels(model, probe).tolist() == [1]
    artifacts.save(model, tmp_path, probe=probe)
    assert dtypes(tmp_path) == {"head.weight": torch.float32, "head.bias": torch.float16}
    assert artifacts.predicted_labels(artifacts.load(tmp_path, tiny_clip), probe).tolist() == [1]
    artifacts.save(model, tmp_path, dtype="float16")
    assert artifacts.predicted_labels(artifacts.load(tmp_path, tiny_clip), probe).tolist() == [0]


def test_a_value_beyond_float16_stays_float32(tiny_clip, tmp_path):
    model = attach(tiny_clip, "linear_probe", ["cat", "dog"])
    with torch.no_grad():
        model.method.head.bias[:] = torch.tensor([1e6, 0.1])
    artifacts.save(model, tmp_path, probe=[{"frozen_features": torch.ones(1, 32)}])
    assert dtypes(tmp_path) == {"head.weight": torch.float16, "head.bias": torch.float32}


def test_a_loaded_artifact_is_saved_as_it_was(tiny_clip, tmp_path):
    artifacts.save(make(tiny_clip, "vlp"), tmp_path / "a", dtype="float16")
    artifacts.save(artifacts.load(tmp_path / "a", tiny_clip), tmp_path / "b")
    a, b = ((tmp_path / x / "prompt.safetensors").read_bytes() for x in "ab")
    assert a == b


def test_the_mode_of_the_model_is_restored_after_probing(tiny_clip, pixels, tmp_path):
    model = make(tiny_clip, "vlp").train()
    artifacts.save(model, tmp_path, probe=[{"pixel_values": pixels}])
    assert model.training and model.method.training


def test_an_unknown_precision_is_an_error(tiny_clip, tmp_path):
    with pytest.raises(ConfigError, match="bfloat16"):
        artifacts.save(make(tiny_clip, "coop"), tmp_path, dtype="bfloat16")


def test_nan_is_not_saved(tiny_clip, tmp_path):
    model = make(tiny_clip, "coop")
    with torch.no_grad():
        model.method.text.context.tokens[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="text.context.tokens holds NaN"):
        artifacts.save(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# faults


@pytest.fixture
def folder(tiny_clip, tmp_path):
    make(tiny_clip, "coop").save(tmp_path / "artifact")
    return tmp_path / "artifact"


def fails(folder, match, backbone):
    with pytest.raises(ArtifactError, match=match) as caught:
        artifacts.load(folder, backbone)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["prompt.json", "prompt.safetensors"])
def test_a_missing_file(folder, tiny_clip, name):
    (folder / name).unlink()
    fails(folder, f"has no {name}", tiny_clip)


def test_a_missing_folder(tmp_path, tiny_clip):
    fails(tmp_path / "absent", "expected an artifact folder", tiny_clip)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(folder, tiny_clip, keep):
    path = folder / "prompt.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    fails(folder, "truncated or foreign", tiny_clip)


def test_weights_of_classes_know_whose_they_are(tiny_clip, tmp_path):
    make(tiny_clip, "linear_probe").save(tmp_path)
    path = tmp_path / "prompt.json"
    whole = json.loads(path.read_text())
    for names in (NAMES[::-1], ["cat", "dog", "blue square"]):
        path.write_text(json.dumps({**whole, "class_names": names}))
        fails(tmp_path, "names other classes, or in another order, than prompt.safetensors was learnt for", tiny_clip)
    path.write_text(json.dumps(whole))
    assert load(tmp_path, tiny_clip).class_names == tuple(NAMES)


def test_more_classes_than_the_limit(folder, tiny_clip):
    path = folder / "prompt.json"
    names = [str(number) for number in range(100_001)]
    path.write_text(json.dumps({**json.loads(path.read_text()), "class_names": names}))
    fails(folder, "100,001 classes; the limit is 100,000", tiny_clip)


def test_foreign_weights(folder, tiny_clip):
    save_file({"something": torch.zeros(3)}, folder / "prompt.safetensors")
    fails(folder, "truncated or foreign", tiny_clip)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"text.context.tokens": torch.zeros(4, 48)}, r"has shape \(4, 48\), expected \(16, 48\)"),
        ({"other": torch.zeros(1)}, "lacks text.context.tokens; holds the unknown other"),
        ({"text.context.tokens": torch.full((16, 48), float("nan"))}, "NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit(folder, tiny_clip, tensors, match):
    """Even when the checksum says that they belong to the description."""
    import hashlib

    save_file(tensors, folder / "prompt.safetensors")
    values = json.loads((folder / "prompt.json").read_text())
    values["sha256"] = hashlib.sha256((folder / "prompt.safetensors").read_bytes()).hexdigest()
    (folder / "prompt.json").write_text(json.dumps(values))
    fails(folder, match, tiny_clip)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v.update(format=99), "format 99, this duotune reads format 1"),
        (lambda v: v.pop("format"), "not a duotune artifact's description"),
        (lambda v: v.pop("fingerprint"), "incomplete.*fingerprint"),
        (lambda v: v.update(tensors=3), "incomplete"),
        (lambda v: v.update(method="coup"), "did you mean 'coop'"),
        (lambda v: v["config"].update(shiny=1), "unknown setting.*shiny"),
        (lambda v: v.update(class_names=["cat", "cat"]), "occur more than once"),
    ],
)
def test_a_description_that_does_not_fit(folder, tiny_clip, change, match):
    values = json.loads((folder / "prompt.json").read_text())
    change(values)
    (folder / "prompt.json").write_text(json.dumps(values))
    fails(folder, match, tiny_clip)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null"])
def test_a_description_that_is_none(folder, tiny_clip, text):
    (folder / "prompt.json").write_text(text)
    fails(folder, "not a duotune artifact's description", tiny_clip)


def test_another_backbone(folder, tmp_path, make_tiny_clip):
    other = load_backbone(str(make_tiny_clip(tmp_path / "other", seed=1)), device="cpu")
    fails(folder, "fingerprint.*allow_other_backbone=True", other)
    assert artifacts.load(folder, other, allow_other_backbone=True).backbone is other


def test_a_backbone_that_has_moved(folder, tiny_clip):
    values = json.loads((folder / "prompt.json").read_text())
    values["backbone"] = "/nowhere/clip"
    (folder / "prompt.json").write_text(json.dumps(values))
    fails(folder, "cannot load the backbone '/nowhere/clip'.*pass backbone=", None)
    assert artifacts.load(folder, tiny_clip).class_names == tuple(NAMES)


def test_the_fingerprint_does_not_depend_on_the_precision(folder, tiny_clip_folder):
    half = load_backbone(str(tiny_clip_folder), dtype="bfloat16", device="cpu")
    assert artifacts.load(folder, half).class_names == tuple(NAMES)
    assert artifacts.load(folder, str(tiny_clip_folder), device="cpu", dtype="float16").backbone.device.type == "cpu"


@pytest.mark.parametrize(("stage", "call"), [("fsync", 1), ("fsync", 2), ("replace", 1), ("replace", 2)])
def test_a_failed_save_leaves_what_was_there(folder, tiny_clip, pixels, monkeypatch, stage, call):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    other, calls, original = make(tiny_clip, "vlp"), [], getattr(os, stage)

    def full(*args):
        calls.append(args)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(os, stage, full)
    with pytest.raises(ArtifactError, match="No space left.*untouched"):
        other.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_artifact_is_replaced_by_the_next(folder, tiny_clip):
    make(tiny_clip, "vpt").save(folder)
    assert artifacts.describe(folder).method == "vpt"
    assert len(list(folder.iterdir())) == 2


def test_an_interrupted_save_leaves_what_was_there(folder, tiny_clip, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tiny_clip, "coop", seed=9).save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_setting_of_another_type(folder, tiny_clip):
    values = json.loads((folder / "prompt.json").read_text())
    values["config"]["num_context_tokens"] = "four"
    (folder / "prompt.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="does not fit"):
        artifacts.load(folder, tiny_clip)


@pytest.mark.parametrize(
    "name", ["backbone", "sha256", "method", "fingerprint", "class_names", "num_bytes", "versions"]
)
def test_a_description_with_a_value_of_another_kind(tiny_clip, tmp_path, name):
    make(tiny_clip, "coop").save(tmp_path)
    path = tmp_path / "prompt.json"
    wrong = "text" if name in ("class_names", "num_bytes", "versions") else 3
    path.write_text(json.dumps({**json.loads(path.read_text()), name: wrong}))
    for read in (artifacts.describe, artifacts.load):
        with pytest.raises(ArtifactError, match=f"incomplete or not as expected .*'{name}' is no "):
            read(tmp_path)


@pytest.mark.parametrize("wrong", [None, 3, ["runs/mine"]])
def test_what_is_no_folder_is_no_artifact(tiny_clip, wrong):
    with pytest.raises(ArtifactError, match="expected the folder of an artifact"):
        load(wrong)
    with pytest.raises(ArtifactError, match="expected the folder of an artifact"):
        attach(tiny_clip, "coop", NAMES).save(wrong)


def test_a_file_in_the_place_of_the_folder(tiny_clip, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ArtifactError, match="run is a file; expected a folder"):
        attach(tiny_clip, "coop", NAMES).save(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_wrong_types_given_to_attach(tiny_clip):
    with pytest.raises(ConfigError, match="expected a backbone's name"):
        attach(None, "coop", NAMES)
    with pytest.raises(ClassNamesError, match="class names must be a list of strings; got None"):
        attach(tiny_clip, "coop", None)
    with pytest.raises(UnknownNameError, match="unknown method 5"):
        attach(tiny_clip, 5, NAMES)
