"""Which numbers belong to which class: the same classes in any order are the same classes, others are refused by name
where what was learnt belongs to each, and looking at a model leaves it and torch's generator as they were."""

from __future__ import annotations

import copy
import dataclasses
import sys

import pytest
import torch
from subjects import CASES, NAMES, NEW_NAMES, ROOT, Case, inputs

from closeness import close

sys.path.insert(0, str(ROOT / "tests" / "detection"))
from coco_folder import write_folder  # noqa: E402

from duotune import Progress, PromptTrainer, attach, base_to_new, evaluate, evaluate_detector, load  # noqa: E402
from duotune.artifacts import restore  # noqa: E402
from duotune.backbones.base import Detector  # noqa: E402
from duotune.data.base import LabelledItems  # noqa: E402
from duotune.data.detection import load_detection  # noqa: E402
from duotune.errors import ClassNamesError, ConfigError  # noqa: E402
from duotune.methods.base import Method  # noqa: E402
from duotune.training import DetectionTrainingArguments, PromptTrainingArguments  # noqa: E402

ORDER = [2, 0, 3, 1]
OTHERS = ["red  square", "bird", "dog", "house_boat"]  # "cat" has become "bird", the rest reads as it did
CLASSIFIERS = [case for case in CASES if case.folder == "clip"]
WAYS = [(case, {}) for case in CLASSIFIERS]
WAYS += [(case, {"class_specific": True}) for case in CLASSIFIERS if hasattr(case.kind.Config, "class_specific")]
QUIET = {"workers": 0, "progress": False}


def named(case: Case, settings: dict) -> str:
    return "-".join([str(case), *settings])


@pytest.fixture(params=WAYS, ids=lambda way: named(*way))
def way(request, backbones):
    """A classifier as if trained, and its settings."""
    case, settings = request.param
    model = attach(backbones["clip"], case.method, NAMES, config=settings).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.method.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model, settings


def logits_and_loss(model, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        out = model(**inputs(model.backbone), labels=torch.tensor(labels), progress=Progress(40, 60))
    return out["logits"], out["loss"]


def test_some_are_bound_and_some_are_not():
    bound = {named(case, settings) for case, settings in WAYS if case.kind.Config(**settings).bound_to_classes}
    specific = {f"clip-{method}-class_specific" for method in ("coop", "vlp", "dpt")}
    assert bound == {"clip-linear_probe", "clip-task_residual", *specific} and len(WAYS) == len(bound) + 5


def test_the_same_classes_in_another_order_give_each_class_what_it_had(way, tmp_path):
    model, settings = way
    before, loss = logits_and_loss(model, [0, 1, 2, 3])
    folder, state = model.save(tmp_path / "mine"), copy.deepcopy(model.method.state_dict())
    names = [NAMES[place].replace(" ", "_") for place in ORDER]
    labels = [ORDER.index(label) for label in range(4)]
    model.set_classes(names)
    after, same_loss = logits_and_loss(model, labels)
    assert model.class_names == tuple(names) and close(after, before[:, ORDER]) and close(same_loss, loss)
    again = load(model.save(tmp_path / "reordered"), model.backbone)
    assert again.class_names == tuple(names) and close(logits_and_loss(again, labels)[0], after)
    fresh = attach(model.backbone, model.method_name, names, model.method.template, settings, seed=9).eval()
    restore(fresh, folder)  # an artifact of the old order in a model of the new one
    assert close(logits_and_loss(fresh, labels)[0], after)
    model.set_classes(NAMES)
    assert all(torch.equal(value, state[name]) for name, value in model.method.state_dict().items())


def test_other_classes_are_refused_by_name_where_numbers_belong_to_each(way, tmp_path):
    model, settings = way
    folder, before = model.save(tmp_path / "mine"), logits_and_loss(model, [0, 1, 2, 3])[0]
    fresh = attach(model.backbone, model.method_name, OTHERS, model.method.template, settings).eval()
    if not model.method.config.bound_to_classes:
        restore(fresh, folder)
        model.set_classes(OTHERS)
        assert close(logits_and_loss(model, [0, 1, 2, 3])[0], logits_and_loss(fresh, [0, 1, 2, 3])[0])
        return
    for refuse in (lambda: model.set_classes(OTHERS), lambda: restore(fresh, folder)):
        with pytest.raises(
            ClassNamesError, match="knows 4 classes, got 4 names: 'cat' is missing; 'bird' is unknown; "
        ):
            refuse()
    with pytest.raises(ClassNamesError, match="'x 0', 'x 1', 'x 2', 'x 3', 'x 4' and 95 more are unknown"):
        model.set_classes([*NAMES, *(f"x {i}" for i in range(100))])
    assert model.class_names == tuple(NAMES) and close(logits_and_loss(model, [0, 1, 2, 3])[0], before)


def test_a_bound_method_that_does_not_tell_its_rows_is_refused_another_order(backbones, monkeypatch):
    model = attach(backbones["clip"], "linear_probe", NAMES)
    monkeypatch.setattr(type(model.method), "class_rows", Method.class_rows)
    with pytest.raises(ClassNamesError, match="does not tell which of its numbers.* in the order it was trained with"):
        model.set_classes(NAMES[::-1])
    assert model.class_names == tuple(NAMES)


@pytest.mark.parametrize("folder", ["glip", "grounding_dino"])
def test_a_text_prompt_is_refused_other_classes_and_another_order(backbones, folder):
    model = attach(backbones[folder], "text_prompt", NAMES)
    with pytest.raises(ClassNamesError, match="'cat' is missing; 'bird' is unknown"):
        model.set_classes(OTHERS)
    with pytest.raises(ClassNamesError, match="learnt for 'cat. red square"):
        model.set_classes([NAMES[place] for place in ORDER])
    assert model.class_names == tuple(NAMES)


# ------------------------------------------------------------------ data in another order


FOREIGN = ("red square", "mauve square", "blue square", "grey square")


def reordered(data):
    """The same pictures of the same classes, numbered otherwise."""
    return data.select(list(reversed(range(len(data.class_names)))))


@pytest.mark.parametrize("method", ["linear_probe", "coop"])
def test_evaluation_reads_labels_by_name(tiny_clip, picture_data, method):
    model = attach(tiny_clip, method, picture_data.class_names)
    with torch.no_grad():
        for p in model.method.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(4)))
    expected, other = evaluate(model, picture_data.test, **QUIET), reordered(picture_data)
    assert len(set(expected.predictions)) > 1
    for items in (other.test, other, copy.deepcopy(other).test, dataclasses.replace(other, name="copy").test):
        found = evaluate(model, items, **QUIET)
        assert found.predictions == expected.predictions and found.per_class == expected.per_class
        assert found.class_names == model.class_names and found.items == expected.items
    half = evaluate(model, other.test[::2], **QUIET)  # a slice of a split knows its classes, too
    assert half.predictions == expected.predictions[::2] and half.items == expected.items[::2]
    part = evaluate(model, other.subset("base").test, **QUIET)  # some of the model's classes
    assert part.num_images == 10 and part.per_class[:2] == (None, None) and part.per_class[2:] == expected.per_class[2:]
    foreign = dataclasses.replace(picture_data, class_names=FOREIGN)
    with pytest.raises(ClassNamesError, match="'green square' is missing; 'mauve square' is unknown"):
        evaluate(model, foreign.test, **QUIET)


