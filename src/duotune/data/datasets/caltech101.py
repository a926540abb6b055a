"""Caltech-101: pictures of objects (Fei-Fei et al. 2004), without the background class and the doubled faces.

caltech-101/
├── 101_ObjectCategories/CLASS/*.jpg
└── split_zhou_Caltech101.json       without it: our split of the class folders, 50/20/30
"""

from __future__ import annotations

from pathlib import Path

from ..named import NamedDataset, split_whole
from ..split_file import Splits, read_class_folders

IGNORED = ("BACKGROUND_Google", "Faces_easy")


def read_original(folder: Path, seed: int) -> Splits:
    return split_whole(read_class_folders(folder / "101_ObjectCategories", IGNORED), seed)


DATASET = NamedDataset(
    name="caltech101",
    title="Caltech-101, objects",
    num_classes=100,
    folder="caltech-101",
    layout="101_ObjectCategories/CLASS/*.jpg, split_zhou_Caltech101.json",
    images="101_ObjectCategories",
    split_file="split_zhou_Caltech101.json",
    read_original=read_original,
    renamed={"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"},
)
