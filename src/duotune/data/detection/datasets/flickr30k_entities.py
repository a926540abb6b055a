"""Flickr30k Entities (Plummer et al. 2015): 31,783 pictures, five sentences each, phrases with boxes.

flickr30k/
├── flickr30k_images/*.jpg (or flickr30k-images/)
├── Sentences/*.txt, Annotations/*.xml
└── train.txt, val.txt, test.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ....errors import DataError
from ..base import SPLITS, DetectionData
from ..flickr30k import read_flickr30k

IMAGE_FOLDERS = ("flickr30k_images", "flickr30k-images", "images")


@dataclass(frozen=True)
class Flickr30kEntities:
    """Flickr30k Entities below ROOT/flickr30k."""

    name: str = "flickr30k_entities"
    title: str = "Flickr30k Entities"
    folder: str = "flickr30k"

    def load(self, root: str | Path | None) -> DetectionData:
        """Read it; a split whose list is absent stays empty.

        Raises:
            DataError: no list, no pictures, or anything else not as expected.
        """
        if root is None:
            raise DataError(f"data set {self.name!r} needs root, the folder that holds {self.folder}/")
        folder = Path(root).expanduser() / self.folder
        splits = {split: folder / f"{split}.txt" for split in SPLITS if (folder / f"{split}.txt").is_file()}
        images = next((folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
        if not splits or images is None:
            raise DataError(f"{folder} must hold train.txt, val.txt or test.txt, and {IMAGE_FOLDERS[0]}/")
        return read_flickr30k(splits, images, folder, self.name)


DATASET = Flickr30kEntities()
