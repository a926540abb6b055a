"""ImageNet-R (Hendrycks et al. 2021), art and other renditions, 200 of ImageNet's classes: for testing only.

imagenet-rendition/
├── imagenet-r/n*/*.jpg
└── classnames.txt                   a copy of ImageNet's
"""

from __future__ import annotations

from pathlib import Path

from ..named import IMAGENET_ENSEMBLE, NamedDataset
from ..split_file import Splits
from .imagenet import read_wordnet_folders


def read_original(folder: Path, seed: int) -> Splits:
    splits = read_wordnet_folders(folder, folder / "imagenet-r")
    return Splits(splits.class_names, test=splits.train)


DATASET = NamedDataset(
    name="imagenet_r",
    title="ImageNet-R, renditions",
    num_classes=200,
    folder="imagenet-rendition",
    layout="imagenet-r/n*/, classnames.txt",
    read_original=read_original,
    templates=(*IMAGENET_ENSEMBLE, "a photo of a {}."),
)
