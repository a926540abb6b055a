"""`duotune.__all__` equals what can be imported, and everything public is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import duotune

INIT = Path(duotune.__file__)
NAMES = [name for name in duotune.__all__ if name != "__version__"]
MODULES = ["artifacts", "backbones", "conversion", "data", "data.detection", "detection_evaluation", "evaluation"]
MODULES += ["inspection", "methods", "metrics", "model", "predictor", "recipes", "recipes.running", "report"]
MODULES += ["training", "training.detection", "training.detection_features"]


def test_all_equals_reality():
    assert len(NAMES) > 20 and sorted(duotune._LAZY) == sorted(NAMES)
    assert dir(duotune) == sorted(duotune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = duotune.nonsense


def test_the_names_that_type_checkers_see_are_the_names_that_exist():
    (block,) = [node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_exist_and_are_documented(name):
    thing = getattr(duotune, name)
    assert thing.__name__ == name and thing.__module__.startswith("duotune.")
    assert thing.__doc__ and len(thing.__doc__.strip()) > 20
    if inspect.isclass(thing):
        own = {k: v for k, v in vars(thing).items() if inspect.isfunction(v) and not k.startswith("_")}
        inherited = {k for base in thing.__mro__[1:] for k in vars(base)}
        bare = [k for k, v in own.items() if not v.__doc__ and k not in inherited and k != "to_json"]
        assert not bare, f"{name}: no docstring on {bare}"


@pytest.mark.parametrize("module", MODULES)
def test_all_of_the_rooms(module):
    """Where a room has `__all__`, its names exist and it is complete for classes and functions of its own."""
    room = importlib.import_module(f"duotune.{module}")
    assert room.__doc__
    if not hasattr(room, "__all__"):
        return
    for name in room.__all__:
        assert getattr(room, name) is not None


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert version("duotune") == duotune.__version__
