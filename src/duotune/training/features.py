"""Frozen image features, computed once and cached, and the datasets that train from them.

For methods that read features alone (CoOp, linear probe) no image is decoded in the training loop at
all; DPT reads pixels and the cached frozen features of the same view.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..backbones.base import Backbone, DualEncoder
from ..data.base import ImageItem
from ..data.images import open_image
from ..data.torch_dataset import ImageDataset, OverImages, check_broken_share
from ..data.transforms import TestTransform, TrainTransform, Transform
from ..errors import ConfigError, DataError
from ..precision import full_precision
from ..processes import ALONE, Processes
from .cache import FeatureCache

ROWS_AT_ONCE = 1 << 24  # numbers that a process sends to the others at once


def evaluation_transform(backbone: DualEncoder) -> TestTransform:
    """Resize and centre crop to the backbone's image size."""
    return TestTransform(backbone.image_size, backbone.image_mean, backbone.image_std)


def train_transform(backbone: DualEncoder) -> TrainTransform:
    """Random resized crop and flip, with the authors' ranges."""
    return TrainTransform(backbone.image_size, backbone.image_mean, backbone.image_std)


@dataclass
class FrozenFeatures:
    """Frozen image features of the items that can be read.

    Attributes:
        items: the good items, in their order.
        features: (N, V, E) float32, not normalised; V views of each item.
        broken: name of each item that cannot be read -> why.
    """

    items: tuple[ImageItem, ...]
    features: Tensor
    broken: dict[str, str] = field(default_factory=dict)