def test_splits_know_their_classes(picture_data):
    assert isinstance(picture_data.train, LabelledItems) and picture_data.train.class_names == picture_data.class_names
    assert picture_data.few_shot(2).train.class_names == picture_data.class_names
    assert reordered(picture_data).test.class_names == picture_data.class_names[::-1]


def test_training_on_data_in_another_order_learns_the_same(tiny_clip, picture_data, tmp_path):
    states = []
    for number, data in enumerate((picture_data, reordered(picture_data))):
        model = attach(tiny_clip, "linear_probe", picture_data.class_names)
        arguments = PromptTrainingArguments(
            f"{tmp_path}/{number}", num_train_epochs=2, augment=False, disable_tqdm=True, save_strategy="no"
        )
        PromptTrainer(model, arguments, data).train()
        states.append(model.method.state_dict())
    assert all(close(states[1][name], value) for name, value in states[0].items())
    other = dataclasses.replace(picture_data, class_names=FOREIGN)
    with pytest.raises(ConfigError, match="'green square' is missing; 'mauve square' is unknown"):
        PromptTrainer(model, arguments, other)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return load_detection(write_folder(tmp_path_factory.mktemp("boxes") / "things", splits={"train": 2, "test": 2}))


def test_a_detector_reads_labels_by_name(backbones, boxes, tmp_path):
    model = attach(backbones["glip"], "sdpt", boxes.class_names)
    expected = evaluate_detector(model, boxes, **QUIET)
    found = evaluate_detector(model, reordered(boxes), **QUIET)
    assert found.metrics == expected.metrics and found.class_names == boxes.class_names
    arguments = DetectionTrainingArguments(str(tmp_path), disable_tqdm=True, dataloader_num_workers=0)
    rows = [
        [PromptTrainer(model, arguments, data).train_dataset[i]["positive_map"] for i in range(2)]
        for data in (boxes, reordered(boxes))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*rows))
    with pytest.raises(ConfigError, match="'dog' is missing; 'cow' is unknown"):
        evaluate_detector(model, dataclasses.replace(boxes, class_names=("cat", "cow")), **QUIET)


# ------------------------------------------------------------------ looking changes nothing


def everything(model) -> tuple:
    """What evaluation must leave as it is."""
    tensors = [*model.method.named_parameters(), *model.method.named_buffers(), *model.backbone.named_parameters()]
    state = {name: (id(value), value.detach().clone(), value.requires_grad) for name, value in tensors}
    return state, model.class_names, model.method.template, model.training, torch.get_rng_state()


def untouched(model, before: tuple) -> bool:
    state, *rest, generator = before
    now, *others, its_generator = everything(model)
    assert torch.equal(generator, its_generator), "torch's generator moved"
    assert rest == others
    same = lambda a, b: a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
    return now.keys() == state.keys() and all(same(now[name], value) for name, value in state.items())


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_evaluation_changes_nothing(backbones, case, training, picture_data, boxes):
    data = boxes if isinstance(backbones[case.folder], Detector) else picture_data.subset("base")
    model = attach(backbones[case.folder], case.method, data.class_names).train(training)
    given = inputs(model.backbone)
    with torch.no_grad():
        torch.manual_seed(3)
        expected = model(**given)["logits"]
    before = everything(model)
    if isinstance(model.backbone, Detector):
        evaluate_detector(model, data, **QUIET)
    else:
        evaluate(model, data.test[:3], **QUIET)
        if not model.method.config.bound_to_classes:
            everything_else = dataclasses.replace(picture_data, test=picture_data.test[::5])
            base_to_new(model, everything_else, **QUIET)
    assert untouched(model, before)
    with torch.no_grad():
        torch.manual_seed(3)  # of the dropout that full fine-tuning has in training
        assert close(model(**given)["logits"], expected)


def test_other_classes_leave_the_generator_as_it_was(backbones, case):
    if case.kind.Config().bound_to_classes:
        pytest.skip("takes no other classes")
    model = attach(backbones[case.folder], case.method, NAMES)
    before = torch.get_rng_state()
    model.set_classes(NEW_NAMES)
    assert torch.equal(torch.get_rng_state(), before)
