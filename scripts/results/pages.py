"""What `make results` writes, as texts: docs/results.md with its pictures, and the tables of docs/benchmarks.md.

A pure function of the files in docs/data, so that a test can hold the committed pages against it.
"""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import numpy as np
from benchmark_tables import filled, kernels_filled
from curves import Panel, draw
from rows import (
    DETECTION_METHODS,
    METHODS,
    SHIFTED,
    SHOTS,
    Cells,
    accuracies,
    detection,
    halves,
    markdown,
    means,
    read,
    show,
    whole_tasks,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
TRAINED = METHODS[1:]
BASE_SHOTS = 16
HALVES = {"base": "Base classes", "new": "New classes", "harmonic_mean": "Harmonic mean"}


def pages(data: Path = DOCS / "data", docs: Path = DOCS) -> dict[str, str]:
    """Path below docs/ -> what it should hold.

    Args:
        data: folder of the JSON files. docs: folder of benchmarks.md, whose text around the tables stays.
    """
    sixteen, fewer = read(data / "embedded.jsonl"), read(data / "few_shot.jsonl")
    cells = accuracies(sixteen, fewer)
    about = {row["task"]: row for row in (*fewer, *sixteen) if "classes" in row and row.get("protocol", "all") == "all"}
    names = sorted(about, key=lambda task: (task == SHIFTED, task))
    present = [m for m in TRAINED if any(cells.get((task, m, n)) for task in names for n in SHOTS[:-1])]
    columns = [(m, n) for m in present for n in SHOTS]
    common = whole_tasks(cells, columns)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(Path(__file__).with_name("results.md.j2").read_text("utf-8"))
    found = {}
    if common:
        found["figures/few_shot_mean.svg"] = draw([mean_panel(cells, common, present)], SHOTS, scale=1.8)
    panels = [Panel(t, zero_shot(cells, t), curves(cells, t)) for t in names]
    found["figures/few_shot_tasks.svg"] = draw(panels, SHOTS)
    rendered = template.render(
        tasks=[task_part(cells, task, about[task]) for task in names],
        coverage=coverage(cells, names),
        common=common,
        left_out=[f"`{m}`" for m in TRAINED if m not in present],
        mean_table=mean_table(cells, common, present),
        shifted=SHIFTED,
        base_shots=BASE_SHOTS,
        **halves_parts(fewer),
        detection=detection_parts(read(data / "embedded_detection.jsonl")),
        published=[published_part(table) for table in json.loads((data / "published.json").read_text("utf-8"))],
    )
    found["results.md"] = rendered.rstrip("\n") + "\n"
    benchmarks = (docs / "benchmarks.md").read_text("utf-8")
    found["benchmarks.md"] = kernels_filled(
        filled(benchmarks, read(data / "benchmarks.jsonl")), read(data / "kernels.jsonl")
    )
    return found


def values(cells: Cells, *key) -> list[float]:
    return list(cells.get(key, {}).values())


def zero_shot(cells: Cells, task: str) -> float | None:
    found = values(cells, task, "zero_shot", 0)
    return found[0] if found else None


def curves(cells: Cells, task: str) -> dict[str, list[tuple[int, float, float]]]:
    found = {}
    for method in TRAINED:
        points = [(n, values(cells, task, method, n)) for n in SHOTS]
        if curve := [(n, float(np.mean(v)), float(np.std(v))) for n, v in points if v]:
            found[method] = curve
    return found


def mean_panel(cells: Cells, common: list[str], methods: list[str]) -> Panel:
    zero = means(cells, common, ("zero_shot", 0))
    panel = Panel(f"mean of {len(common)} tasks", zero[0] if zero else None)
    for method in methods:
        points = [(n, means(cells, common, (method, n))) for n in SHOTS]
        if curve := [(n, float(np.mean(v)), float(np.std(v))) for n, v in points if v]:
            panel.curves[method] = curve
    return panel


def mean_table(cells: Cells, common: list[str], methods: list[str]) -> str:
    zero = show(means(cells, common, ("zero_shot", 0)), seeds=False)
    lines = [[f"`{m}`", *(show(means(cells, common, (m, n))) for n in SHOTS)] for m in methods]
    return markdown(["shots", *map(str, SHOTS)], [["`zero_shot`", *[zero] * len(SHOTS)], *lines])


def coverage(cells: Cells, names: list[str]) -> str:
    """Tasks with any row, and the number of seeds they have."""
    lines = []
    for method in TRAINED:
        line = [f"`{method}`"]
        for count in SHOTS:
            seeds = [len(cells[task, method, count]) for task in names if (task, method, count) in cells]
            spread = f"{min(seeds)} to {max(seeds)}" if len(set(seeds)) > 1 else f"{max(seeds, default=0)}"
            line.append(f"{len(seeds)}, seeds: {spread}" if seeds else "none")
        lines.append(line)
    return markdown(["shots", *map(str, SHOTS)], lines)


def task_part(cells: Cells, task: str, about: dict) -> dict[str, str | int]:
    zero = zero_shot(cells, task)
    lines = [[f"`{m}`", *(show(values(cells, task, m, n)) for n in SHOTS)] for m in TRAINED]
    return {
        "name": task,
        "classes": about["classes"],
        "images": about["images"],
        "zero_shot": "not measured" if zero is None else f"{zero:.1f}",
        "table": markdown(["shots", *map(str, SHOTS)], lines),
    }


def halves_parts(rows: list[dict]) -> dict[str, object]:
    """Base, new and harmonic mean: one table each, and one of the means over tasks."""
    found = {name: halves(rows, name) for name in HALVES}
    measured = [m for m in METHODS if any(key[1] == m for key in found["base"])]
    column = lambda m: (m, 0 if m == "zero_shot" else BASE_SHOTS)
    tasks = sorted({task for task, *_ in found["base"]})
    common = whole_tasks(found["base"], map(column, measured))
    tables, summary = [], []
    for name, title in HALVES.items():
        methods = [m for m in measured if any(key[1] == m for key in found[name])]
        lines = [[t, *(show(values(found[name], t, *column(m)), m != "zero_shot") for m in methods)] for t in tasks]
        if tasks:
            tables.append((title, markdown(["task", *(f"`{m}`" for m in methods)], lines)))
    for m in measured:
        have = [common if all(found[name].get((t, *column(m))) for t in common) else [] for name in HALVES]
        texts = [show(means(found[name], tasks, column(m)), m != "zero_shot") for name, tasks in zip(HALVES, have)]
        summary.append([f"`{m}`", *texts])
    table = markdown(["method", *(title.lower() for title in HALVES.values())], summary) if common else ""
    return {"halves": tables, "halves_common": common, "halves_mean": table}


def detection_parts(rows: list[dict]) -> list[tuple[str, str]]:
    found = []
    for name, title in (("ap", "AP"), ("ap50", "AP50")):
        cells = detection(rows, name)
        tasks = sorted({task for task, _ in cells}, key=lambda t: (t == "tiny-scenes", t))
        methods = [m for m in DETECTION_METHODS if any(key[1] == m for key in cells)]
        lines = [[t, *(show(values(cells, t, m), m != "zero_shot") for m in methods)] for t in tasks]
        if tasks:
            found.append((title, markdown(["task", *(f"`{m}`" for m in methods)], lines)))
    return found


def published_part(table: dict) -> dict[str, object]:
    """A published table as it is shown, its last column saying which of the commands below reproduces the row."""
    lines = [[*(value or "" for value in row["values"]), row["runs"] or "no command"] for row in table["rows"]]
    return {
        "title": table["title"],
        "source": table["source"],
        "note": table["note"],
        "table": markdown([*table["header"], "reproduced by"], lines),
        "lines": [f"{line}  # {name}" for name, lines in table["commands"].items() for line in lines],
    }
