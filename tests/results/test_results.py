"""The committed results are what `make results` writes from the committed rows, and say what those rows say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data"


@pytest.fixture(scope="module")
def module():
    """scripts/results/pages.py, whose neighbours have names that others may have as well."""
    folder = str(ROOT / "scripts" / "results")
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("results_pages", f"{folder}/pages.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        yield loaded
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def written(module) -> dict[str, str]:
    return module.pages()


def digest_of(picture: str) -> str:
    """What a picture's description says of the values it shows."""
    return re.search(r"sha256:\w+", picture).group()


def test_the_committed_pages_are_what_the_command_writes(written):
    assert {"results.md", "benchmarks.md", "figures/few_shot_tasks.svg"} <= set(written)
    for name, text in written.items():
        committed = (ROOT / "docs" / name).read_text("utf-8")
        if name.endswith(".svg"):  # other versions of matplotlib draw the same values otherwise
            committed, text = digest_of(committed), digest_of(text)
        assert committed == text, f"docs/{name} is old; run `make results`"
    pictures = {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    assert pictures == {Path(name).name for name in written if name.startswith("figures/")}


def test_every_measured_row_is_shown(module, written):
    """Counted apart from the renderer: seeds of every task, method and number of shots in the files."""
    counted: dict[tuple, set] = {}
    for name in ("embedded", "few_shot"):
        for row in module.read(DATA / f"{name}.jsonl"):
            if row.get("protocol", "all") == "all" and row["method"] != "zero_shot":
                counted.setdefault((row["task"], row["method"], row.get("shots", 16)), set()).add(row["seed"])
    assert counted
    page = written["results.md"]
    for (task, method, shots), seeds in counted.items():
        part = page.split(f"**{task}**:")[1].split("\n**")[0]
        cells = next(line for line in part.splitlines() if line.startswith(f"| `{method}`")).split(" | ")
        assert cells[1 + module.SHOTS.index(shots)].removesuffix(" |").endswith(f"({len(seeds)})")


@pytest.fixture
def rows(tmp_path, module):
    """A folder of data in which two tasks are measured as a whole and one in part."""
    whole = ["tiny-a", "tiny-b"]
    rows = []
    for place, task in enumerate([*whole, "tiny-c"]):
        about = {"task": task, "classes": 4, "images": 8}
        for method in module.METHODS if task in whole else ("zero_shot", "coop"):
            for shots in (0,) if method == "zero_shot" else (1, 2, 4, 8, 16) if task in whole else (4,):
                for seed in (1, 2) if shots else (1,):
                    found = {"method": method, "shots": shots, "seed": seed, "accuracy": 10.0 * place + shots + seed}
                    rows.append(about | found | {"protocol": "all"})
            for seed in (1, 2):
                found = {
                    "method": method,
                    "shots": 0 if method == "zero_shot" else 16,
                    "seed": seed,
                    "base": 60.0 + seed,
                }
                if method != "linear_probe":
                    found |= {"new": 30.0, "harmonic_mean": 40.0 + 2 * seed}
                rows.append(about | found | {"protocol": "base_new"})
    (tmp_path / "few_shot.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "published.json").write_text("[]")
    line = {"name": "sdpt_step", "ours_s": 2.0, "plain_s": 8.0, "ratio": 4.0, "floor_s": 0.5, "ours_peak_gb": 1.0}
    line |= {"plain_peak_gb": 3.0, "plain_frozen_s": 6.0, "load_at_start": 0.5, "machine": "M", "threads": 2}
    line |= {"torch": "T", "transformers": "H", "repeats": 2, "commit": "abc"}
    (tmp_path / "benchmarks.jsonl").write_text(json.dumps(line) + "\n")
    return tmp_path


def test_a_partly_measured_page_says_so(rows, module):
    made = module.pages(rows)
    page = made["results.md"]
    assert "figures/few_shot_mean.svg" in made and "Mean over 2 tasks" in page and ": tiny-a, tiny-b." in page
    mean, part = page.split("### Mean over")[1].split("### Each task")[0], page.split("**tiny-c**")[1].split("\n**")[0]
    # tasks at 0 and 10, seeds add 1 and 2: 5 + shots + 1.5
    assert "| `dpt` | 7.5 ± 0.5 (2) | 8.5 ± 0.5 (2) | 10.5 ± 0.5 (2) | 14.5 ± 0.5 (2) | 22.5 ± 0.5 (2) |" in mean
    assert "| `zero_shot` | 6.0 | 6.0 | 6.0 | 6.0 | 6.0 |" in mean
    assert "| `coop` | - | - | 25.5 ± 0.5 (2) | - | - |" in part and "| `dpt` | - | - | - | - | - |" in part
    coverage = page.split("measured out of 3")[1].split("###")[0]
    assert "| `coop` | 2, seeds: 2 | 2, seeds: 2 | 3, seeds: 2 |" in coverage
    assert "| `linear_probe` | 61.5 ± 0.5 (2) | - | - |" in page
    assert "| `dpt` | 61.5 ± 0.5 (2) | 30.0 ± 0.0 (2) | 43.0 ± 1.0 (2) |" in page
    assert "Not measured yet." in page.split("## Detection")[1].split("## Measure")[0]


def test_a_mean_is_not_made_of_different_tasks(rows, module):
    """coop has each number of shots on some task, but not on one and the same."""
    kept = [row for line in (rows / "few_shot.jsonl").read_text().splitlines() if (row := json.loads(line))]
    kept = [row for row in kept if row["protocol"] == "all" and (row["task"] == "tiny-a") == (row["shots"] < 4)]
    (rows / "few_shot.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    made = module.pages(rows)
    assert "figures/few_shot_mean.svg" not in made and "There is no mean over tasks yet" in made["results.md"]
    assert "Not measured yet." in made["results.md"].split("## Base")[1].split("## Detection")[0]


def test_a_benchmark_line_is_taken_up_and_a_missing_one_said(rows, module):
    table = module.pages(rows)["benchmarks.md"]
    said = "| `sdpt_step` | 2 s | 8 s (frozen: 6 s) | 4.0 (3.0) | 0.5 s | 4.0 | 1.00 GB | 3.00 GB | abc |"
    assert said in table and "M, 2 threads, torch T, transformers H, `--repeats 2`" in table
    assert "| `coop_100` | not measured |" in table and "0.605 s" not in table
    (rows / "benchmarks.jsonl").write_text(json.dumps({"name": "another"}))
    with pytest.raises(ValueError, match="another"):
        module.pages(rows)


def test_counted_kernels_have_a_row_per_part(rows, module):
    counts = {"kernels": 5101, "syncs": 0, "copies": 2, "blocking": 1}
    (rows / "kernels.jsonl").write_text(json.dumps({"name": "x", "step_with_torchvision": counts, "commit": "abc"}))
    assert "| `x` | step with torchvision | 5,101 | 0 | 2 | 1 | abc |" in module.pages(rows)["benchmarks.md"]


def test_every_benchmark_has_a_place(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.table import BENCHMARKS

    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    places = re.findall(r"<!-- table: (.*) -->", page)
    assert sorted(name for place in places for name in place.split(", ")) == sorted(BENCHMARKS)


def test_pictures_have_a_line_per_method(module, rows):
    for name, text in module.pages(rows).items():
        if name.endswith(".svg"):
            lines = set(re.findall(r'id="(tiny-\w|mean of 2 tasks) (\w+)"', text))
            assert len(lines) == {"figures/few_shot_mean.svg": 5, "figures/few_shot_tasks.svg": 11}[name]
            assert "nan" not in text and len(text) < 200_000


def test_the_note_in_a_picture_follows_its_values(module, rows):
    before = module.pages(rows)
    path = rows / "few_shot.jsonl"
    first, *rest = path.read_text().splitlines()
    changed = json.loads(first)
    changed["accuracy"] += 1
    path.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
    name = "figures/few_shot_tasks.svg"
    assert digest_of(before[name]) != digest_of(module.pages(rows)[name])


def test_published_rows_name_commands_that_are_there():
    tables = json.loads((DATA / "published.json").read_text())
    assert len(tables) >= 5
    for table in tables:
        assert table["source"] and table["rows"]
        for row in table["rows"]:
            assert len(row["values"]) == len(table["header"])
            assert {name.strip() for name in row["runs"].split(",") if name} <= set(table["commands"])
        named = {name.strip() for row in table["rows"] for name in row["runs"].split(",") if name}
        assert named == set(table["commands"])
