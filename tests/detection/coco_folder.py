"""A COCO folder of drawn pictures: red things are cats, green things dogs; three sizes, some pictures of nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cat": (230, 30, 30), "dog": (30, 200, 40)}
SIZES = ((60, 80), (80, 60), (64, 64))  # height, width


def write_folder(
    root: Path, names=("cat", "dog"), splits=None, sizes=SIZES, seed: int = 0, layout: str = "{split}.json"
) -> Path:
    """train.json beside train/ and so on; boxes 14 to 30 pixels wide and high, up to three per picture."""
    random = np.random.default_rng(seed)
    for split, count in (splits or {"train": 6, "val": 3, "test": 4}).items():
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            height, width = sizes[number % len(sizes)]
            pixels = random.integers(90, 165, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if number == 3 else int(random.integers(1, 4))):
                label = int(random.integers(len(names)))
                w, h = random.integers(14, 31, 2).tolist()
                x, y = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
                pixels[y : y + h, x : x + w] = list(COLOURS.values())[label % 2]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number + 1, "category_id": label + 1, "bbox": [x, y, w, h]}
                )
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number + 1, "file_name": f"{number}.png", "width": width, "height": height})
        categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / layout.format(split=split)).write_text(json.dumps(content))
    return root
