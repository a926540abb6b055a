"""Recipes: one YAML file, one experiment, with its source and the result to expect.

    method: dpt                      every key is a field of `Recipe`; what is left out has its default
    backbone: openai/clip-vit-base-patch16
    shots: 16
    epochs: 100
    settings: {num_context_tokens: 16}     fields of the method's config
    source: where these values come from
    expected: a sentence with a number and its source, or null

Nothing heavy is imported to list or read recipes; `validate` imports the method named.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, DuotuneError, UnknownNameError, shown
from ..reading import MAX_YAML_BYTES, parse_yaml, read_text
from ..settings import misfits

CLASSES = ("all", "base", "new")
BY_KIND = {
    "classification": {"method": "dpt", "shots": 16, "epochs": 60, "batch_size": 32},
    "detection": {"method": "sdpt", "shots": 0, "epochs": 12, "batch_size": 2},
}
"""What a recipe has where nothing is said, by kind of task."""


def _say(default: Any, help: str, **more: Any) -> Any:
    kind = type(default)
    value = {"default_factory": kind} if kind in (dict, list) else {"default": default}
    return field(**value, metadata={"help": help, **more})


@dataclass
class Recipe:
    """One experiment: a method on a backbone and a data set, and how it is trained.

    Fields with a `help` text are options of `duotune train`. `settings` are fields of the method's config, `training`
    further fields of `PromptTrainingArguments` (`DetectionTrainingArguments`). `description`, `source`, `command` and
    `expected` document a recipe. The data say whether it is of a classifier or of a detector, see `kind`; what is left
    out is as in `BY_KIND`.
    """

    method: str | None = _say(
        None, "method to train, see `duotune list methods` (default: dpt; detectors: sdpt)", metavar="NAME"
    )
    backbone: str = _say("", "embedded name, local folder or Hub id of a CLIP model or a detector", metavar="NAME")
    data: str = _say(
        "",
        "data set name, image folder, CSV file, saved Hugging Face data set, or boxes as COCO, YOLO or VOC",
        metavar="NAME|PATH",
    )
    root: str | None = _say(None, "folder that holds the named data sets", metavar="FOLDER")
    shots: int | None = _say(None, "training images per class; 0 takes all (default: 16; detectors: 0)")
    seed: int = _say(1, "of the shots, the random start and the order of images")
    classes: str = _say("all", "all classes, the first half (base) or the second (new)", metavar="|".join(CLASSES))
    template: str | None = _say(None, "prompt with one {} instead of the data set's own", metavar="TEXT")
    epochs: int | None = _say(None, "times to see every image (default: 60; detectors: 12)")
    batch_size: int | None = _say(None, "images per step (default: 32; detectors: 2)")
    views: int = _say(0, "fixed random views per image, cached; 0 draws fresh ones every epoch")
    bf16: bool = _say(False, "compute in bfloat16; on a GPU the frozen weights are loaded in it")
    tf32: bool = _say(False, "float32 products in TensorFloat-32, on NVIDIA GPUs from Ampere on")
    cache_dir: str | None = _say(None, "folder of the feature cache", metavar="FOLDER")
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    source: str = ""
    command: str = ""
    expected: str | None = None

    def __post_init__(self):
        defaults = BY_KIND[self.kind]
        self._given = {name for name in defaults if getattr(self, name) is not None}
        for name, default in defaults.items():
            if name not in self._given:
                setattr(self, name, default)

    @property
    def kind(self) -> str:
        """What the data are: pictures with boxes ("detection") or not; as the method says if they do not tell."""
        from ..data import list_datasets
        from ..data.detection import is_detection_data

        if self.data and is_detection_data(self.data):
            return "detection"
        if self.data in list_datasets() or (self.data and os.path.exists(Path(self.data).expanduser())):
            return "classification"
        from ..methods import DETECTION_METHODS, METHODS

        return "detection" if self.method in DETECTION_METHODS and self.method not in METHODS else "classification"

    def faults(self, said: Container[str] = ()) -> Iterator[str]:
        """One sentence per value that does not fit, the method's settings included.

        Args:
            said: names that a file gives values to which cannot be used; they are not absent.
        """
        for name in ("backbone", "data"):
            if not getattr(self, name) and name not in said:
                yield f"no {name} is given (--{name}, or `{name}:` in the recipe)"
        if self.data:
            yield from self._data_faults()
        if not 0 <= self.seed < 2**32:
            yield f"seed must be at least 0 and below 2^32, not {self.seed}"
        if self.shots < 0:
            yield f"shots must be at least 1, or 0 for all images, not {self.shots}"
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"
        if self.views < 0:
            yield f"views must be at least 0, not {self.views}"
        if self.classes not in CLASSES:
            yield f"classes must be one of {', '.join(CLASSES)}, not {self.classes!r}"
        if self.template is not None and self.template.count("{}") != 1:
            yield f"template must contain one '{{}}' for the class name, not {shown(self.template)}"
        yield from self._method_faults()

    def _data_faults(self) -> Iterator[str]:
        from ..data import list_datasets, load_dataset
        from ..data.detection import list_detection_datasets, load_detection

        if self.kind == "detection":
            if self.data not in list_detection_datasets() and not os.path.exists(Path(self.data).expanduser()):
                yield from _fault_of(load_detection, self.data)
            if self.classes != "all":
                yield f"detectors learn all classes; classes must be 'all', not {self.classes!r}"
        elif self.data not in list_datasets() and not os.path.exists(Path(self.data).expanduser()):
            # of two tables, the one with the nearer name answers
            near = difflib.get_close_matches(self.data, [*list_datasets(), *list_detection_datasets()], n=1, cutoff=0.5)
            other = bool(near) and near[0] not in list_datasets()
            yield from _fault_of(load_detection if other else load_dataset, self.data)

    def _method_faults(self) -> Iterator[str]:
        table, other = self._tables()
        try:
            config = table.get(self.method).Config
        except UnknownNameError as error:
            if self.method in other:
                here, there = ("boxes", "detector") if self.kind == "detection" else ("labelled images", "classifier")
                yield (
                    f"{self.method} is no method of a {there}, and {self.data or 'the data'} has {here}; "
                    f"choose one of {', '.join(table)}"
                )
            else:
                yield str(error)
            return
        yield from config.faults_of(self.settings, f"setting of {self.method}")

    def _tables(self):
        """The methods of this kind of task, and those of the other."""
        from ..methods import DETECTION_METHODS, METHODS

        return (DETECTION_METHODS, METHODS) if self.kind == "detection" else (METHODS, DETECTION_METHODS)

    def validate(self) -> Recipe:
        """self, if every value fits. Raises ConfigError with every fault at once."""
        if faults := list(self.faults()):
            raise ConfigError(*faults)
        return self

    def replace(self, **changes: Any) -> Recipe:
        """A copy with other values; `settings` and `training` are merged, not replaced.

        Another method keeps of the settings those that it has too.
        """
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        given = {
            name: value for name, value in given.items() if name not in BY_KIND["detection"] or name in self._given
        }
        old = given.pop("settings")
        changes["training"] = {**given.pop("training"), **changes.get("training", {})}
        new = Recipe(**{**given, **changes, "settings": {}})
        if new.method != self.method:
            table, _ = new._tables()
            if new.method in table:
                known = {f.name for f in dataclasses.fields(table.get(new.method).Config)}
                old = {name: value for name, value in old.items() if name in known}
        new.settings = {**old, **changes.get("settings", {})}
        return new


def _fault_of(load: Callable[[str], Any], data: str) -> Iterator[str]:
    """Why data that are neither a name nor a path cannot be read; says the nearest name."""
    try:
        load(data)
    except DuotuneError as error:
        yield str(error)


def parse_value(text: str) -> Any:
    """The value that YAML reads in `text`, with 1e-3 a number: "true" -> True, "0.1" -> 0.1, "a photo" -> "a photo"."""
    try:
        value = parse_yaml(text, "a value")
    except DataError:
        return text
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    if isinstance(value, bool) and text.strip().lower() not in ("true", "false"):
        return text.strip()  # YAML 1.1 reads no, on and the like as booleans; save_strategy=no is a word
    return value


def parse_assignments(assignments: Iterable[str], flag: str) -> tuple[dict[str, Any], list[str]]:
    """["text_lr=1e-3", "deep=false"] -> {"text_lr": 0.001, "deep": False}, and a fault for each without "="."""
    values: dict[str, Any] = {}
    faults = []
    for text in assignments:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            faults.append(f"{flag} needs NAME=VALUE, got {text!r}")
        else:
            values[name.strip()] = parse_value(value)
    return values, faults


def list_recipes() -> list[str]:
    """Names of the recipes shipped with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in resources.files(__name__).iterdir() if p.name.endswith(".yaml"))


