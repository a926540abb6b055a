"""The map-style dataset that DataLoader workers read, its collator, and the check for broken images.

Broken images are looked for before training (`check_images`): every item is read once, in workers, and bad ones
leave the list by name. The alternative, to find them while training and put another picture in their place, would
count that picture twice in an evaluation, let cached features disagree with the pictures, and need a channel back
from the workers. The check costs about a third of a decoding pass for JPEGs and far less for PNGs (see
`images.probe_image`), and after it an epoch has a fixed length and order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ConfigError, DataError
from ..processes import ALONE, Processes
from .base import ImageItem, first_few
from .images import open_image, probe_image
from .layout import plain_name
from .transforms import Transform


class ImageDataset(Dataset):
    """Items as {"pixel_values": (3, S, S) float32, "labels": int, "index": int}, decoded where they are asked for.

    Args:
        items: what to read, in order.
        transform: picture -> pixels.
        views: V > 0: each picture has V fixed augmented views, and epoch e shows view e mod V. A view depends on the
            seed, the view's number and the picture's `short_key`, not on the list it is in. 0: a fresh view every
            epoch, reproducible from (seed, epoch, index).
        seed: other augmentations for another seed.
        orientation: obey the EXIF orientation tag.

    Raises:
        ConfigError: negative views or seed.
        DataError: from `dataset[i]`, if the image cannot be read.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        transform: Transform,
        views: int = 0,
        seed: int = 0,
        orientation: bool = True,
    ):
        if views < 0 or seed < 0:
            raise ConfigError(f"views and seed must not be negative: {views}, {seed}")
        self.items, self.transform = tuple(items), transform
        self.views, self.seed, self.orientation = views, seed, orientation
        # Shared memory: workers that outlive the epoch (persistent_workers) see the new number too.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Show this epoch's views from now on. Call between epochs: accelerate's data loaders do."""
        self._epoch.fill_(epoch)

    @property
    def view(self) -> int:
        """Number of the view that the present epoch shows; the epoch itself if views are fresh."""
        return self.epoch % self.views if self.views else self.epoch

    def rng(self, index: int) -> np.random.Generator:
        """The random numbers that item `index` is augmented with in the present epoch."""
        if self.views:
            name = hashlib.sha256(plain_name(self.items[index].short_key).encode(errors="surrogatepass")).digest()
            return np.random.default_rng([self.seed, self.view, int.from_bytes(name[:8], "little")])
        return np.random.default_rng([self.seed, self.epoch, index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        pixels = self.transform(open_image(item, self.orientation), self.rng(index))
        return {"pixel_values": torch.from_numpy(pixels), "labels": item.label, "index": index}

    def key(self) -> str:
        """A text that differs whenever pixels of the same image may: transform, views, seed. Part of cache keys."""
        augmentation = f"views{self.views}:seed{self.seed}" if self.views else f"fresh:seed{self.seed}"
        return f"{self.transform.key()}|{augmentation}|{'upright' if self.orientation else 'as stored'}"


class OverImages(Dataset):
    """A dataset that stands over one of images, `self.images`: of its length, and shown in its epochs."""

    images: Any

    def __len__(self) -> int:
        return len(self.images)

    @property
    def epoch(self) -> int:
        return self.images.epoch

    def set_epoch(self, epoch: int) -> None:
        """Show this epoch's views from now on."""
        self.images.set_epoch(epoch)


def collate(batch: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """-> {"pixel_values": (B, 3, S, S) float32, "labels": (B,) int64, "index": (B,) int64}."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in batch]),
        "labels": torch.tensor([row["labels"] for row in batch], dtype=torch.int64),
        "index": torch.tensor([row["index"] for row in batch], dtype=torch.int64),
    }


@dataclass(frozen=True)
class ImageReport:
    """What `check_images` found.

    Attributes:
        checked: number of items read.
        broken: name of each item that cannot be read -> why.
    """

    checked: int
    broken: dict[str, str]

    @property
    def broken_share(self) -> float:
        return len(self.broken) / self.checked if self.checked else 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        if not self.broken:
            return f"{self.checked} images checked, all can be read"
        head = f"{len(self.broken)} of {self.checked} images cannot be read and are skipped:"
        return "\n".join([head, *(f"  {reason}" for reason in self.broken.values())])


class _Probe(Dataset):
    """item number -> "" or the error."""

    def __init__(self, items: Sequence[ImageItem], probe: Callable[[Any], None]):
        self.items, self.probe = items, probe

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> str:
        try:
            self.probe(self.items[index])
        except DataError as error:
            return str(error)
        return ""


def check_images(
    items: Sequence[ImageItem],
    workers: int = 0,
    max_broken_share: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
    probe: Callable[[Any], None] = probe_image,
    processes: Processes = ALONE,
) -> tuple[list[ImageItem], ImageReport]:
    """Read every item once and leave out those that cannot be read.

    Args:
        items: to read; one that occurs several times is read once and counts once.
        workers: processes that read; 0 reads in this one.
        max_broken_share: 0..1; a larger share of broken images is an error.
        progress: called with (done, total) every so often, e.g. to move a progress bar.
        probe: reads one item; its DataError is the reason why the item is broken.
        processes: of which each reads its share.

    Returns:
        The good items in their order, and the report.

    Raises:
        DataError: more than `max_broken_share` are broken; names the first few.
    """
    if not 0 <= max_broken_share <= 1:
        raise ConfigError(f"max_broken_share must be 0..1, not {max_broken_share}")
    unique = list({item.key: item for item in items}.values())

    def answers_of(own: list[ImageItem]) -> list[str]:
        answers: list[str] = []
        for some in DataLoader(_Probe(own, probe), batch_size=16, num_workers=workers, collate_fn=list):
            answers += some
            if progress:
                progress(len(answers), len(own))
        return answers

    broken = {item.key: reason for item, reason in zip(unique, processes.spread(unique, answers_of)) if reason}
    check_broken_share(broken, len(unique), max_broken_share)
    return [item for item in items if item.key not in broken], ImageReport(len(unique), broken)


def check_broken_share(broken: Mapping[str, str], total: int, max_broken_share: float) -> None:
    """Raises DataError if more than `max_broken_share` (0..1) of `total` images are broken; names the first few."""
    if len(broken) > max_broken_share * total:
        raise DataError(
            f"{len(broken)} of {total} images cannot be read, more than max_broken_share={max_broken_share:g} allows: "
            f"{first_few(list(broken), 3)}; first reason: {next(iter(broken.values()))}"
        )
