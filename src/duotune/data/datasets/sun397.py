"""SUN397 (Xiao et al. 2010): 397 kinds of scene.

sun397/
├── SUN397/a/abbey/*.jpg, SUN397/a/apartment_building/outdoor/*.jpg
├── ClassName.txt, Training_01.txt, Testing_01.txt   lines "/a/abbey", "/a/abbey/sun_....jpg"
└── split_zhou_SUN397.json           without it: the first official partition, and our 80/20 split of its training part

A class in a folder of its own is named from the inside out: "outdoor apartment building".
"""

from __future__ import annotations

from pathlib import Path

from ..base import ImageItem
from ..named import NamedDataset, split_train
from ..split_file import Splits, check_present, parse_lines, read_lines


def read_original(folder: Path, seed: int) -> Splits:
    classes = [line.removeprefix("/") for line in read_lines(folder / "ClassName.txt", "one class path per line")]
    labels = {path: label for label, path in enumerate(classes)}

    def parse(line: str) -> ImageItem:
        image = line.removeprefix("/")
        return ImageItem(folder / "SUN397" / image, labels[image.rpartition("/")[0]])

    parts = []
    for file in (folder / "Training_01.txt", folder / "Testing_01.txt"):
        items = parse_lines(file, "lines '/a/abbey/IMAGE.jpg' in a class of ClassName.txt", parse)
        check_present([item.path for item in items], str(file))
        parts.append(items)
    names = [" ".join(reversed(path.split("/")[1:])) for path in classes]
    return split_train(Splits(names, train=parts[0], test=parts[1]), seed)


DATASET = NamedDataset(
    name="sun397",
    title="SUN397, scenes",
    num_classes=397,
    folder="sun397",
    layout="SUN397/, split_zhou_SUN397.json or ClassName.txt, Training_01.txt and Testing_01.txt",
    images="SUN397",
    split_file="split_zhou_SUN397.json",
    read_original=read_original,
)
