"""ImageNet (ILSVRC 2012): 1,000 classes; its validation pictures are the test split.

imagenet/
├── images/train/n01440764/*.JPEG, images/val/n01440764/*.JPEG
└── classnames.txt                   lines "n01440764 tench", 1,000 of them in label order

There is no validation split: the community reports the last step's accuracy on the official validation pictures,
which therefore are our `test`.

The community's `classnames.txt` (from CLIP) calls two pairs of classes the same: "missile" and "sunglasses". Class
names must differ here, so one of each pair gets its WordNet name: n04008634 is "projectile", n04355933 "sunglass".
Of the 50,000 test pictures, 200 belong to these four classes.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from ..named import IMAGENET_ENSEMBLE, NamedDataset
from ..split_file import Splits, parse_lines, read_class_folders

DISAMBIGUATED = {"n04008634": ("missile", "projectile"), "n04355933": ("sunglasses", "sunglass")}


def read_wordnet_names(folder: Path) -> dict[str, str]:
    """WordNet id -> class name from `classnames.txt`, in its order."""

    def parse(line: str) -> tuple[str, str]:
        wordnet, name = line.split(" ", 1)
        doubled, own = DISAMBIGUATED.get(wordnet, (None, name))
        return wordnet, own if name == doubled else name

    return dict(parse_lines(folder / "classnames.txt", "lines 'n01440764 tench' (copy ImageNet's)", parse))


def read_wordnet_folders(folder: Path, images: Path) -> Splits:
    """Folders named by WordNet id; labels in their sorted order; all pictures in `train`. Raises DataError."""
    names = read_wordnet_names(folder)
    splits = read_class_folders(images)
    if unknown := [name for name in splits.class_names if name not in names]:
        raise DataError(f"{images} has the folders {unknown[:5]}, which {folder / 'classnames.txt'} does not name")
    splits.class_names = [names[wordnet] for wordnet in splits.class_names]
    return splits


def read_original(folder: Path, seed: int) -> Splits:
    train = read_wordnet_folders(folder, folder / "images" / "train")
    val = read_wordnet_folders(folder, folder / "images" / "val")
    if train.class_names != val.class_names:
        raise DataError(f"{folder}/images: train/ and val/ have different class folders")
    return Splits(train.class_names, train=train.train, test=val.train)


DATASET = NamedDataset(
    name="imagenet",
    title="ImageNet (ILSVRC 2012)",
    num_classes=1000,
    folder="imagenet",
    layout="images/train/n*/, images/val/n*/, classnames.txt",
    read_original=read_original,
    templates=IMAGENET_ENSEMBLE,
)
