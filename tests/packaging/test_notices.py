"""Every embedded file is named in the third-party notices, with everybody whose work is inside it."""

from __future__ import annotations

import fnmatch
import json
import re
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "src" / "duotune" / "assets"
FILES = sorted(p for p in ASSETS.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
NOTICES = (ROOT / "THIRD_PARTY_NOTICES.md").read_text("utf-8")
ROW = re.compile(r"^\| ([\w-]+) \| ([\w.]+) \| (.+?) \| \[(.+?)\]\(https://.+?\) \|$", re.M)
PACKAGES = {(name, author, licence): version for name, version, author, licence in ROW.findall(NOTICES)}
ALLOWED = {"Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-3.0"}


def test_there_are_files_and_packages():
    assert len(FILES) >= 30 and len(PACKAGES) >= 10
    assert {licence for *_, licence in PACKAGES} <= ALLOWED


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ASSETS).as_posix())
def test_the_file_is_named(path):
    """By a pattern of the notices, or by the folder it lies in."""
    name = path.relative_to(ASSETS.parent).as_posix()
    patterns = re.findall(r"`(assets/[^`]+)`", NOTICES)
    assert any(fnmatch.fnmatch(name, p) or name.startswith(f"{p}/") for p in patterns)


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.suffix == ".zip"], ids=lambda p: p.relative_to(ASSETS).as_posix()
)
def test_the_sources_of_an_archive_are_among_the_packages(path):
    with zipfile.ZipFile(path) as archive:
        sources = json.loads(archive.read("dataset.json"))["sources"]
    named = {f"{name} ({author}, {licence})" for name, author, licence in PACKAGES}
    assert sources and set(sources) <= named


@pytest.mark.parametrize("card", sorted(ASSETS.glob("*/README.md")), ids=lambda p: p.parent.name)
def test_the_drawings_a_model_saw_are_among_the_packages(card):
    lines = re.findall(r"^- ([\w-]+) ([\w.]+), (.+), ([\w.-]+)$", card.read_text("utf-8"), re.M)
    assert len(lines) >= 10
    for name, version, author, licence in lines:
        assert PACKAGES[name, author, licence] == version


def test_models_have_cards_and_licences_have_texts():
    folders = {path.parent for path in FILES if path.suffix == ".safetensors"}
    assert folders and all("license: apache-2.0" in (folder / "README.md").read_text("utf-8") for folder in folders)
    for name, author, licence in PACKAGES:
        if licence == "MIT":  # whose notice must go with every copy
            assert f"Copyright (c) {author} ({name})" in NOTICES
    assert "Permission is hereby granted, free of charge" in NOTICES
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")[:200]


def test_the_notices_are_what_the_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "embedded"))
    import notices

    assert notices.text() == NOTICES


def test_the_citation_names_both_papers():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    urls = {reference["url"] for reference in citation["references"]}
    assert {"https://arxiv.org/abs/2208.08340", "https://arxiv.org/abs/2407.11414"} <= urls
    assert citation["license"] == "Apache-2.0"
