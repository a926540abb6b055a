"""Measure methods on the embedded tasks with few pictures per class, and on classes that training did not see.

    python few_shot.py --out ../../docs/data/few_shot.jsonl                       # all classes, 1, 2, 4 and 8 shots
    python few_shot.py --out ../../docs/data/few_shot.jsonl --protocol base_new   # first half of the classes, 16 shots

The recipes are those of `gate.py`, whose rows are the 16 shots of all classes; nothing is chosen anew for fewer shots. A
row says what was measured: {task, method, shots, seed, protocol} and "accuracy" (protocol "all") or "base", "new" and
"harmonic_mean" ("base_new": trained on the first half of the classes, tested on both halves, each among its own
classes; a linear probe knows its own classes alone and has "base" only). All in percent. Zero-shot has 0 shots and one
seed. Rows already in the file are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gate import METHODS, SHIFTED
from measuring import sweep

from duotune import evaluate, load_backbone
from duotune.backbones import Backbone
from duotune.data import ClassificationData, list_datasets, load_dataset
from duotune.evaluation import base_to_new
from duotune.model import PromptedModel
from duotune.recipes import load_recipe
from duotune.recipes.running import run_recipe

SHOTS = {"all": "1,2,4,8", "base_new": "16"}
IDENTITY = ("task", "method", "shots", "seed", "protocol")  # what tells one row from another
BARE = {"workers": 0, "progress": False}  # of evaluations


def measure(backbone: Backbone, task: str, method: str, shots: int, seed: int, protocol: str) -> dict:
    """Train `shots` pictures per class, drawn by `seed`, and test; see the module."""
    whole = load_dataset(task)
    data = whole if protocol == "all" else dataclasses.replace(whole.subset("base"), test=())  # tested below
    data = data.few_shot(shots, seed) if shots else dataclasses.replace(data, train=(), val=())
    recipe = load_recipe(f"tiny_{method}").replace(data=task, seed=seed, shots=shots)
    recipe = recipe.replace(training=dict(save_strategy="no"))
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_recipe(recipe, folder, backbone=backbone, data=data, progress=False)
        run = outcome.summary()  # reads the artifact's size
    if protocol == "all":
        found = {"accuracy": run.accuracy, "classes": len(data.class_names), "images": len(data.test)}
    else:
        found = halves(outcome.model, whole)
    found |= {"seconds": run.seconds, "parameters": run.trainable_parameters, "bytes": run.artifact_bytes}
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in found.items()}
    return dict(task=task, method=method, shots=shots, seed=seed, protocol=protocol, **rounded)


def halves(model: PromptedModel, whole: ClassificationData) -> dict[str, float | int]:
    """Accuracy on base classes, on new ones and their harmonic mean; base alone where a method cannot take others."""
    base, new = whole.subset("base"), whole.subset("new")
    counts = {"classes": len(base.class_names), "images": len(base.test), "new_classes": len(new.class_names)}
    if model.method.config.bound_to_classes:
        return {"base": evaluate(model, base.test, **BARE).accuracy, **counts}
    both = base_to_new(model, whole, **BARE)
    return {"base": both.base, "new": both.new, "harmonic_mean": both.harmonic_mean, **counts}


def cases(tasks: list[str], methods: list[str], shots: list[int], seeds: int, protocols: list[str]) -> Iterator[dict]:
    """What to measure; seed by seed, so that a sweep that is stopped leaves whole rounds."""
    for protocol in protocols:
        for seed in range(1, seeds + 1):
            for task in tasks:
                for method in methods:
                    if method == "zero_shot":
                        if seed == 1:
                            yield dict(task=task, method=method, shots=0, seed=1, protocol=protocol)
                        continue
                    for count in shots or map(int, SHOTS[protocol].split(",")):
                        yield dict(task=task, method=method, shots=count, seed=seed, protocol=protocol)


def main(argv: list[str] | None = None) -> None:
    listed = lambda text: text.split(",")
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--backbone", default="tiny")
    p.add_argument("--dtype", default="bfloat16", help="of the frozen backbone; the prompts stay float32")
    p.add_argument("--tasks", type=listed, help=f"comma-separated; all but {SHIFTED} without it")
    p.add_argument("--methods", type=listed, default=list(METHODS))
    p.add_argument("--shots", type=lambda text: [int(n) for n in listed(text)], help=f"without it: {SHOTS}")
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--protocol", choices=["all", "base_new", "both"], default="all")
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args(argv)
    torch.set_num_threads(args.threads)
    tasks = args.tasks or [name for name in list_datasets() if name.startswith("tiny-") and name != SHIFTED]
    protocols = ["all", "base_new"] if args.protocol == "both" else [args.protocol]
    backbone = load_backbone(args.backbone, dtype=args.dtype, device="cpu")
    wanted = cases(tasks, args.methods, args.shots or [], args.seeds, protocols)
    sweep(args.out, wanted, partial(measure, backbone), IDENTITY)


if __name__ == "__main__":
    main()
