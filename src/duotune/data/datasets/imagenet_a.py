"""ImageNet-A (Hendrycks et al. 2021), pictures that ResNets get wrong, 200 of ImageNet's classes: for testing only.

imagenet-adversarial/
├── imagenet-a/n*/*.jpg
└── classnames.txt                   a copy of ImageNet's
"""

from __future__ import annotations

from pathlib import Path

from ..named import IMAGENET_ENSEMBLE, NamedDataset
from ..split_file import Splits
from .imagenet import read_wordnet_folders


def read_original(folder: Path, seed: int) -> Splits:
    splits = read_wordnet_folders(folder, folder / "imagenet-a")
    return Splits(splits.class_names, test=splits.train)


DATASET = NamedDataset(
    name="imagenet_a",
    title="ImageNet-A, adversarial",
    num_classes=200,
    folder="imagenet-adversarial",
    layout="imagenet-a/n*/, classnames.txt",
    read_original=read_original,
    templates=(*IMAGENET_ENSEMBLE, "a photo of a {}."),
)
