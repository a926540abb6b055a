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

import dataclasses
import tempfile
from functools import partial

import numpy as np
import torch
from measuring import cases, cells_of, choices, markdown, parser, rows_of, show, sweep

import duotune
from duotune.data.detection import list_detection_datasets, load_detection
from duotune.detection_evaluation import evaluate_detector
from duotune.recipes import load_recipe
from duotune.recipes.running import run_recipe

METHODS = ("zero_shot", "linear_probe", "text_prompt", "vpt", "sdpt", "full")
SCENES = "tiny-scenes"  # the distribution of pre-training; for testing alone
GRID = {
    "linear_probe": [dict(lr=r) for r in (1e-3, 3e-3, 1e-2)],
    "text_prompt": [dict(lr=r) for r in (3e-3, 1e-2, 3e-2, 1e-1)],
    "vpt": [dict(visual_lr=r) for r in (1e-2, 3e-2, 1e-1)],
    "sdpt": [dict(lr=r) for r in (3e-2, 1e-1, 3e-1)] + [dict(lr=r, init="xavier") for r in (3e-2, 1e-1)],
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


def table(rows: list[dict]) -> str:
    """Markdown: AP (AP50) per task and method, mean ± deviation over seeds; then AP on tiny-scenes after adapting."""
    ap, ap50, scenes = (cells_of(rows, value) for value in ("ap", "ap50", "scenes"))
    names = sorted({task for task, _ in ap if task != SCENES})
    methods = [m for m in METHODS if any((name, m) in ap for name in names)]
    if not names:
        return "(not measured)"
    lines = []
    for name in names:
        texts = [f"{show(ap[name, m])} ({np.mean(ap50[name, m]):.1f})" if (name, m) in ap else "" for m in methods]
        lines.append([name, *texts])
    whole = [n for n in names if all((n, m) in ap for m in methods)]  # means of the same tasks alone compare
    mean = lambda cells, m: f"{np.mean([np.mean(cells[n, m]) for n in whole]):.1f}"
    if whole:
        lines.append([f"mean AP of {len(whole)}", *(mean(ap, m) for m in methods)])
        kept = [mean(scenes, m) if (whole[0], m) in scenes else "cannot" for m in methods]
        lines.append([f"afterwards, AP on {SCENES}", *kept])
    about = {row["method"]: row for row in rows}
    lines.append(["trained parameters", *(f"{about[m]['parameters']:,}" for m in methods)])
    return markdown(["task", *methods], lines)


def main(args) -> None:
    if args.what == "table":
        return print(table(rows_of(args.out)))
    torch.set_num_threads(args.threads)
    backbone = duotune.load_backbone(args.backbone, device="cpu")
    wanted = (  # SCENES has no training pictures
        case
        for case in cases(args, [SCENES, *tasks()], GRID)
        if case["task"] != SCENES or (case["method"] == "zero_shot" and case["on"] == "test")
    )
    sweep(args.out, wanted, partial(measure, backbone))
    if args.what == "select":
        print(choices(rows_of(args.out), "ap"))


if __name__ == "__main__":
    main(parser(__doc__, "tiny-glip", METHODS, seeds=3).parse_args())
