"""LVIS v1 (Gupta et al. 2019): 1,203 classes on COCO's pictures; see `duotune.data.detection.lvis`.

coco/
├── annotations/lvis_v1_train.json, lvis_v1_val.json, lvis_v1_minival.json (or a list of ids of that name)
└── train2017/, val2017/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....errors import DataError
from ..base import DetectionData
from ..lvis import read_lvis

MINIVAL_FILES = ("lvis_v1_minival.json", "lvis_v1_minival.txt", "lvis_v1_minival_inserted_image_name.json")


@dataclass(frozen=True)
class LvisV1:
    """LVIS v1 below ROOT/coco.

    Attributes:
        minival: the val split holds the 5,000 MiniVal pictures alone.
    """

    name: str
    minival: bool
    title: str = "LVIS v1"
    folder: str = "coco"

    def load(
        self, root: str | Path | None, minival: str | Path | None = None, missing_images: str = "error"
    ) -> DetectionData:
        """Read it; a split whose annotation file is absent stays empty.

        Args:
            minival: annotation file or list of ids that says which validation pictures to keep.

        Raises:
            DataError: no annotation file is there, or anything else is not as expected.
        """
        if root is None:
            raise DataError(f"data set {self.name!r} needs root, the folder that holds {self.folder}/")
        folder = Path(root).expanduser() / self.folder
        names = {split: folder / "annotations" / f"lvis_v1_{split}.json" for split in ("train", "val")}
        splits = {split: path for split, path in names.items() if path.is_file()}
        lists = [Path(minival)] if minival is not None else [folder / "annotations" / name for name in MINIVAL_FILES]
        chosen = next((path for path in lists if path.is_file()), None) if self.minival or minival is not None else None
        if chosen is None and (self.minival or minival is not None):
            raise DataError(f"no such file: {lists[0]}; expected MiniVal's annotations or list of image ids")
        if chosen is not None and "val" not in splits:
            splits["val"] = chosen  # MiniVal's annotations are complete: val is not needed
        if not splits:
            raise DataError(f"no annotations/lvis_v1_train.json or lvis_v1_val.json in {folder}")
        return read_lvis(splits, folder, self.name, chosen, missing_images)


DATASET = LvisV1("lvis_v1", minival=False)
MINIVAL = LvisV1("lvis_minival", minival=True)
