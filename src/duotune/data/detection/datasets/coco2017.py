"""COCO 2017 (Lin et al. 2014): 80 classes, 118,287 training and 5,000 validation pictures.

coco/
├── annotations/instances_train2017.json, instances_val2017.json
└── train2017/, val2017/

The test split has no public annotations; val is what papers report on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....errors import DataError
from ..base import DetectionData
from ..coco import read_coco_splits


@dataclass(frozen=True)
class Coco2017:
    """COCO 2017 below ROOT/coco."""

    name: str = "coco2017"
    title: str = "COCO 2017"
    folder: str = "coco"

    def load(self, root: str | Path | None, missing_images: str = "error") -> DetectionData:
        """Read it; a split whose annotation file is absent stays empty.

        Raises:
            DataError: neither annotation file is there, or anything else is not as expected.
        """
        if root is None:
            raise DataError(f"data set {self.name!r} needs root, the folder that holds {self.folder}/")
        folder = Path(root).expanduser() / self.folder
        names = {split: f"{split}2017" for split in ("train", "val")}
        splits = {
            split: (file, folder / name)
            for split, name in names.items()
            if (file := folder / "annotations" / f"instances_{name}.json").is_file()
        }
        if not splits:
            raise DataError(f"no annotations/instances_train2017.json or instances_val2017.json in {folder}")
        return read_coco_splits(self.name, splits, missing_images)


DATASET = Coco2017()
