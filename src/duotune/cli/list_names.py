"""List what duotune knows: methods, backbones, data sets, recipes."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from .options import option
from .output import table

HELP = "list methods, backbones, datasets or recipes"
KINDS = ("methods", "backbones", "datasets", "recipes")


@dataclass(kw_only=True)
class Options:
    kind: str = option("all", help="what to list", positional=True, choices=(*KINDS, "all"), metavar="WHAT")


def run(options: Options) -> int:
    kinds = KINDS if options.kind == "all" else (options.kind,)
    for i, kind in enumerate(kinds):
        rows = {"methods": methods, "backbones": backbones, "datasets": datasets, "recipes": recipes}[kind]()
        title = f"{kind}:" if len(kinds) > 1 else None
        if title:
            print(f"\n{title}" if i else title)
        print(table(rows, indent=2 if title else 0))
    return 0


def methods() -> list[tuple[str, str, str]]:
    """(name, what it makes of a backbone, its paper): a name may stand for a classifier and for a detector."""
    from ..methods import DETECTION_METHODS, METHODS

    tables = {"classifier": METHODS, "detector": DETECTION_METHODS}
    return [(name, kind, _first_line(table.where(name))) for kind, table in tables.items() for name in table]


def backbones() -> list[tuple[str, str]]:
    from ..backbones import BACKBONES, EMBEDDED

    rows = [(name, f"embedded model, assets/{folder}") for name, folder in sorted(EMBEDDED.items())]
    return rows + [(f"<{name}>", f"folder or Hub id of a Hugging Face model of type {name!r}") for name in BACKBONES]


def datasets() -> list[tuple[str, str, str]]:
    """(name, what its images have, what it is)."""
    from ..data import DATASETS, EMBEDDED_TASKS
    from ..data.detection import DETECTION_DATASETS, EMBEDDED_DETECTION_TASKS, ODINW

    rows = [(name, "labels", "embedded task") for name in EMBEDDED_TASKS]
    rows += [(name, "boxes", "embedded task") for name in EMBEDDED_DETECTION_TASKS]
    rows += [(name, "labels", f"{DATASETS.get(name).title}; needs --root") for name in DATASETS]
    named = [(name, "boxes", f"{DETECTION_DATASETS.get(name).title}; needs --root") for name in DETECTION_DATASETS]
    groups = [(name, "boxes", f"{len(tasks)} tasks, for evaluate; needs --root") for name, tasks in ODINW.items()]
    return rows + named + groups


def recipes() -> list[tuple[str, str]]:
    from ..recipes import list_recipes, load_recipe

    return [(name, load_recipe(name).description) for name in list_recipes()]


def _first_line(target: str) -> str:
    """First line of the docstring of the module in "module:attribute", read without importing it."""
    try:
        spec = importlib.util.find_spec(target.partition(":")[0])
    except (ImportError, ValueError):  # ValueError: __main__ of a script
        spec = None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        return "registered from outside the package"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
