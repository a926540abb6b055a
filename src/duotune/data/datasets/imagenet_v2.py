"""ImageNet-V2 (Recht et al. 2019), matched frequency: ten new test pictures per class of ImageNet: for testing only.

imagenetv2/
├── imagenetv2-matched-frequency-format-val/0/*.jpeg ... 999/*.jpeg
└── classnames.txt                   a copy of ImageNet's; folder i is its line i, counted from 0
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...errors import DataError
from ..named import IMAGENET_ENSEMBLE, NamedDataset
from ..split_file import Splits, read_class_folders
from .imagenet import read_wordnet_names

IMAGES = "imagenetv2-matched-frequency-format-val"


def read_original(folder: Path, seed: int) -> Splits:
    names = list(read_wordnet_names(folder).values())
    found = read_class_folders(folder / IMAGES)  # in the order of text: "10" before "2"
    if wrong := [f for f in found.class_names if not f.isdecimal() or int(f) >= len(names)]:
        raise DataError(f"{folder / IMAGES} has the folders {wrong[:5]}; expected numbers 0..{len(names) - 1}")
    items = [replace(item, label=int(found.class_names[item.label])) for item in found.train]
    return Splits(names, test=sorted(items, key=lambda item: (item.label, item.key)))


DATASET = NamedDataset(
    name="imagenet_v2",
    title="ImageNet-V2, matched frequency",
    num_classes=1000,
    folder="imagenetv2",
    layout=f"{IMAGES}/0..999/, classnames.txt",
    read_original=read_original,
    templates=(*IMAGENET_ENSEMBLE, "a photo of a {}."),
)
