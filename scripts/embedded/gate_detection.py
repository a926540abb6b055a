"""Measure every detection method on every embedded detection task: what the detector's model card reports.

    python gate_detection.py select --out work/select_detection.jsonl     # rates, on validation pictures alone
    python gate_detection.py run --out ../../docs/data/embedded_detection.jsonl --seeds 3
    python gate_detection.py table --out ../../docs/data/embedded_detection.jsonl

`select` tries the rates in GRID with one seed and prints the mean validation AP over tasks; the winners are written by
hand into the recipes, one rate per method for all tasks. `run` trains on all training pictures and reports
AP on the test pictures, and, as `scenes`, what the adapted model still finds on tiny-scenes, the distribution of
pre-training, when it is given that task's class names. (Detached, every model is the one of `zero_shot` again:
the backbone's weights do not change.) Rows already in the file are not run again.
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

import duotune
from duotune.data.detection import list_detection_datasets, load_detection
from duotune.detection_evaluation import evaluate_detector
from duotune.recipes import load_recipe
from duotune.recipes.running import run_recipe

METHODS = ("zero_shot", "linear_probe", "text_prompt", "vpt", "sdpt", "full")
SCENES = "tiny-scenes"  # the distribution of pre-training; for testing alone
GRID = {
    "linear_probe": [dict(lr=r) for r in (3e-4, 1e-3, 3e-3)],
    "text_prompt": [dict(lr=r) for r in (5e-3, 2e-2, 5e-2)],
    "vpt": [dict(visual_lr=r) for r in (1e-3, 5e-3, 2e-2)],
    "sdpt": [dict(lr=r) for r in (3e-3, 1e-2, 3e-2)],
    "full": [dict(lr=r, text_lr=r / 10) for r in (1e-4, 3e-4, 1e-3)],
}
RECIPES = {
    "zero_shot": "tiny_detection_zero_shot",
    "linear_probe": "tiny_detection_linear_probe",
    "vpt": "tiny_detection_vpt",
    "text_prompt": "tiny_text_prompt",
    "sdpt": "tiny_sdpt",
    "full": "tiny_full",
}


def tasks() -> list[str]:
    return [name for name in list_detection_datasets() if name.startswith(SCENES + "-")]


def measure(backbone, task: str, method: str, seed: int, settings: dict, on: str) -> dict:
    """One row: AP on the `on` split ("val" or "test")."""
    recipe = load_recipe(RECIPES[method]).replace(data=task, seed=seed, settings=settings)
    data, scenes = load_detection(task), load_detection(SCENES)
    if on == "val":
        data = dataclasses.replace(data, test=data.val, val=())
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_recipe(recipe, folder, backbone=backbone, data=data, progress=False)
        run = outcome.summary()  # reads the artifact's size
    row = dict(
        task=task,
        method=method,
        seed=seed,
        settings=settings,
        on=on,
        ap=round(run.ap, 2),
        ap50=round(run.ap50, 2),
        parameters=run.trainable_parameters,
        bytes=run.artifact_bytes,
        seconds=round(run.seconds, 1),
    )
    if on == "test" and task != SCENES and not outcome.model.method.one_caption:
        outcome.model.set_classes(scenes.class_names)
        found = evaluate_detector(outcome.model, scenes, "test", batch_size=25, workers=0, progress=False)
        row["scenes"] = round(found.ap, 2)
    return row


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def show(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" + (f" ± {np.std(values):.1f}" if len(values) > 1 and np.std(values) > 0 else "")


def table(rows: list[dict]) -> str:
    """Markdown: AP (AP50) per task and method, mean ± deviation over seeds; then AP on tiny-scenes after adapting."""
    if not any(row["task"] != SCENES for row in rows):
        return "(not measured)"
    cells = collections.defaultdict(lambda: collections.defaultdict(list))
    for row in rows:
        for name in ("ap", "ap50", "scenes"):
            if name in row:
                cells[row["task"], row["method"]][name].append(row[name])
    methods = [m for m in METHODS if any(m == method for _, method in cells)]
    names = sorted({task for task, _ in cells if task != SCENES})
    lines = ["| task | " + " | ".join(methods) + " |", "|---" * (1 + len(methods)) + "|"]
    for name in names:
        text = [
            f"{show(cells[name, m]['ap'])} ({np.mean(cells[name, m]['ap50']):.1f})" if (name, m) in cells else ""
            for m in methods
        ]
        lines.append(f"| {name} | " + " | ".join(text) + " |")
    whole = [n for n in names if all((n, m) in cells for m in methods)]  # means of the same tasks alone compare
    mean = lambda m, key: [np.mean(cells[n, m][key]) for n in whole if cells[n, m][key]]
    if not whole:
        return "\n".join(lines)
    lines.append(f"| mean AP of {len(whole)} | " + " | ".join(f"{np.mean(mean(m, 'ap')):.1f}" for m in methods) + " |")
    kept = [f"{np.mean(mean(m, 'scenes')):.1f}" if mean(m, "scenes") else "cannot" for m in methods]
    lines.append(f"| afterwards, AP on {SCENES} | " + " | ".join(kept) + " |")
    about = {row["method"]: row for row in rows}
    lines.append("| trained parameters | " + " | ".join(f"{about[m]['parameters']:,}" for m in methods) + " |")
    return "\n".join(lines)


def main(args) -> None:
    torch.set_num_threads(args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.what == "table":
        return print(table(rows_of(args.out)))
    backbone = duotune.load_backbone(args.backbone, device="cpu")
    done = {(r["task"], r["method"], r["seed"], json.dumps(r["settings"])) for r in rows_of(args.out)}
    select = args.what == "select"
    for seed in range(1, 2 if select else args.seeds + 1):
        for task in args.tasks.split(",") if args.tasks else [SCENES, *tasks()]:
            for method in args.methods.split(","):
                if (select and method not in GRID) or (method == "zero_shot" and seed > 1):
                    continue
                if task == SCENES and (select or method != "zero_shot"):
                    continue  # it has no training pictures
                for settings in GRID[method] if select else [{}]:
                    if (task, method, seed, json.dumps(settings)) in done:
                        continue
                    row = measure(backbone, task, method, seed, settings, "val" if select else "test")
                    with args.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)
    if select:
        means = collections.defaultdict(list)
        for row in rows_of(args.out):
            means[row["method"], json.dumps(row["settings"])].append(row["ap"])
        for (method, settings), values in sorted(means.items()):
            print(f"{method:13s} {settings:40s} {np.mean(values):5.1f} over {len(values)} tasks")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["select", "run", "table"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="tiny-glip")
    parser.add_argument("--tasks")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
