"""FGVC-Aircraft (Maji et al. 2013): 100 variants of aircraft, with official train, val and test lists.

fgvc_aircraft/
├── images/*.jpg
├── variants.txt                     one class name per line, in label order
└── images_variant_{train,val,test}.txt   lines "IMAGE CLASS NAME"
"""

from __future__ import annotations

from pathlib import Path

from ..base import ImageItem
from ..named import NamedDataset
from ..split_file import Splits, check_present, parse_lines, read_lines


def read_original(folder: Path, seed: int) -> Splits:
    names = read_lines(folder / "variants.txt", "one aircraft variant per line")
    labels = {name: label for label, name in enumerate(names)}
    splits = Splits(names)
    for kind in ("train", "val", "test"):
        file = folder / f"images_variant_{kind}.txt"

        def parse(line: str) -> ImageItem:
            image, name = line.split(" ", 1)
            return ImageItem(folder / "images" / f"{image}.jpg", labels[name])

        items = parse_lines(file, "lines 'IMAGE VARIANT' with a variant of variants.txt", parse)
        check_present([item.path for item in items], str(file))
        setattr(splits, kind, items)
    return splits


DATASET = NamedDataset(
    name="fgvc_aircraft",
    title="FGVC-Aircraft, variants of aircraft",
    num_classes=100,
    folder="fgvc_aircraft",
    layout="images/*.jpg, variants.txt, images_variant_{train,val,test}.txt",
    read_original=read_original,
    template="a photo of a {}, a type of aircraft.",
)
