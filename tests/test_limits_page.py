"""docs/limits.md against the constants that it names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from duotune import reading
from duotune.data.base import clean_class_names
from duotune.errors import ClassNamesError
from duotune.reading import archives

PAGE = (Path(__file__).parents[1] / "docs" / "limits.md").read_text("utf-8")
ROWS = re.findall(r"^\| .+ \| ([\d,]+(?: [GMk]iB)?) \| `([\w.]+)` \|$", PAGE, re.MULTILINE)
UNITS = {"GiB": 2**30, "MiB": 2**20, "kiB": 2**10}


def test_the_page_names_every_limit_of_reading():
    own = lambda module: {name for name in vars(module) if name.startswith("MAX_") and name != "MAX_SHOWN"}
    constants = {f"reading.{name}" for name in own(reading)}
    constants |= {f"reading.archives.{name}" for name in own(archives) - own(reading)}
    assert len(constants) > 10
    assert constants <= {name for _, name in ROWS}
    assert len(ROWS) == PAGE.count("| `")


@pytest.mark.parametrize(("value", "name"), ROWS, ids=[name for _, name in ROWS])
def test_the_page_says_the_constant(value, name):
    module, _, constant = name.rpartition(".")
    number, _, unit = value.partition(" ")
    actual = getattr(importlib.import_module(f"duotune.{module}"), constant)
    assert actual == int(number.replace(",", "")) * UNITS.get(unit, 1)


def test_the_ratio_is_free_below_what_the_page_says():
    assert f"of more than {archives.RATIO_FREE_BYTES // 2**20} MiB: unpacked" in PAGE


def test_more_classes_than_the_limit_are_refused(monkeypatch):
    monkeypatch.setattr(reading, "MAX_CLASSES", 3)
    assert clean_class_names("abc") == ("a", "b", "c")
    with pytest.raises(ClassNamesError, match="4 classes.*limit is 3"):
        clean_class_names("abcd")
