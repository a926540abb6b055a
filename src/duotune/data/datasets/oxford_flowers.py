"""Oxford Flowers 102 (Nilsback & Zisserman 2008).

oxford_flowers/
├── jpg/image_00001.jpg ...
├── imagelabels.mat                  labels 1..102 of the pictures in order (read through SciPy)
├── cat_to_name.json                 {"1": "pink primrose", ...}
└── split_zhou_OxfordFlowers.json    without it: our split of all pictures, 50/20/30
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DataError
from ...reading import read_json
from ..base import ImageItem
from ..named import NamedDataset, split_whole
from ..split_file import Splits, check_present, load_mat, names_of_labels


def read_original(folder: Path, seed: int) -> Splits:
    names_file, labels_file = folder / "cat_to_name.json", folder / "imagelabels.mat"
    try:
        listed = read_json(names_file, 'flower names {"1": name, ...}')
        names = names_of_labels(((int(number) - 1, str(name)) for number, name in listed.items()), str(names_file))
    except (ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f'{names_file} is not a JSON object {{"1": name, ...}}: {error}') from error
    content = load_mat(labels_file)
    if "labels" not in content:
        raise DataError(f"{labels_file} holds no variable 'labels'")
    labels = [int(label) - 1 for label in np.atleast_1d(content["labels"])]
    if outside := sorted({label + 1 for label in labels if not 0 <= label < len(names)}):
        raise DataError(f"{labels_file} has the labels {outside[:5]}, which {names_file.name} does not name")
    items = [ImageItem(folder / "jpg" / f"image_{i:05d}.jpg", label) for i, label in enumerate(labels, start=1)]
    check_present([item.path for item in items], str(labels_file))
    return split_whole(Splits(names, items), seed)


DATASET = NamedDataset(
    name="oxford_flowers",
    title="Oxford Flowers 102",
    num_classes=102,
    folder="oxford_flowers",
    layout="jpg/*.jpg, split_zhou_OxfordFlowers.json or imagelabels.mat and cat_to_name.json",
    images="jpg",
    split_file="split_zhou_OxfordFlowers.json",
    read_original=read_original,
    template="a photo of a {}, a type of flower.",
)
