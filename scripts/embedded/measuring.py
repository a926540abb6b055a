"""What the measuring scripts share: rows in a JSON-lines file, a sweep that goes on where it stopped, table cells."""

from __future__ import annotations

import argparse
import collections
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

IDENTITY = ("task", "method", "seed", "settings")  # what tells one run from another


def rows_of(path: Path) -> list[dict]:
    """The rows of a JSON-lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(values: list[float]) -> str:
    """Mean ± standard deviation over seeds, the deviation only where there are several."""
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values):.1f}" if len(values) > 1 else "")


def cells_of(rows: list[dict], value: str) -> dict[tuple[str, str], list[float]]:
    """(task, method) -> the values over seeds."""
    cells = collections.defaultdict(list)
    for row in rows:
        if value in row:
            cells[row["task"], row["method"]].append(row[value])
    return dict(cells)


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def sweep(out: Path, cases: Iterable[dict], measure: Callable[..., dict], identity=IDENTITY) -> None:
    """Append `measure(**case)` to `out` for every case that no row has yet.

    Args:
        cases: keyword arguments of `measure`; its row repeats those in `identity`.
    """
    key = lambda values: json.dumps([values[name] for name in identity])
    done = {key(row) for row in rows_of(out)}
    out.parent.mkdir(parents=True, exist_ok=True)
    for case in cases:
        if key(case) not in done:
            row = measure(**case)
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def cases(args: argparse.Namespace, tasks: Iterable[str], grid: dict[str, list[dict]]) -> Iterator[dict]:
    """What `args` of `parser` ask for, seed by seed: the settings in `grid` to select, else the recipes' own."""
    select = args.what == "select"
    for seed in range(1, 2 if select else args.seeds + 1):
        for task in args.tasks.split(",") if args.tasks else tasks:
            for method in args.methods.split(","):
                for settings in grid.get(method, []) if select else [{}]:
                    if seed == 1 or method != "zero_shot":
                        yield dict(
                            task=task, method=method, seed=seed, settings=settings, on="val" if select else "test"
                        )


def choices(rows: list[dict], value: str) -> str:
    """A line for each method and setting that was tried: its mean over tasks."""
    tried = collections.defaultdict(list)
    for row in rows:
        tried[row["method"], json.dumps(row["settings"])].append(row[value])
    return "\n".join(
        f"{method:13s} {settings:40s} {np.mean(values):5.1f} over {len(values)} tasks"
        for (method, settings), values in sorted(tried.items())
    )


def parser(doc: str, backbone: str, methods: tuple[str, ...], seeds: int) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["select", "run", "table"])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--backbone", default=backbone)
    p.add_argument("--tasks", help="comma-separated; all without it")
    p.add_argument("--methods", default=",".join(methods))
    p.add_argument("--seeds", type=int, default=seeds)
    p.add_argument("--threads", type=int, default=1)
    return p
