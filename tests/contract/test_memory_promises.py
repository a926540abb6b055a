"""What is remembered is worked out once, and never served when what it was made of has changed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from subjects import CASES, NAMES, inputs, labels
from torch import Tensor, nn

from closeness import close
from duotune import Predictor, attach
from duotune.memory import Memory


def predict(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(model.backbone))["logits"]


def forgetful(model) -> torch.Tensor:
    """What a model that remembers nothing says."""
    model.method._memory.clear()
    if hasattr(model.backbone, "_texts"):
        model.backbone._texts.clear()
    return predict(model)


def learnt(model) -> nn.Parameter:
    """What the remembered values are made of."""
    method = model.method
    return method.prototypes.tokens if hasattr(method, "prototypes") else method.text.context.tokens


def noise(model) -> torch.Tensor:
    return 0.5 * torch.randn(learnt(model).shape, generator=torch.Generator().manual_seed(5))


def add_in_place(model):
    with torch.no_grad():
        learnt(model).add_(noise(model))


def add_to_data(model):
    learnt(model).data.add_(noise(model))


def other_data(model):
    learnt(model).data = learnt(model).data * -1.5


def in_inference_mode(model):
    with torch.inference_mode():
        learnt(model).mul_(-1.5)


def load_state(model):
    model.method.load_state_dict({k: v * 1.5 for k, v in model.method.state_dict().items() if v.is_floating_point()})


def a_step(model):
    model.train()
    optimiser = torch.optim.SGD([p for p in model.method.parameters() if p.requires_grad], lr=0.5)
    model(**inputs(model.backbone), labels=labels(model.backbone))["loss"].backward()
    optimiser.step()
    model.eval()


def to_double(model):
    model.backbone.double()


REMEMBERING = [case for case in CASES if case.kind.__name__ in ("CoOp", "VLP", "DPT", "SDPT")]
CHANGES = [add_in_place, add_to_data, other_data, in_inference_mode, load_state, a_step, to_double]


@pytest.fixture(params=REMEMBERING, ids=str, scope="module")
def own(backbones, request):
    """A model on a backbone of its own, which a test may cast; its first state."""
    case = request.param
    model = attach(copy.deepcopy(backbones[case.folder]), case.method, NAMES).eval()
    return model, copy.deepcopy(model.method.state_dict())


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(own, change):
    model, state = own
    before = predict(model)
    remembered = set(map(id, kept := list(model.method._memory._values.values())))
    assert kept and close(predict(model), before)
    assert {id(value) for value in model.method._memory._values.values()} == remembered
    change(model)
    after = predict(model)
    if change is not to_double or model.method_name != "sdpt":  # prototypes do not depend on the backbone's precision
        assert not remembered & {id(value) for value in model.method._memory._values.values()}
    assert close(after, forgetful(model))
    if change is not to_double:
        assert not close(after, before)
    model.float()
    model.method.load_state_dict(state)
    assert close(predict(model), before)


@pytest.mark.parametrize("folder, method", [("clip", "coop"), ("glip", "sdpt")])
def test_a_cast_there_and_back_is_seen(backbones, folder, method):
    """The same parameter then holds other numbers, and a buffer's successor may have its predecessor's id."""
    model = attach(copy.deepcopy(backbones[folder]), method, NAMES).eval()
    with torch.no_grad():
        for values in filter(Tensor.is_floating_point, (*model.backbone.parameters(), *model.method.buffers())):
            values.mul_(1 + 3e-4)  # what float16 does not hold
    before = predict(model)
    model.half().float()
    after = predict(model)
    assert close(after, forgetful(model)) and not close(after, before)


def test_these_are_all_that_remember(backbones, case):
    model = attach(backbones[case.folder], case.method, NAMES).eval()
    predict(model)
    assert bool(len(model.method._memory)) == (case in REMEMBERING)
    predict(model.train())
    assert not len(model.method._memory)


def test_copies_remember_nothing_of_each_other(own):
    model, _ = own
    before = predict(model)
    other = copy.deepcopy(model)
    add_in_place(other)
    assert not close(predict(other), before) and close(predict(other), forgetful(other))
    assert close(predict(model), before)


@pytest.mark.parametrize("method", ["coop", "vlp", "dpt"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_a_predictor_encodes_texts_once(tiny_clip, picture_data, monkeypatch, method, training):
    model = attach(tiny_clip, method, picture_data.class_names).train(training)
    calls, original = [], type(model.method.text).features
    monkeypatch.setattr(type(model.method.text), "features", lambda *a: calls.append(1) or original(*a))
    predictor = Predictor(model)
    paths = [item.path for item in picture_data.test[::2]]
    found = predictor.classify(paths, batch_size=2)
    assert len(found) == 10 and len(calls) == 1 and model.training == training
    if not training:
        predictor.classify(paths[:2])
        assert len(calls) == 1
    model.set_classes([f"a {name}" for name in picture_data.class_names])
    predictor.classify(paths[:2])
    assert len(calls) == 2


def test_inverse_projections_do_not_stay_behind_on_another_device(backbones):
    model = attach(copy.deepcopy(backbones["glip"]), "sdpt", NAMES).eval()
    predict(model)
    assert len(model.method._memory) == 2 * model.backbone.num_fusion_layers
    model.to("meta")
    with torch.no_grad():
        assert model.method.remember("visual 0", lambda: "worked out there") == "worked out there"
    # a cast to half precision leaves them as they were made: they are what all tokens go through
    half = attach(copy.deepcopy(backbones["glip"]), "sdpt", NAMES).to(torch.bfloat16)
    assert {b.dtype for b in half.method.buffers()} == {torch.float32}


def test_a_memory_alone():
    frozen, weight, calls = torch.ones(2), nn.Parameter(torch.ones(2)), []
    memory = Memory(limit=2)
    compute = lambda name: calls.append(name) or (frozen + weight).detach()
    get = lambda name="a": memory.get(name, lambda: compute(name), [frozen], [weight])
    assert get() is get() and calls == ["a"]
    get("b"), get("c")
    assert "a" not in memory and "c" in memory and len(memory) == 2  # the oldest goes
    frozen.add_(1)
    assert torch.equal(get("c"), torch.full((2,), 3.0)) and len(memory) == 1
    plain = get("c")
    with torch.autocast("cpu", torch.bfloat16):
        inside = get("c")
        assert inside is not plain and get("c") is inside
    assert get("c") is plain
    for other in (copy.copy(memory), copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert len(other) == 0 and other.limit == 2
