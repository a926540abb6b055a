"""Measure every method on every embedded task: what the model card reports.

    python gate.py select --out work/select.jsonl         # rates, on validation images alone, one seed
    python gate.py run --out ../../docs/data/embedded.jsonl --seeds 5
    python gate.py table --out ../../docs/data/embedded.jsonl

`select` tries the rates in GRID and prints the mean validation accuracy over tasks; the winners are
written by hand into `recipes/tiny_*.yaml`, one rate per method for all tasks. `run` trains those
recipes on 16 shots and reports test accuracy. Rows already in the file are not run again.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from duotune import load_backbone
from duotune.data import list_datasets, load_dataset
from duotune.recipes import load_recipe
from duotune.recipes.running import run_recipe

METHODS = ("zero_shot", "linear_probe", "coop", "vpt", "vlp", "dpt")
SHIFTED = "tiny-cross-package"  # reported, but no part of the averages: there the shift is the point
GRID = {
    "coop": [dict(text_lr=r) for r in (0.005, 0.02, 0.05)],
    "vpt": [dict(visual_lr=r) for r in (0.005, 0.02, 0.05)],
    "vlp": [dict(text_lr=0.02, visual_lr=r) for r in (0.005, 0.02, 0.05)],
    "dpt": [dict(text_lr=0.02, visual_lr=r) for r in (0.005, 0.02, 0.05)],
}


def measure(backbone, task: str, method: str, seed: int, settings: dict, on: str) -> dict:
    """One row: accuracy on the `on` split ("val" or "test") after training 16 shots of `seed`."""
    recipe = load_recipe(f"tiny_{method}").replace(data=task, seed=seed, settings=settings)
    recipe = recipe.replace(training=dict(save_strategy="no"))
    whole = load_dataset(task)
    data = whole.few_shot(recipe.shots, seed)
    if on == "val":
        data = dataclasses.replace(data, test=whole.val, val=())
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_recipe(recipe, folder, backbone=backbone, data=data, progress=False).summary()
    return dict(
        task=task,
        method=method,
        seed=seed,
        settings=settings,
        on=on,
        accuracy=round(outcome.accuracy, 2),
        classes=len(data.class_names),
        images=len(data.test),
        seconds=round(outcome.seconds, 1),
        parameters=outcome.trainable_parameters,
        bytes=outcome.artifact_bytes,
    )


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[dict]) -> str:
    """Markdown: mean ± deviation over seeds per task and method, and the mean over tasks."""
    cells = collections.defaultdict(list)
    for r in rows:
        cells[r["task"], r["method"]].append(r["accuracy"])
    names = sorted({r["task"] for r in rows}, key=lambda t: (t == SHIFTED, t))
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    about = {r["task"]: r for r in rows}
    lines = ["| task | classes | test images | " + " | ".join(methods) + " |", "|---" * (3 + len(methods)) + "|"]
    for name in names:
        show = lambda v: f"{np.mean(v):.1f}" + (f" ± {np.std(v):.1f}" if len(v) > 1 else "")
        values = [show(cells[name, m]) if (name, m) in cells else "" for m in methods]
        lines.append(f"| {name} | {about[name]['classes']} | {about[name]['images']} | " + " | ".join(values) + " |")
    inside = [n for n in names if n != SHIFTED]
    means = [f"{np.mean([np.mean(cells[n, m]) for n in inside if (n, m) in cells]):.1f}" for m in methods]
    lines.append(f"| mean of {len(inside)} (without {SHIFTED}) | | | " + " | ".join(means) + " |")
    above = [
        str(sum(np.mean(cells[n, m]) > np.mean(cells[n, "zero_shot"]) for n in inside if (n, m) in cells))
        for m in methods
    ]
    lines.append("| tasks above zero-shot | | | " + " | ".join(above) + " |")
    return "\n".join(lines)


def main(args) -> None:
    torch.set_num_threads(args.threads)
    tasks = args.tasks.split(",") if args.tasks else [n for n in list_datasets() if n.startswith("tiny-")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.what == "table":
        return print(table(rows_of(args.out)))
    backbone = load_backbone(args.backbone, dtype=args.dtype, device="cpu")
    done = {(r["task"], r["method"], r["seed"], json.dumps(r["settings"])) for r in rows_of(args.out)}
    for seed in range(1, 2 if args.what == "select" else args.seeds + 1):
        for task in tasks:
            for method in args.methods.split(","):
                if args.what == "select" and method not in GRID or (method == "zero_shot" and seed > 1):
                    continue
                for settings in GRID[method] if args.what == "select" else [{}]:
                    if (task, method, seed, json.dumps(settings)) in done:
                        continue
                    row = measure(backbone, task, method, seed, settings, "val" if args.what == "select" else "test")
                    with open(args.out, "a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    if args.what == "select":
        means = collections.defaultdict(list)
        for r in rows_of(args.out):
            means[r["method"], json.dumps(r["settings"])].append(r["accuracy"])
        for (method, settings), values in sorted(means.items()):
            print(f"{method:13s} {settings:40s} {np.mean(values):5.1f} over {len(values)} tasks")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["select", "run", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--dtype", default="bfloat16", help="of the frozen backbone; the prompts stay float32")
    parser.add_argument("--tasks")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
