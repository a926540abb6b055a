"""The direction of imports, read from the syntax trees: rooms import what lies below them, never what lies above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import duotune
from duotune.methods import DETECTION_METHODS, METHODS
from duotune.registry import Registry

PACKAGE = Path(duotune.__file__).parent

# room -> height; a room may import rooms that are strictly lower, and itself
HEIGHT = {
    "errors": 0,
    "endings": 0,
    "registry": 1,
    "settings": 1,
    "names": 1,
    "processes": 1,
    "tracing": 1,
    "reading": 1,
    "precision": 1,
    "grounding": 1,
    "drawing": 1,
    "writing": 1,
    "memory": 2,
    "prompts": 2,
    "models": 2,
    "data": 2,
    "metrics": 2,
    "backbones": 3,
    "methods": 4,
    "model": 5,
    "artifacts": 6,
    "inspection": 6,
    "conversion": 6,
    "report": 6,
    "training": 7,
    "evaluation": 8,
    "detection_evaluation": 8,
    "predictor": 8,
    "recipes": 9,
    "cli": 10,
    "__main__": 11,
}
MODEL_CODE = {"prompts", "models", "backbones", "methods", "model"}
# conveniences of PromptedModel that import upwards when they are called, never when the module is
ON_CALL = {("model", "artifacts"), ("model", "predictor")}
FORBIDDEN_PACKAGES = {"dassl", "clip", "yacs", "pdb"}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """Room of a dotted module below the package: "methods.base" -> "methods"; the package itself is ""."""
    return module.partition(".")[0]


def dotted(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name below the package, is it inside a function) of every import of the package itself."""
    found = []
    module = dotted(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom):
                if child.level:
                    base = package.split(".") if package else []
                    base = base[: len(base) - child.level + 1]
                    name = ".".join([*base, *((child.module or "").split(".") if child.module else [])])
                elif (child.module or "").split(".")[0] == "duotune":
                    name = child.module.partition(".")[2]
                else:
                    continue
                # "from .. import x" names modules of the package, or names of its __init__
                found.extend((f"{name}.{a.name}".strip("."), inside) for a in child.names)
            elif isinstance(child, ast.Import):
                found.extend(
                    (a.name.partition(".")[2], inside) for a in child.names if a.name.split(".")[0] == "duotune"
                )
            visit(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    visit(ast.parse(path.read_text(encoding="utf-8")), False)
    return found


def test_there_are_files_and_every_room_has_a_height():
    assert len(FILES) > 30
    assert {room(dotted(path)) for path in FILES} - {"", "assets"} == set(HEIGHT)


def test_the_walk_sees_imports():
    """A guard of the guard: imports known to exist are found, at both depths."""
    seen = imports(PACKAGE / "model.py")
    assert ("methods.base.Method", False) in seen
    assert ("artifacts.save", True) in seen
    assert ("errors.ConfigError", False) in imports(PACKAGE / "registry.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    here = room(dotted(path))
    if here == "":
        return  # the package's __init__ names everything, lazily
    for name, inside in imports(path):
        there = room(name)
        if there == here or there not in HEIGHT:  # names of the package's __init__, such as __version__
            assert there in (here, "__version__"), f"{path}: import of {name!r}"
            continue
        if inside and (here, there) in ON_CALL:
            continue
        assert HEIGHT[there] < HEIGHT[here], f"{path}: {here} imports {there} ({name}), which is not below it"
        if here in ("data", "metrics"):
            assert there not in MODEL_CODE, f"{path}: {here} must not know model code, but imports {name}"
        if here == "methods" and there == "backbones":
            assert name.startswith("backbones.base."), f"{path}: methods know backbones.base alone, not {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_foreign_packages(path):
    """None of the authors' frameworks, torch alone in prompts, and torchvision never needed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def packages(nodes) -> set[str]:
        found = set()
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
        return found

    top = packages(ast.walk(tree))
    assert not top & FORBIDDEN_PACKAGES
    assert "torchvision" not in packages(tree.body), "torchvision is optional: import it where it is used, in a try"
    if room(dotted(path)) == "prompts":
        assert top <= {"__future__", "torch", "math", "collections"}


@pytest.mark.parametrize("module", ["duotune", "duotune.cli", "duotune.recipes"])
def test_light_modules_import_nothing_heavy(module):
    import subprocess
    import sys

    code = f"import {module}, sys; print(*sorted({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == ""


def test_methods_tables_and_files_are_in_bijection():
    """One paper, one file, one line in the table of its kind of backbone."""
    helpers = {"__init__", "base", "common", "detection"}
    files = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - helpers
    assert files
    tables = (METHODS, DETECTION_METHODS)
    places = [table.where(name) for table in tables for name in table]
    assert files == {place.partition(":")[0].rpartition(".")[2] for place in places}
    assert len(places) == len(set(places)) == len(files)
    for table in tables:
        for name in table:
            assert table.get(name).__doc__ and table.get(name).Config.__doc__
            # a file is called as its method, "detection_..." where a method on dual encoders has the name
            file = table.where(name).partition(":")[0].rpartition(".")[2]
            assert file == (f"detection_{name}" if table is DETECTION_METHODS and name in METHODS else name)


def test_named_data_sets_and_files_are_in_bijection():
    from duotune.data import DATASETS

    files = {path.stem for path in (PACKAGE / "data" / "datasets").glob("*.py") if not path.stem.startswith("_")}
    assert files
    assert {DATASETS.where(name).partition(":")[0].rpartition(".")[2] for name in DATASETS} <= files
    assert isinstance(DATASETS, Registry) and {DATASETS.get(name).name for name in DATASETS} == set(DATASETS)
