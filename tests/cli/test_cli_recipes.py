"""Every shipped recipe, found by walking: it fits the dataclasses, says where it comes from, and its command is one."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

import duotune
from duotune.backbones import EMBEDDED
from duotune.cli import build_parser
from duotune.cli.train import merge, read
from duotune.data import EMBEDDED_TASKS, list_datasets
from duotune.data.detection import EMBEDDED_DETECTION_TASKS, list_detection_datasets
from duotune.errors import ConfigError
from duotune.methods import DETECTION_METHODS, METHODS
from duotune.recipes import Recipe, list_recipes, load_recipe, parse_value
from duotune.recipes.running import training_arguments
from duotune.training import DetectionTrainingArguments

FILES = sorted((Path(duotune.__file__).parent / "recipes").glob("*.y*ml"))
each_recipe = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
DOCUMENTED = ("description", "source", "command")


def test_recipes_are_found():
    assert len(FILES) >= 10 and [path.stem for path in FILES] == list_recipes()
    wanted = {"coop", "vpt_deep", "vpt_shallow", "vlp", "dpt", "sdpt", "text_prompt", "detection_linear_probe", "full"}
    wanted |= {f"tiny_{m}" for m in ("coop", "vpt", "vlp", "dpt")}
    assert wanted <= set(list_recipes())


@each_recipe
def test_a_recipe_fits_the_dataclasses(path, tmp_path):
    recipe = load_recipe(path.stem).validate()
    boxes = recipe.kind == "detection"
    known, embedded = (
        (list_detection_datasets(), EMBEDDED_DETECTION_TASKS) if boxes else (list_datasets(), EMBEDDED_TASKS)
    )
    assert recipe.data in known and (recipe.backbone in EMBEDDED or "/" in recipe.backbone)
    arguments = training_arguments(recipe, tmp_path)
    assert isinstance(arguments, DetectionTrainingArguments) == boxes
    assert arguments.num_train_epochs == recipe.epochs and arguments.views == recipe.views
    assert (DETECTION_METHODS if boxes else METHODS).get(recipe.method).Config.from_dict(recipe.settings)
    if recipe.backbone in EMBEDDED:
        assert recipe.data in embedded


@each_recipe
def test_a_recipe_says_what_it_is(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert all(len(values[key]) > 20 for key in DOCUMENTED) and "\n" not in values["description"]
    assert "expected" in values and (values["expected"] is None or len(values["expected"]) > 20)


@each_recipe
def test_the_command_of_a_recipe_runs_that_recipe(path):
    program, *argv = shlex.split(load_recipe(path.stem).command)
    assert program == "duotune" and argv[:2] == ["train", path.stem]
    merged = merge(read(build_parser().parse_args(argv)))
    of_the_machine = {"root": merged.root}
    assert merged == load_recipe(path.stem).replace(**of_the_machine)


@pytest.mark.parametrize("name", ["coop", "vpt_deep", "vlp", "dpt"])
def test_the_authors_settings_are_the_defaults(name):
    """What the recipes write out for the reader is what a method does when nothing is said."""
    recipe = load_recipe(name)
    default = METHODS.get(recipe.method).Config().to_dict()
    written = {**default, **recipe.settings}
    if name == "dpt":  # 0 means the last layer, which is layer 12 of ViT-B
        assert written.pop("class_aware_from") == 12 and default.pop("class_aware_from") == 0
    assert written == default
    assert (recipe.shots, recipe.batch_size, recipe.views) == (16, 32, 0)


def test_shallow_prompts_have_their_own_rate():
    recipe = load_recipe("vpt_shallow")
    assert recipe.settings["visual_lr"] == 0.001 and recipe.settings["deep"] is False


def test_training_arguments_that_recipe_keys_set_are_refused(tmp_path):
    recipe = Recipe(training={"num_train_epochs": 3, "per_device_train_batch_size": 2, "weight_dekay": 1, "seed": 2})
    with pytest.raises(ConfigError) as caught:
        training_arguments(recipe, tmp_path)
    assert len(caught.value.faults) == 4
    for piece in ("'epochs'", "'batch_size'", "'seed'", "did you mean 'weight_decay'?"):
        assert piece in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("3", 3), ("0.5", 0.5), ("true", True), ("a photo of a", "a photo of a"), ("null", None)]
    + [("[1, 2]", [1, 2]), ("a: {", "a: {"), ("", None), ("no", "no"), ("False", False)],
)
def test_values_of_options(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_a_recipe_survives_writing_and_reading(tmp_path):
    from duotune.recipes.running import _values

    recipe = load_recipe("dpt").replace(seed=3, settings={"text_lr": 1e-7}, training={"weight_decay": 0.0})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(_values(recipe)))
    assert load_recipe(tmp_path / "r.yaml") == recipe
    assert {f.name for f in dataclasses.fields(Recipe)} >= set(_values(recipe))


def test_the_data_say_what_a_recipe_is_of(tmp_path):
    """A classifier's or a detector's, and with it what is left out; also when an option changes the data."""
    assert (Recipe().kind, Recipe().method, Recipe().epochs) == ("classification", "dpt", 60)
    boxes = Recipe().replace(data="coco2017")
    assert (boxes.kind, boxes.method, boxes.shots, boxes.epochs, boxes.batch_size) == ("detection", "sdpt", 0, 12, 2)
    assert boxes.replace(data="oxford_pets").shots == 16 and Recipe(epochs=7).replace(data="coco2017").epochs == 7
    assert Recipe(method="text_prompt").kind == "detection" and Recipe(method="zero_shot").kind == "classification"
    (tmp_path / "folder").mkdir()
    assert Recipe(data=str(tmp_path / "folder")).kind == "classification"
    (tmp_path / "folder" / "train.json").write_text("{}")
    assert Recipe(data=str(tmp_path / "folder")).kind == "detection"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"data": "coco2017", "method": "dpt"},
            "dpt is no method of a detector, and coco2017 has boxes; choose one of full",
        ),
        (
            {"data": "oxford_pets", "method": "sdpt"},
            "sdpt is no method of a classifier, and oxford_pets has labelled images",
        ),
        ({"data": "coco2017", "classes": "base"}, "detectors learn all classes"),
        ({"data": "coco2018"}, "did you mean 'coco2017'"),
        ({"data": "coco2017", "settings": {"num_prototype_tokens": 0}}, "num_prototype_tokens must be at least 1"),
    ],
)
def test_recipes_of_detectors_that_do_not_fit(values, says):
    faults = list(Recipe(backbone="models/glip-t", **values).faults())
    assert len(faults) == 1 and says in faults[0]