def read_values(source: str | Path) -> dict[Any, Any]:
    """What a recipe says, unchecked. Arguments and errors as of `load_recipe`."""
    path = Path(source)
    if os.path.isdir(path):  # unlike Path's, it raises for no name, however long
        raise ConfigError(f"a recipe is a YAML file; {source} is a folder")
    if os.path.exists(path):
        text = read_text(path, "a recipe (YAML)", ConfigError, MAX_YAML_BYTES)
    elif path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise DataError(f"no recipe file {source}; give the path of a YAML file, or one of {', '.join(list_recipes())}")
    elif str(source) in list_recipes():
        text = resources.files(__name__).joinpath(f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise UnknownNameError("recipe", str(source), list_recipes())
    values = parse_yaml(text, str(source), ConfigError)
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold `key: value` lines; got {type(values).__name__}")
    return values


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        source: name of a shipped recipe ("dpt"), or path of a YAML file.

    Raises:
        UnknownNameError: neither a file nor a shipped recipe. ConfigError: not YAML, or every key and type that does
        not fit. Values are checked by `Recipe.validate`, because options of a command line may still change them.
    """
    values = read_values(source)
    for key in ("settings", "training"):
        if isinstance(given := values.get(key) or {}, dict):
            values[key] = {k: _number(v) for k, v in given.items()}
    if faults := [f"{source}: {fault}" for fault in misfits(Recipe, values, "recipe key")]:
        raise ConfigError(*faults)
    return Recipe(**values)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a string; people mean a number."""
    return parse_value(value) if isinstance(value, str) and value.startswith(tuple("0123456789.-+")) else value


__all__ = ["CLASSES", "Recipe", "list_recipes", "load_recipe", "parse_assignments", "parse_value", "read_values"]
