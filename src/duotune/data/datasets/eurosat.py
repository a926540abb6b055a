"""EuroSAT (Helber et al. 2019): Sentinel-2 pictures of 10 kinds of land use.

eurosat/
├── 2750/CLASS/*.jpg
└── split_zhou_EuroSAT.json          without it: our split of the class folders, 50/20/30

The folders' names are run-together words; CLIP is asked for the longer ones below.
"""

from __future__ import annotations

from pathlib import Path

from ..named import NamedDataset, split_whole
from ..split_file import Splits, read_class_folders


def read_original(folder: Path, seed: int) -> Splits:
    return split_whole(read_class_folders(folder / "2750"), seed)


DATASET = NamedDataset(
    name="eurosat",
    title="EuroSAT, satellite pictures of land use",
    num_classes=10,
    folder="eurosat",
    layout="2750/CLASS/*.jpg, split_zhou_EuroSAT.json",
    images="2750",
    split_file="split_zhou_EuroSAT.json",
    read_original=read_original,
    template="a centered satellite photo of {}.",
    renamed={
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
)
