"""Train five methods on the embedded CLIP and an embedded task, and compare them.

Takes a few minutes on two cores and needs no network. Writes runs/demo/<method>/ (artifacts), runs/demo/report.html and
runs/demo/metrics.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..recipes import Recipe, load_recipe
from .options import option, quiet
from .output import counted, size, table

HELP = "compare zero-shot, CoOp, VPT, VLP and DPT on embedded data"
TASK = "tiny-effects"
METHODS = ("zero_shot", "coop", "vpt", "vlp", "dpt")
"""Keys of metrics.json; the recipe of each is `tiny_<key>`."""


@dataclass(kw_only=True)
class Options:
    data: str = option(TASK, help="embedded task, see `duotune list datasets`", metavar="NAME")
    shots: int = option(16, help="training images per class")
    seed: int = option(1, help="of the shots, the random start and the order of images")
    epochs: int | None = option(None, help="instead of the recipes' epochs")
    out: str = option("runs/demo", help="folder to write into; an earlier demo in it is replaced", metavar="FOLDER")


def run(options: Options) -> int:
    quiet()
    from ..recipes.claim import claimed

    changes = {"data": options.data, "shots": options.shots, "seed": options.seed}
    if options.epochs is not None:
        changes["epochs"] = options.epochs
    recipes = {name: load_recipe(f"tiny_{name}").replace(**changes).validate() for name in METHODS}
    with claimed(options.out) as folder:
        _compare(options, recipes, folder)
    return 0


def _compare(options: Options, recipes: dict[str, Recipe], folder: Path) -> None:
    from ..backbones import load_backbone
    from ..recipes.running import examples, load_data, run_recipe
    from ..report import write_metrics, write_report

    backbone = load_backbone("tiny")
    data = load_data(recipes["dpt"])
    shots = counted(options.shots, "shot") if options.shots else "all training images"
    about = {
        "backbone": "tiny (embedded CLIP)",
        "data": f"{data.name}: {len(data.class_names)} classes, {shots}, {len(data.test)} test images",
        "template": data.template,
        "seed": options.seed,
    }
    print("\n".join(f"{key + ':':<10}{value}" for key, value in about.items()), flush=True)
    outcomes = [
        run_recipe(recipe, folder / name, overwrite=True, backbone=backbone, data=data, name=name)
        for name, recipe in recipes.items()
    ]
    runs = [outcome.summary() for outcome in outcomes]
    report = write_report(folder / "report.html", "duotune demo", about, runs, examples(outcomes))
    metrics = write_metrics(folder / "metrics.json", runs)
    print()
    print(
        table(
            [
                [
                    r.method,
                    f"{r.accuracy:.1f}",
                    f"{r.trainable_parameters:,}",
                    size(r.artifact_bytes),
                    f"{r.seconds:.1f}",
                ]
                for r in runs
            ],
            ["method", "accuracy (%)", "trainable parameters", "artifact", "seconds"],
        )
    )
    print(f"\nwrote {report}, {metrics} and an artifact per method, such as {folder / METHODS[-1]}")
