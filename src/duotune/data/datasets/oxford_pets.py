"""Oxford-IIIT Pets (Parkhi et al. 2012): 37 breeds of cats and dogs.

oxford_pets/
├── images/Breed_name_12.jpg
├── annotations/{trainval,test}.txt  lines "Breed_name_12 LABEL SPECIES NUMBER", labels 1..37
└── split_zhou_OxfordPets.json       without it: the official test part, and our 80/20 split of trainval
"""

from __future__ import annotations

from pathlib import Path

from ..base import ImageItem
from ..named import NamedDataset, split_train
from ..split_file import Splits, check_present, names_of_labels, parse_lines


def read_original(folder: Path, seed: int) -> Splits:
    def parse(line: str) -> tuple[ImageItem, str]:
        image, label = line.split(" ")[:2]
        return ImageItem(folder / "images" / f"{image}.jpg", int(label) - 1), image.rsplit("_", 1)[0].lower()

    parts = []
    pairs = []
    for file in (folder / "annotations" / "trainval.txt", folder / "annotations" / "test.txt"):
        rows = parse_lines(file, "lines 'IMAGE LABEL SPECIES NUMBER'", parse)
        check_present([item.path for item, _ in rows], str(file))
        pairs += [(item.label, breed) for item, breed in rows]
        parts.append([item for item, _ in rows])
    names = names_of_labels(pairs, str(folder / "annotations"))
    return split_train(Splits(names, train=parts[0], test=parts[1]), seed)


DATASET = NamedDataset(
    name="oxford_pets",
    title="Oxford-IIIT Pets, breeds of cats and dogs",
    num_classes=37,
    folder="oxford_pets",
    layout="images/*.jpg, split_zhou_OxfordPets.json or annotations/{trainval,test}.txt",
    split_file="split_zhou_OxfordPets.json",
    read_original=read_original,
    template="a photo of a {}, a type of pet.",
)
