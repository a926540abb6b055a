"""Every block of README.md and docs/ runs as it stands, page by page, on the embedded model and drawn pictures.

A page's blocks share one folder and, in Python, one namespace. `$ duotune ...` runs in this process; `make` targets
must exist; YAML becomes my_recipe.yaml. A block after `<!-- not run: why -->` is only parsed. The one thing that is
changed is how long training takes: epochs are cut to two.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402

from duotune.cli import build_parser, main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<before>[^\n]*)\n```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
MAKE = re.compile(r"^    make (\w+)", re.M)
COLOURS = {"red_square": (210, 40, 40), "green_square": (40, 180, 60), "blue_square": (40, 70, 210)}


@dataclass
class Block:
    kind: str
    code: str
    line: int
    not_run: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        skip = match["before"].startswith("<!-- not run: ")
        found.append(Block(match["kind"], match["code"], line, skip))
    assert text.count("```") == 2 * len(found), f"{page.name}: a fence that this test does not read"
    return found


RUNNABLE = [page for page in PAGES if any(b.kind in ("python", "console") and not b.not_run for b in blocks(page))]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with my_pictures/, my_boxes/ (COCO), models/glip-t/ (a small GLIP), more_photos/ and photo.jpg."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = tmp_path / "my_pictures" / name
        folder.mkdir(parents=True)
        for i in range(32):  # split 50/20/30: 16 shots
            pixels = np.full((48, 48, 3), 255.0)
            y, x = random.integers(0, 18, 2)
            pixels[y : y + 28, x : x + 28] = colour
            pixels += random.normal(0, 10, pixels.shape)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / f"{i}.png")
    (tmp_path / "more_photos").mkdir()
    write_folder(tmp_path / "my_boxes", splits={"train": 4, "val": 2, "test": 2}, sizes=((64, 64),))
    save_tiny_glip(tmp_path / "models" / "glip-t")
    image.save(tmp_path / "photo.jpg")
    image.save(tmp_path / "more_photos" / "1.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(block: Block) -> list[list[str]]:
    lines = [line[2:] for line in block.code.splitlines() if line.startswith("$ ")]
    assert lines, f"line {block.line}: a console block without a command"
    return [shlex.split(line) for line in lines]


def test_there_are_pages_and_blocks():
    assert len(PAGES) >= 5 and len(RUNNABLE) >= 4
    kinds = [block.kind for page in RUNNABLE for block in blocks(page) if not block.not_run]
    assert kinds.count("python") >= 5 and kinds.count("console") >= 8


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_blocks_run(page, place, capsys, monkeypatch):
    module = types.ModuleType(f"page_{page.stem}")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    namespace = module.__dict__
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.not_run:
            continue
        if block.kind == "python":
            code = re.sub(r"num_train_epochs=\d+", "num_train_epochs=2", block.code)
            assert "TrainingArguments(" not in code or code != block.code, f"{where}: trains for how long?"
            exec(compile(code, where, "exec"), namespace)
        elif block.kind == "yaml":
            Path("my_recipe.yaml").write_text(block.code)
        elif block.kind == "console":
            for program, *argv in commands(block):
                assert program == "duotune", f"{where}: {program}"
                if argv[0] == "train" and not {"--resume", "--epochs", "--help"} & set(argv):
                    argv += ["--epochs", "2"]
                try:
                    status = main(argv)
                except SystemExit as stop:  # --help
                    status = stop.code
                assert status == 0, f"{where}: {shlex.join(argv)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_blocks_parse(page):
    """Also those that are not run: Python parses, YAML loads, options exist."""
    parser = build_parser()
    for block in blocks(page):
        if block.kind == "python":
            ast.parse(block.code)
        elif block.kind == "yaml":
            yaml.safe_load(block.code)
        elif block.kind == "console":
            for program, *argv in commands(block):
                if program == "duotune" and "--help" not in argv:
                    assert isinstance(parser.parse_args(argv), argparse.Namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for page in PAGES for name in MAKE.findall(page.read_text(encoding="utf-8"))}
    assert {"demo", "test"} <= named <= targets


def test_every_documentation_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                waiting.append((page.parent / target).resolve())
    assert not [page.name for page in PAGES if page.resolve() not in reached]
