"""Train five methods on the embedded CLIP and an embedded task, three on the embedded detector, and compare them.

Takes a few minutes on two cores and needs no network. Writes runs/demo/<method>/ (artifacts), runs/demo/report.html and
runs/demo/metrics.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..recipes import Recipe, load_recipe
from ..writing import refuse_links
from .demo_detection import compare_detectors, detection_recipes
from .options import option, quiet
from .output import aligned, counted, size, table

HELP = "compare methods on embedded models and data: CoOp, VPT, VLP, DPT; SDPT and others on a detector"
TASK = "tiny-effects"
METHODS = ("zero_shot", "coop", "vpt", "vlp", "dpt")
"""Keys of metrics.json; the recipe of each is `tiny_<key>`."""
DETECTION_TASK = "tiny-scenes-concepts"


@dataclass(kw_only=True)
class Options:
    data: str = option(TASK, help="embedded task, see `duotune list datasets`", metavar="NAME")
    shots: int = option(16, help="training images per class")
    seed: int = option(1, help="of the shots, the random start and the order of images")
    epochs: int | None = option(None, help="instead of the recipes' epochs (detectors: 5)")
    detection: str = option(
        DETECTION_TASK, help="embedded detection task; none leaves the detector out", metavar="NAME"
    )
    device: str | None = option(None, help="cpu, cuda, ...; CUDA if there is one", metavar="NAME")
    out: str = option("runs/demo", help="folder to write into; an earlier demo in it is replaced", metavar="FOLDER")


def run(options: Options) -> int:
    quiet()
    from ..recipes.claim import claimed

    changes = {"data": options.data, "shots": options.shots, "seed": options.seed}
    if options.epochs is not None:
        changes["epochs"] = options.epochs
    recipes = {name: load_recipe(f"tiny_{name}").replace(**changes).validate() for name in METHODS}
    detectors = {}
    if options.detection != "none":
        detectors = detection_recipes(options.detection, options.seed, options.epochs)
    with claimed(options.out) as folder:
        refuse_links(folder, *recipes, "detection", *(f"detection/{name}" for name in detectors))
        _compare(options, recipes, detectors, folder)
    return 0


def _compare(options: Options, recipes: dict[str, Recipe], detectors: dict[str, Recipe], folder: Path) -> None:
    from ..backbones import load_backbone
    from ..recipes.running import examples, load_data, run_recipe
    from ..report import write_metrics, write_report

    backbone = load_backbone("tiny", device=options.device)
    data = load_data(recipes["dpt"])
    shots = counted(options.shots, "shot") if options.shots else "all training images"
    about = {
        "backbone": "tiny (embedded CLIP)",
        "data": f"{data.name}: {len(data.class_names)} classes, {shots}, {len(data.test)} test images",
        "template": data.template,
        "seed": options.seed,
    }
    print(aligned(about), flush=True)
    outcomes = [
        run_recipe(recipe, folder / name, overwrite=True, backbone=backbone, data=data, name=name)
        for name, recipe in recipes.items()
    ]
    runs = [outcome.summary() for outcome in outcomes]
    part = compare_detectors(detectors, folder / "detection", options.device) if detectors else None
    report = write_report(folder / "report.html", "duotune demo", about, runs, examples(outcomes), part)
    metrics = write_metrics(folder / "metrics.json", runs, part.runs if part else ())
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
    if part:
        rows = [
            [
                r.method,
                f"{r.ap or 0:.1f}",
                f"{r.ap50 or 0:.1f}",
                f"{r.trainable_parameters:,}",
                size(r.artifact_bytes),
                f"{r.seconds:.1f}",
            ]
            for r in part.runs
        ]
        headings = ["method", "AP (%)", "AP50 (%)", "trainable parameters", "artifact", "seconds"]
        print(f"\n{part.about['data']}\n{table(rows, headings)}")
    print(f"\nwrote {report}, {metrics} and an artifact per method, such as {folder / METHODS[-1]}")
