"""Describable Textures (Cimpoi et al. 2014): 47 kinds of texture.

dtd/
├── images/CLASS/*.jpg
└── split_zhou_DescribableTextures.json   without it: our split of the class folders, 50/20/30, as the community's
                                          file has it (DTD's own ten partitions are equal thirds and are not used)
"""

from __future__ import annotations

from pathlib import Path

from ..named import NamedDataset, split_whole
from ..split_file import Splits, read_class_folders


def read_original(folder: Path, seed: int) -> Splits:
    return split_whole(read_class_folders(folder / "images"), seed)


DATASET = NamedDataset(
    name="dtd",
    title="Describable Textures",
    num_classes=47,
    folder="dtd",
    layout="images/CLASS/*.jpg, split_zhou_DescribableTextures.json",
    split_file="split_zhou_DescribableTextures.json",
    read_original=read_original,
    template="{} texture.",
)
