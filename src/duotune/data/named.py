"""A data set known by name: where its files lie under a root folder, and how they are read.

The layout is that of CoOp's community (Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022,
github.com/KaiyangZhou/CoOp, DATASETS.md). Where the community's split file is present, it decides. Where it is not,
the original annotations are read, and what they leave open is split by us: `sampling.split` with the given seed and
the community's shares (50/20/30, or 80/20 of an official training part). Our pictures then differ from theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .base import ClassificationData, make_data
from .sampling import split
from .split_file import Splits, read_split_file

# Seven prompts that do nearly as well on ImageNet as CLIP's eighty (Radford et al. 2021, the authors' notebook).
IMAGENET_ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclass(frozen=True)
class NamedDataset:
    """How a named data set is found and read.

    Attributes:
        name: in the table.
        title: its proper name and what it shows.
        num_classes: in the complete data set; not enforced, so that parts can be read.
        folder: its folder under the root.
        layout: what must lie in the folder, for messages.
        template: hand-written prompt.
        templates: ensemble of prompts for zero-shot.
        images: folder below `folder` that the split file's paths are relative to.
        split_file: the community's split file, relative to `folder`; None if it has none.
        read_original: (folder, seed) -> Splits from the original annotations.
        renamed: class name in the files -> class name in prompts.
    """

    name: str
    title: str
    num_classes: int
    folder: str
    layout: str
    read_original: Callable[[Path, int], Splits]
    template: str = "a photo of a {}."
    templates: tuple[str, ...] = ()
    images: str = "images"
    split_file: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)

    def load(self, root: str | Path | None, seed: int = 0) -> ClassificationData:
        """Read it from `root`/`folder`.

        Args:
            root: the folder that holds the data sets' folders.
            seed: of our own split, used only where no split file and no official split decides.

        Raises:
            DataError: anything absent or not as expected.
        """
        if root is None:
            raise DataError(f"data set {self.name!r} needs root, the folder that holds {self.folder}/ ({self.layout})")
        folder = Path(root).expanduser() / self.folder
        if not folder.is_dir():
            raise DataError(f"no such folder: {folder}; expected {self.title} there: {self.layout}")
        if self.split_file and (folder / self.split_file).is_file():
            splits = read_split_file(folder / self.split_file, folder / self.images)
        else:
            splits = self.read_original(folder, seed)
        names = [self.renamed.get(name, name) for name in splits.class_names]
        return make_data(
            self.name,
            names,
            splits.train,
            splits.val,
            splits.test,
            template=self.template,
            templates=self.templates,
        )


def split_whole(splits: Splits, seed: int) -> Splits:
    """50 % train, 20 % val, 30 % test of a data set without official splits."""
    return Splits(splits.class_names, *split(splits.train, splits.class_names, 0.2, 0.3, seed))


def split_train(splits: Splits, seed: int) -> Splits:
    """20 % of an official training part become val; the official test part stays."""
    train, val, _ = split(splits.train, splits.class_names, 0.2, 0.0, seed)
    return Splits(splits.class_names, train, val, splits.test)
