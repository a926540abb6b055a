"""Stanford Cars (Krause et al. 2013): 196 car models, named year first ("2012 Tesla Model S Sedan").

stanford_cars/
├── cars_train/*.jpg, cars_test/*.jpg
├── devkit/cars_train_annos.mat, devkit/cars_meta.mat, cars_test_annos_withlabels.mat   (read through SciPy)
└── split_zhou_StanfordCars.json     without it: the official test part, and our 80/20 split of the training part
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import DataError
from ..base import ImageItem
from ..named import NamedDataset, split_train
from ..split_file import Splits, check_present, load_mat


def year_first(name: str) -> str:
    """ "Tesla Model S Sedan 2012" -> "2012 Tesla Model S Sedan", as the community's prompts have it."""
    model, _, year = name.rpartition(" ")
    return f"{year} {model}".strip()


def read_original(folder: Path, seed: int) -> Splits:
    meta_file = folder / "devkit" / "cars_meta.mat"
    sources = {
        "cars_train": folder / "devkit" / "cars_train_annos.mat",
        "cars_test": folder / "cars_test_annos_withlabels.mat",
    }
    parts = []
    try:
        names = [year_first(str(name)) for name in np.atleast_1d(load_mat(meta_file)["class_names"])]
        for images, file in sources.items():
            rows = np.atleast_1d(load_mat(file)["annotations"])
            items = [ImageItem(folder / images / str(row["fname"]), int(row["class"]) - 1) for row in rows]
            if any(not 0 <= item.label < len(names) for item in items):
                raise DataError(f"{file} has labels outside 1..{len(names)}, which {meta_file} names")
            check_present([item.path for item in items], str(file))
            parts.append(items)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"annotations of Stanford Cars in {folder} are not as expected: {error}") from error
    return split_train(Splits(names, train=parts[0], test=parts[1]), seed)


DATASET = NamedDataset(
    name="stanford_cars",
    title="Stanford Cars, car models",
    num_classes=196,
    folder="stanford_cars",
    layout="cars_train/, cars_test/, split_zhou_StanfordCars.json or devkit/ and cars_test_annos_withlabels.mat",
    images="",
    split_file="split_zhou_StanfordCars.json",
    read_original=read_original,
)
