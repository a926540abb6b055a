"""The demo's second half: methods on the embedded detector and a detection task."""

from __future__ import annotations

from pathlib import Path

from ..recipes import Recipe, load_recipe
from .output import aligned

RECIPES = {
    "zero_shot": "tiny_detection_zero_shot",
    "linear_probe": "tiny_detection_linear_probe",
    "full": "tiny_full",
    "sdpt": "tiny_sdpt",
}
"""Keys of metrics.json -> the recipe of each."""
PICTURES, ENLARGED = 6, 2  # of the report, and how many times larger than they are
SHOWN_SCORE = 0.35  # least score of the boxes drawn
EPOCHS = 5  # half of the recipes': the demo is to end within minutes


def detection_recipes(task: str, seed: int, epochs: int | None) -> dict[str, Recipe]:
    """What the demo runs. Raises ConfigError if something does not fit."""
    changes = {"data": task, "seed": seed}
    recipes = {}
    for name, recipe in RECIPES.items():
        more = {} if name == "zero_shot" else {"epochs": EPOCHS if epochs is None else epochs}
        recipes[name] = load_recipe(recipe).replace(**changes, **more).validate()
    return recipes


def compare_detectors(recipes: dict[str, Recipe], folder: Path, device: str | None = None):
    """Run the recipes, artifacts in folder/<method>, and draw what each finds. Returns a `DetectionPart`."""
    from ..backbones import load_backbone
    from ..recipes.running import load_data, run_recipe, scenes
    from ..report import DetectionPart

    backbone, data = load_backbone("tiny-glip", device=device), load_data(recipes["sdpt"])
    about = {
        "backbone": "tiny-glip (embedded GLIP)",
        "data": f"{data.name}: {len(data.class_names)} classes, {len(data.train)} training and {len(data.test)} test "
        "images",
    }
    print("\n" + aligned(about), flush=True)
    outcomes = []
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        print(f"{name} (method {number} of {len(recipes)})", flush=True)
        outcomes.append(run_recipe(recipe, folder / name, overwrite=True, backbone=backbone, data=data, name=name))
    runs = [outcome.summary() for outcome in outcomes]
    return DetectionPart(about, runs, scenes(outcomes, PICTURES, SHOWN_SCORE, ENLARGED))


__all__ = ["RECIPES", "compare_detectors", "detection_recipes"]
