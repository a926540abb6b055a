"""Measure every method on every embedded task: what the model card reports.

    python gate.py select --out work/select.jsonl         # rates, on validation images alone, one seed
    python gate.py run --out ../../docs/data/embedded.jsonl --seeds 5
    python gate.py table --out ../../docs/data/embedded.jsonl

`select` tries the rates in GRID and prints the mean validation accuracy over tasks; the winners are
written by hand into `recipes/tiny_*.yaml`, one rate per method for all tasks. `run` trains those
recipes on 16 shots and reports test accuracy. Rows already in the file are not run again.
"""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial

import numpy as np
import torch
from measuring import cases, cells_of, choices, markdown, parser, rows_of, show, sweep

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


def table(rows: list[dict]) -> str:
    """Markdown: mean ± deviation over seeds per task and method, and the mean over tasks."""
    cells = cells_of(rows, "accuracy")
    about = {r["task"]: r for r in rows}
    names = sorted(about, key=lambda t: (t == SHIFTED, t))
    inside = [n for n in names if n != SHIFTED]
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    lines = []
    for name in names:
        values = [show(cells[name, m]) if (name, m) in cells else "" for m in methods]
        lines.append([name, str(about[name]["classes"]), str(about[name]["images"]), *values])
    measured = {m: [n for n in inside if (n, m) in cells] for m in methods}
    means = [f"{np.mean([np.mean(cells[n, m]) for n in measured[m]]):.1f}" for m in methods]
    above = [str(sum(np.mean(cells[n, m]) > np.mean(cells[n, "zero_shot"]) for n in measured[m])) for m in methods]
    lines.append([f"mean of {len(inside)} (without {SHIFTED})", "", "", *means])
    lines.append(["tasks above zero-shot", "", "", *above])
    return markdown(["task", "classes", "test images", *methods], lines)


def main(args) -> None:
    if args.what == "table":
        return print(table(rows_of(args.out)))
    torch.set_num_threads(args.threads)
    backbone = load_backbone(args.backbone, dtype=args.dtype, device="cpu")
    tasks = [name for name in list_datasets() if name.startswith("tiny-")]
    sweep(args.out, cases(args, tasks, GRID), partial(measure, backbone))
    if args.what == "select":
        print(choices(rows_of(args.out), "accuracy"))


if __name__ == "__main__":
    options = parser(__doc__, "tiny", METHODS, seeds=5)
    options.add_argument("--dtype", default="bfloat16", help="of the frozen backbone; the prompts stay float32")
    main(options.parse_args())
