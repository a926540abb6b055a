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
from duotune.errors import ConfigError
from duotune.methods import METHODS
from duotune.recipes import Recipe, list_recipes, load_recipe, parse_value
from duotune.recipes.running import training_arguments

FILES = sorted((Path(duotune.__file__).parent / "recipes").glob("*.y*ml"))
each_recipe = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
DOCUMENTED = ("description", "source", "command")


def test_recipes_are_found():
    assert len(FILES) >= 10 and [path.stem for path in FILES] == list_recipes()
    wanted = {"coop", "vpt_deep", "vpt_shallow", "vlp", "dpt"} | {f"tiny_{m}" for m in ("coop", "vpt", "vlp", "dpt")}
    assert wanted <= set(list_recipes())


@each_recipe
def test_a_recipe_fits_the_dataclasses(path, tmp_path):
    recipe = load_recipe(path.stem).validate()
    assert recipe.data in list_datasets() and (recipe.backbone in EMBEDDED or "/" in recipe.backbone)
    arguments = training_arguments(recipe, tmp_path)
    assert arguments.num_train_epochs == recipe.epochs and arguments.views == recipe.views
    assert METHODS.get(recipe.method).Config.from_dict(recipe.settings)
    if recipe.backbone in EMBEDDED:
        assert recipe.data in EMBEDDED_TASKS


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
