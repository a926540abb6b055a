"""docs/architecture.md against the code: its rooms, what they may import, and every name and place it mentions."""

from __future__ import annotations

import re

import pytest

from test_architecture import FILES, HEIGHT, ON_CALL, PACKAGE, dotted, imports, room

PAGE = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
CODE = {path: path.read_text("utf-8") for path in FILES}
ROOMS = r"`([\w.]+)/?`"


def rows() -> list[tuple[list[str], str]]:
    """(rooms, what they may import) of each row of the table of rooms, from below to above."""
    section = PAGE.split("## Rooms")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return [(re.findall(ROOMS, line[0]), line[2]) for line in lines]


def test_the_table_names_every_room_once():
    named = [name for rooms, _ in rows() for name in rooms]
    assert len(named) == len(set(named))
    assert set(named) == set(HEIGHT) - {"__main__"}


@pytest.mark.parametrize(
    ("rooms", "allowed"), rows(), ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_rooms_import_what_their_row_allows(rooms, allowed):
    table = [names for names, _ in rows()]
    place = table.index(rooms)
    above = {name for names in table[:place] for name in names}
    if "above" in allowed or "may import" in allowed:  # all rows before this one, less those it excepts
        may = above - set(re.findall(ROOMS, allowed.partition(" but ")[2]))
    else:
        may = {name.partition(".")[0] for name in re.findall(ROOMS, allowed)}
    seen = set()
    for path in FILES:
        if (here := room(dotted(path))) in rooms:
            for name, inside in imports(path):
                there = room(name)
                seen.add(there)
                if there in HEIGHT and there != here and not (inside and (here, there) in ON_CALL):
                    assert there in may | set(rooms), f"{path}: {here} imports {there}; its row says: {allowed}"
    assert seen or rooms == ["prompts"]


def test_the_picture_shows_every_room():
    picture = PAGE.split("```text")[1].split("```")[0]
    left_out = {"__main__", "detection_evaluation"}  # the second stands for `evaluation` of detectors
    assert {name for name in HEIGHT if re.search(rf"\b{name}\b", picture)} == set(HEIGHT) - left_out


def test_places_and_names_exist():
    """Paths below the package or the repository, classes, functions and attributes between backticks or in drawings."""
    root, text = PACKAGE.parents[1], "\n".join(CODE.values())
    spans = re.findall(r"`([^`\n]+)`", PAGE)
    paths = [span for span in spans if re.fullmatch(r"[\w/]+\.(py|md)|(src|tests|docs)/[\w/]+", span)]
    assert len(paths) >= 6
    for path in paths:
        assert (PACKAGE / path).exists() or (root / path).exists(), path
    classes = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b", PAGE))
    assert len(classes) >= 15
    for name in classes:
        assert re.search(rf"\b{name}\b", text), name
    names = {span.split("(")[0] for span in spans if re.fullmatch(r"[\w.]*_[\w.]*(\(.*\))?", span)}
    for name in names:
        assert re.search(rf"\b{name.split('.')[-1]}\b", text) or (PACKAGE / f"{name.replace('.', '/')}.py").exists(), (
            name
        )