def frozen_features(
    backbone: DualEncoder,
    items: Sequence[ImageItem],
    transform: Transform,
    views: int = 1,
    seed: int = 0,
    cache: FeatureCache | None = None,
    batch_size: int = 64,
    workers: int = 2,
    progress: bool = True,
    max_broken_share: float = 0.0,
    processes: Processes = ALONE,
) -> FrozenFeatures:
    """Features of the frozen image tower, read from the cache where they are in it.

    View v of an item is what `ImageDataset(items, transform, views, seed)` shows in epoch v.

    Args:
        views: V, at least 1 (1 for a transform without randomness).
        batch_size: images per forward pass. workers: processes that decode; 0 decodes in this one.
        max_broken_share: 0..1; items that cannot be read are left out up to this share.
        processes: of which each encodes its share, in the batches that one process would make, and tells the others.

    Raises:
        DataError: more items than that cannot be read; names the first few.
    """
    if views < 1:
        raise ConfigError(f"frozen features need at least 1 fixed view, not {views}; fresh views cannot be cached")
    items = tuple(items)
    unique = list({item.key: item for item in items}.values())
    store = _Store(backbone, unique, transform, views, seed, cache, processes)
    images = SafeImages(unique, transform, views, seed, [m.nonzero()[0].tolist() for m in ~store.found])
    broken: dict[str, str] = {}
    size = max(1, batch_size // views)
    waiting = [i for i in range(len(unique)) if not store.found[i].all()]
    waiting = processes.share_batches(waiting, size)
    bar = tqdm(total=len(waiting), desc="image features", unit="img", disable=not progress or not waiting, leave=False)
    with bar:
        for batch in image_batches(images, waiting, size, workers):
            broken.update(batch.broken)
            if len(batch.pixel_values):
                with torch.no_grad(), full_precision(backbone.device):  # kept, whoever asked
                    rows = backbone.encode_image(as_input(backbone, batch.pixel_values)).float().cpu().numpy()
                store.add(batch.index, batch.view, rows)
            bar.update(batch.count)
    store.flush()
    reasons = {key: reason for part in processes.gather(broken) for key, reason in part.items()}
    broken = {item.key: reasons[item.key] for item in unique if item.key in reasons}
    check_broken_share(broken, len(unique), max_broken_share)
    store.complete()
    place = {item.key: i for i, item in enumerate(unique)}
    good = tuple(item for item in items if item.key not in broken)
    rows = store.rows if store.rows is not None else np.zeros((len(unique), views, backbone.embed_dim), np.float32)
    return FrozenFeatures(good, torch.from_numpy(rows[[place[item.key] for item in good]]), broken)


def as_input(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Pixels on the device and in the precision of the backbone's weights."""
    return backbone.receive(pixels, next(backbone.parameters()).dtype)


class _Store:
    """Rows (N, V, E) being filled: what the caches of all processes have, then what is computed."""

    def __init__(self, backbone, items, transform, views, seed, cache, processes):
        self.cache, self.processes, self.rows = cache, processes, None
        self.new: list[tuple[int, int]] = []
        self.found = np.zeros((len(items), views), dtype=bool)
        self.readable = [True] * len(items)
        if cache is None:
            self._create(backbone.embed_dim)
            return
        dtype = next(backbone.parameters()).dtype
        self.namespace = cache.namespace(backbone.fingerprint(), dtype, transform.key())
        hashes = processes.spread(items, cache.content_hashes)
        self.readable = [sha is not None for sha in hashes]
        fixed = isinstance(transform, TestTransform)  # draws no random numbers: every view is the same
        shown = lambda item, view: () if fixed else (seed, view, item.short_key)
        self.keys = [[cache.key(sha or b"", *shown(item, v)) for v in range(views)] for item, sha in zip(items, hashes)]
        rows, found = cache.get(self.namespace, [k for keys in self.keys for k in keys])
        if rows is not None:
            self.rows, self.found = rows.reshape(len(items), views, -1), found.reshape(len(items), views)
        else:
            self._create(backbone.embed_dim)
        # a cache may be one machine's own
        self.found = np.logical_and.reduce(processes.gather(self.found))

    def _create(self, width: int) -> None:
        self.rows = np.zeros((*self.found.shape, width), dtype=np.float32)

    def add(self, index: Tensor, view: Tensor, rows: np.ndarray) -> None:
        self.rows[index.numpy(), view.numpy()] = rows
        self.new += zip(index.tolist(), view.tolist())

    def flush(self) -> None:
        """Keep what this process has computed."""
        keep = [(i, v) for i, v in self.new if self.readable[i]]  # without a hash there is no key
        if self.cache is not None and keep:
            index, view = np.array(keep).T
            self.cache.put(self.namespace, [self.keys[i][v] for i, v in keep], self.rows[index, view])

    def complete(self) -> None:
        """Take what the other processes have computed."""
        if self.processes.count == 1:
            return
        step = max(1, ROWS_AT_ONCE // self.rows.shape[-1])
        for start in range(0, max(self.processes.gather(len(self.new))), step):
            own = tuple(np.array(self.new[start : start + step], dtype=np.int64).reshape(-1, 2).T)
            for place, rows in self.processes.gather((own, self.rows[own])):
                self.rows[place] = rows


@dataclass
class PixelBatch:
    """pixel_values (B, 3, S, S), index (B,) into the items, view (B,); count: items read; broken: name -> why."""

    pixel_values: Tensor
    index: Tensor
    view: Tensor
    count: int
    broken: dict[str, str] = field(default_factory=dict)


class SafeImages(Dataset):
    """Items as stacks of views, decoded once each; one that cannot be read is a reason instead of an exception.

    Args:
        views: V of `ImageDataset`, whose views these are.
        wanted: per item, the numbers of the views to make; None for view 0 of each.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        transform: Transform,
        views: int = 1,
        seed: int = 0,
        wanted: Sequence[Sequence[int]] | None = None,
    ):
        self.items, self.transform, self.views, self.seed = tuple(items), transform, views, seed
        self.wanted = wanted
        self._own: tuple[int, ImageDataset] | None = None  # of the process with that id

    def __len__(self) -> int:
        return len(self.items)

    def _views_of_this_process(self) -> ImageDataset:
        # an ImageDataset's epoch is in shared memory, and it is set back and forth here: one per process
        if self._own is None or self._own[0] != os.getpid():
            self._own = os.getpid(), ImageDataset(self.items, self.transform, self.views, self.seed)
        return self._own[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": None}

    def __getitem__(self, i: int) -> tuple[int, list[int], Tensor | None, str]:
        images = self._views_of_this_process()
        numbers = list(self.wanted[i]) if self.wanted is not None else [0]
        try:
            image, stack = open_image(self.items[i], images.orientation), []
        except DataError as error:
            return i, [], None, str(error)
        for view in numbers:
            images.set_epoch(view)
            stack.append(self.transform(image, images.rng(i)))
        return i, numbers, torch.from_numpy(np.stack(stack)), ""


def image_batches(images: SafeImages, order: Sequence[int], batch_size: int, workers: int) -> Iterator[PixelBatch]:
    """The items in `order` as batches, decoded in `workers` processes."""
    workers = min(workers, -(-len(order) // batch_size))  # no process without a batch
    loader = DataLoader(images, batch_size, sampler=list(order), num_workers=workers, collate_fn=_pixel_batch)
    for batch, broken in loader:
        batch.broken = {images.items[i].key: reason for i, reason in broken.items()}
        yield batch


def _pixel_batch(rows: Sequence[tuple[int, list[int], Tensor | None, str]]) -> tuple[PixelBatch, dict[int, str]]:
    """Rows of `SafeImages` as a batch, and why items could not be read, by their numbers."""
    good = [row for row in rows if row[2] is not None]
    batch = PixelBatch(
        torch.cat([pixels for _, _, pixels, _ in good]) if good else torch.zeros(0, 3, 1, 1),
        torch.tensor([i for i, numbers, _, _ in good for _ in numbers], dtype=torch.int64),
        torch.tensor([v for _, numbers, _, _ in good for v in numbers], dtype=torch.int64),
        len(rows),
    )
    return batch, {i: reason for i, _, pixels, reason in rows if pixels is None}


class FeatureDataset(Dataset):
    """Cached features alone: {"frozen_features": (E,), "labels": int}; whole batches are indexed at once.

    Args:
        frozen: of V views; epoch e shows view e mod V.
    """

    def __init__(self, frozen: FrozenFeatures):
        self.features = frozen.features
        self.labels = torch.tensor([item.label for item in frozen.items], dtype=torch.int64)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"frozen_features": self.features[i, self.epoch % self.features.shape[1]], "labels": self.labels[i]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        view = self.epoch % self.features.shape[1]
        return {"frozen_features": self.features[indices, view], "labels": self.labels[indices]}


class PixelsAndFeatures(OverImages):
    """Pixels of an `ImageDataset` and, beside them, the cached features (N, V, E) of the same view."""

    def __init__(self, images: ImageDataset, features: Tensor):
        if len(images) != len(features):
            raise ConfigError(f"{len(images)} images, but features of {len(features)}")
        self.images, self.features = images, features

    def __getitem__(self, i: int) -> dict[str, Any]:
        view = self.epoch % self.features.shape[1]
        return {**self.images[i], "frozen_features": self.features[i, view]}


def collate(rows: list[dict[str, Any]] | dict[str, Tensor]) -> dict[str, Tensor]:
    """Rows (or a batch that is one already) -> pixel_values, frozen_features, labels, as far as they are there."""
    if isinstance(rows, dict):
        return rows
    names = [name for name in ("pixel_values", "frozen_features", "labels") if name in rows[0]]
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in names}
