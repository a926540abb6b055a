"""The measured rows as cells of tables: values over seeds, and which tasks can be averaged."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

METHODS = ("zero_shot", "linear_probe", "coop", "vpt", "vlp", "dpt")
DETECTION_METHODS = ("zero_shot", "linear_probe", "text_prompt", "vpt", "sdpt", "full")
SHOTS = (1, 2, 4, 8, 16)
SHIFTED = "tiny-cross-package"  # shown, but no part of means: there the shift between shots and test is the point

Cells = dict[tuple, dict[int, float]]
"""(task, method) or (task, method, shots) -> seed -> value in percent. Zero-shot has 0 shots."""


def read(path: Path) -> list[dict]:
    """The rows of a JSON-lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def accuracies(sixteen: Iterable[dict], fewer: Iterable[dict]) -> Cells:
    """Cells by task, method and shots, of `gate.py`'s rows (16 shots) and of `few_shot.py`'s.

    Where both have a cell's seed, the second is taken.
    """
    cells: Cells = defaultdict(dict)
    for row in sixteen:
        if row["on"] == "test" and not row["settings"]:
            cells[row["task"], row["method"], 0 if row["method"] == "zero_shot" else 16][row["seed"]] = row["accuracy"]
    for row in fewer:
        if row["protocol"] == "all":
            cells[row["task"], row["method"], row["shots"]][row["seed"]] = row["accuracy"]
    return dict(cells)


def halves(rows: Iterable[dict], value: str) -> Cells:
    """Cells by task, method and shots of the "base_new" rows that have `value`: "base", "new" or "harmonic_mean"."""
    cells: Cells = defaultdict(dict)
    for row in rows:
        if row["protocol"] == "base_new" and value in row:
            cells[row["task"], row["method"], row["shots"]][row["seed"]] = row[value]
    return dict(cells)


def detection(rows: Iterable[dict], value: str) -> Cells:
    """Cells by task and method of "ap" or "ap50" on test pictures."""
    cells: Cells = defaultdict(dict)
    for row in rows:
        if row["on"] == "test" and not row["settings"]:
            cells[row["task"], row["method"]][row["seed"]] = row[value]
    return dict(cells)


def show(values: Sequence[float], seeds: bool = True) -> str:
    """ "56.9 ± 3.7 (5)": mean, standard deviation and number of seeds; "-" where nothing was measured."""
    if not len(values):
        return "-"
    text = f"{np.mean(values):.1f}" + (f" ± {np.std(values):.1f}" if len(values) > 1 else "")
    return f"{text} ({len(values)})" if seeds else text


def whole_tasks(cells: Cells, columns: Iterable[tuple]) -> list[str]:
    """Tasks that have a value in every column (method, shots), the shifted one left out: what means are taken over."""
    columns = list(columns)
    tasks = sorted({key[0] for key in cells} - {SHIFTED})
    return [task for task in tasks if columns and all(cells.get((task, *column)) for column in columns)]


def means(cells: Cells, tasks: Sequence[str], column: tuple) -> list[float]:
    """Of each seed that all these tasks have in this column: the mean over the tasks."""
    rows = [cells[(task, *column)] for task in tasks] if tasks else []
    seeds = sorted(set.intersection(*(set(row) for row in rows))) if rows else []
    return [float(np.mean([row[seed] for row in rows])) for seed in seeds]


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines))
