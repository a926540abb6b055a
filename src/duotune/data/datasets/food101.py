"""Food-101 (Bossard et al. 2014): 101 dishes.

food-101/
├── images/CLASS/*.jpg
└── split_zhou_Food101.json          without it: our split of the class folders, 50/20/30
"""

from __future__ import annotations

from pathlib import Path

from ..named import NamedDataset, split_whole
from ..split_file import Splits, read_class_folders


def read_original(folder: Path, seed: int) -> Splits:
    return split_whole(read_class_folders(folder / "images"), seed)


DATASET = NamedDataset(
    name="food101",
    title="Food-101, dishes",
    num_classes=101,
    folder="food-101",
    layout="images/CLASS/*.jpg, split_zhou_Food101.json",
    split_file="split_zhou_Food101.json",
    read_original=read_original,
    template="a photo of {}, a type of food.",
)
