"""The demo's second half: methods on the embedded detector and a detection task."""

from __future__ import annotations

from pathlib import Path

from ..recipes import Recipe, load_recipe

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


def compare_detectors(recipes: dict[str, Recipe], folder: Path):
    """Run the recipes, artifacts in folder/<method>, and draw what each finds. Returns a `DetectionPart`."""
    from ..backbones import load_backbone
    from ..data.detection.torch_dataset import open_detection_image
    from ..drawing import draw_boxes
    from ..recipes.running import load_data, run_recipe
    from ..report import DetectionPart

    backbone, data = load_backbone("tiny-glip"), load_data(recipes["sdpt"])
    items = [data.test[round(i * (len(data.test) - 1) / (PICTURES - 1))] for i in range(PICTURES)]
    images = [open_detection_image(item) for item in items]

    def drawn(image, boxes, labels):
        large = image.resize((image.width * ENLARGED, image.height * ENLARGED))
        return draw_boxes(
            large, [[v * ENLARGED for v in b] for b in boxes], [data.class_names[k] for k in labels], labels
        )

    about = {
        "backbone": "tiny-glip (embedded GLIP)",
        "data": f"{data.name}: {len(data.class_names)} classes, {len(data.train)} training and {len(data.test)} test "
        "images",
    }
    print("\n" + "\n".join(f"{key + ':':<10}{value}" for key, value in about.items()), flush=True)
    rows = [{"truth": drawn(im, item.boxes.tolist(), item.labels.tolist())} for im, item in zip(images, items)]
    runs = []
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        print(f"{name} (method {number} of {len(recipes)})", flush=True)
        outcome = run_recipe(recipe, folder / name, overwrite=True, backbone=backbone, data=data, name=name)
        runs.append(outcome.summary())
        found = outcome.model.detect(images, PICTURES, score_threshold=SHOWN_SCORE)
        for row, image, boxes in zip(rows, images, found):
            row[name] = drawn(image, boxes["boxes"].tolist(), boxes["labels"].tolist())
    return DetectionPart(about, runs, rows)


__all__ = ["RECIPES", "compare_detectors", "detection_recipes"]
