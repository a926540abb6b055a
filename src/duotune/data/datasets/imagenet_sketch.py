"""ImageNet-Sketch (Wang et al. 2019), black-and-white sketches of ImageNet's classes: for testing only.

imagenet-sketch/
├── images/n*/*.jpg
└── classnames.txt                   a copy of ImageNet's
"""

from __future__ import annotations

from pathlib import Path

from ..named import IMAGENET_ENSEMBLE, NamedDataset
from ..split_file import Splits
from .imagenet import read_wordnet_folders


def read_original(folder: Path, seed: int) -> Splits:
    splits = read_wordnet_folders(folder, folder / "images")
    return Splits(splits.class_names, test=splits.train)


DATASET = NamedDataset(
    name="imagenet_sketch",
    title="ImageNet-Sketch",
    num_classes=1000,
    folder="imagenet-sketch",
    layout="images/n*/, classnames.txt",
    read_original=read_original,
    templates=(*IMAGENET_ENSEMBLE, "a photo of a {}."),
)
