"""Feature maps of a frozen detector, computed once per picture and view, and the dataset that trains from them.

Feature maps are large (GLIP at 800 x 1088: 18,134 positions of 256 channels), so the store is bounded: what does not
fit is computed anew in every epoch, and gives the same numbers.

Image towers see padding: near its edge a picture's maps depend on what it is padded to. So kept maps, those of a
picture alone, serve batches in which nothing more is padded; a batch of several sizes goes through the image tower as
it would without a store. `SizeGroupedSampler` makes such batches rare.

    in memory   for one run
    on disk     folder/maps/<namespace>/<key>.safetensors, shared by runs; the least recently used go first
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from ..backbones.base import Detector
from ..data.detection.torch_dataset import DetectionDataset
from ..data.torch_dataset import OverImages
from ..errors import ConfigError, DataError
from ..precision import full_precision
from ..processes import ALONE, Processes, on_this_machine
from ..writing import write_bytes
from .cache import FAULTS, FeatureCache, mark_used, proves_broken

logger = logging.getLogger(__name__)

Maps = list[Tensor]


class MapStore:
    """Feature maps by key, up to a limit.

    Args:
        max_bytes: limit of all maps together.
        folder: keep them on disk, below this folder; None: in memory.
        writers: processes that write into the folder at the same pace.

    Attributes:
        refused: maps that found no room. corrupt: files thrown away.
    """

    def __init__(self, max_bytes: int, folder: str | Path | None = None, writers: int = 1):
        if max_bytes <= 0:
            raise ConfigError(f"max_bytes must be above 0, not {max_bytes}")
        self.max_bytes, self.writers = max_bytes, writers
        self.folder = Path(folder) / "maps" if folder is not None else None
        self.refused, self.corrupt = 0, 0
        self._held: dict[str, Maps] = {}
        self._bytes = 0
        self._disk_bytes: int | None = None  # bytes, as far as this run knows
        self._ours: set[str] = set()  # keys of this run: they make no room for each other
        self._full = self._told = False

    @property
    def on_disk(self) -> bool:
        return self.folder is not None

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file() if self.on_disk else key in self._held

    def get(self, key: str) -> Maps | None:
        """The maps of a picture, as of `Detector.encode_image` without the batch axis.

        None if they are not there, or their file is damaged (it is deleted) or cannot be read now (it is left alone).
        """
        if not self.on_disk:
            return self._held.get(key)
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                maps = [file.get_tensor(str(level)) for level in range(len(file.keys()))]
                checksum = int((file.metadata() or {})["checksum"])
            if _checksum(maps) != checksum:
                raise ValueError("checksum does not match")
        except FAULTS as error:
            self._pass_over(path, error)
            return None
        mark_used(path)
        return maps

    def _pass_over(self, path: Path, error: Exception) -> None:
        if proves_broken(error):
            self.corrupt += 1
            logger.warning("the kept feature maps %s are corrupt (%s); they are computed anew", path, error)
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        elif not isinstance(error, FileNotFoundError) and not self._told:  # another process may have deleted it
            self._told = True
            logger.warning("cannot read %s (%s); its maps are computed anew, the file is left alone", path, error)

    def put(self, key: str, maps: Maps) -> bool:
        """Keep the maps of a picture; False if there is no room for them."""
        size = sum(m.numel() * m.element_size() for m in maps)
        if self._full or not (self._write(key, maps, size) if self.on_disk else self._hold(key, maps, size)):
            self._full = True
            self.refused += 1
            return False
        return True

    def claim(self, keys: Sequence[str]) -> None:
        """These keys belong to this run: none of them is deleted to make room for another."""
        self._ours.update(keys)
        self._full = False

    @property
    def full(self) -> bool:
        """Whether maps have been refused."""
        return self._full

    def _hold(self, key: str, maps: Maps, size: int) -> bool:
        if self._bytes + size > self.max_bytes:
            return False
        self._held[key] = [m.contiguous().cpu() for m in maps]
        self._bytes += size
        return True

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _write(self, key: str, maps: Maps, size: int) -> bool:
        path = self._path(key)
        maps = [m.contiguous().cpu() for m in maps]
        content = to_bytes({str(level): m for level, m in enumerate(maps)}, metadata={"checksum": str(_checksum(maps))})
        try:
            if not self._make_room(len(content)):
                return False
            write_bytes(path, content, lasting=False)
        except OSError as error:
            logger.warning("cannot keep feature maps in %s: %s; going on without", self.folder, error)
            return False
        self._ours.add(key)
        self._disk_bytes += len(content) * self.writers
        return True

    def _make_room(self, size: int) -> bool:
        """Whether a file of this size fits, once the least recently used of other runs have gone where it needs be."""
        if self._disk_bytes is None or self._disk_bytes + size > self.max_bytes:
            files = self._files()  # other runs write and delete there too
            self._disk_bytes = sum(length for _, length, _ in files)
            for _, length, path in sorted(files):
                if self._disk_bytes + size <= self.max_bytes:
                    break
                if f"{path.parent.name}/{path.stem}" not in self._ours:
                    path.unlink(missing_ok=True)
                    self._disk_bytes -= length
        return self._disk_bytes + size <= self.max_bytes

    def _files(self) -> list[tuple[float, int, Path]]:
        """(when last used, bytes, path) of every file."""
        found = []
        for path in self.folder.glob("*/*.safetensors"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another run made room
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found


def _checksum(maps: Maps) -> int:
    value = 0
    for m in maps:
        value = zlib.crc32(m.reshape(-1).contiguous().view(torch.uint8).numpy(), value)
    return value


class MapsDataset(OverImages):
    """Rows of a `DetectionDataset` with kept feature maps in place of pixels, where there are any.

    Args:
        images: with fixed views.
        backbone: whose frozen image tower gives the maps.
        store: where they are kept.
        processes: that have the same data set, and fill the store together.
    """

    def __init__(self, images: DetectionDataset, backbone: Detector, store: MapStore, processes: Processes = ALONE):
        if images.views < 1:
            raise ConfigError("feature maps can be kept of fixed views alone; fresh ones are seen once")
        self.images, self.store, self.processes = images, store, processes
        self.items, self.views = images.items, images.views
        self._keys = self._make_keys(backbone)
        self._padded: dict[tuple[int, int], tuple[int, int]] = {}
        self._pad = backbone.pad

    def _make_keys(self, backbone: Detector) -> list[list[str]]:
        """N lists of V keys."""
        if not self.store.on_disk:
            mark = uuid.uuid4().hex
            return [[f"{mark}/{i}-{v}" for v in range(self.views)] for i in range(len(self))]
        dtype = next(backbone.parameters()).dtype
        transform = self.images.transform
        fixed = not transform.is_random  # then a view is like another, whatever the seed
        shown_as = transform.key() if fixed else self.images.key()
        space = FeatureCache.namespace("maps1", backbone.fingerprint(), dtype, shown_as)
        hashes = self.processes.spread(self.items, FeatureCache(self.store.folder.parent).content_hashes)
        keys = []
        for item, content in zip(self.items, hashes):
            own = () if fixed else (item.short_key,)
            views = [0] * self.views if fixed else range(self.views)
            keys.append([f"{space}/{FeatureCache.key(content or b'', *own, view).hex()}" for view in views])
        return keys

    def key(self, index: int) -> str:
        """Of item `index` in the view that the present epoch shows."""
        return self._keys[index][self.images.view]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As of `DetectionDataset`, but with "feature_maps", per level (d, h, w), instead of "pixel_values" if kept."""
        maps = self.store.get(self.key(index))
        if maps is None:
            return {**self.images[index], "feature_maps": None}
        return {"feature_maps": maps, **self.images.annotation(index)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, as `DataLoader` asks: all with pixels if pictures are padded to different sizes."""
        if len({self.shape(index) for index in indices}) > 1:
            return [self.images[index] for index in indices]
        return [self[index] for index in indices]

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of the padded picture that item `index` is in the present view."""
        item = self.items[index]
        size, _ = self.images.transform.draw((item.height, item.width), self.images.rng(index))
        if size not in self._padded:
            self._padded[size] = tuple(self._pad([torch.empty(3, *size, device="meta")]).shape[-2:])
        return self._padded[size]

    def fill(self, backbone: Detector, workers: int = 0, progress: bool = True) -> None:
        """Compute the maps that are not kept yet, until there is no more room; of several processes each its share."""
        self.store.claim([key for keys in self._keys for key in keys])
        before, refused = self.epoch, self.store.refused
        total = sum(key not in self.store for key in {key for keys in self._keys for key in keys})
        bar = tqdm(total=total, desc="feature maps", unit="img", disable=not progress or not total, leave=False)
        try:
            with bar:
                if self.processes.count > 1 and not self.store.on_disk:
                    return self._fill_memory(backbone, workers, bar)
                self._fill(backbone, workers, bar, self.processes)
                if self.processes.count > 1:  # what a folder lacks that not all of them see
                    self.processes.gather(None)
                    if not self.store.full:
                        self._fill(backbone, workers, bar, on_this_machine())
                    self.processes.gather(None)
        finally:
            self.set_epoch(before)
            if self.store.refused > refused:
                kept = sum(key in self.store for keys in self._keys for key in keys)
                logger.warning(
                    "%d of %d feature maps fit into %.1f GB; the others are computed anew in every epoch",
                    kept,
                    len(self) * self.views,
                    self.store.max_bytes / 1e9,
                )

    def _fill(self, backbone: Detector, workers: int, bar: tqdm, processes: Processes) -> None:
        """Compute what this process's share of the pictures lacks."""
        for view in range(self.views):
            self.set_epoch(view)
            own = processes.share(range(len(self)))  # of all: what is kept by now differs from process to process
            wanted = {self._keys[i][view]: i for i in own if self._keys[i][view] not in self.store}
            for index, picture in _pictures(self.images, sorted(wanted.values()), workers):
                if not self.store.put(self._keys[index][view], picture_maps(backbone, picture)):
                    return
                bar.update()

    def _fill_memory(self, backbone: Detector, workers: int, bar: tqdm) -> None:
        """Compute maps that each process holds in its memory, one picture per process and round."""
        for view in range(self.views):
            self.set_epoch(view)
            missing = [i for i in range(len(self)) if self._keys[i][view] not in self.store]  # the same in all
            pictures = _pictures(self.images, self.processes.share(missing), workers)
            for _ in range(-(-len(missing) // self.processes.count)):
                found = next(((i, [m.cpu() for m in picture_maps(backbone, p)]) for i, p in pictures), None)
                for index, maps in filter(None, self.processes.gather(found)):
                    if not self.store.put(self._keys[index][view], maps):
                        return
                    bar.update()


def _pictures(images: DetectionDataset, order: Sequence[int], workers: int) -> Iterator[tuple[int, Tensor]]:
    """(index, (3, h, w) pixels) of the items in `order`, decoded in `workers` processes."""
    if not order:
        return
    workers = min(workers, len(order))
    yield from DataLoader(images, batch_size=1, sampler=order, num_workers=workers, collate_fn=_only_pixels)


def _only_pixels(rows: Sequence[dict[str, Any]]) -> tuple[int, Tensor]:
    (row,) = rows
    return row["index"], row["pixel_values"]


@torch.no_grad()
def picture_maps(backbone: Detector, picture: Tensor) -> Maps:
    """What the frozen image tower makes of one picture (3, h, w), padded by itself: per level (d, h, w)."""
    pixels = backbone.receive(backbone.pad([picture]), next(backbone.parameters()).dtype)
    with full_precision(backbone.device):
        sizes = torch.tensor([picture.shape[1:]])
        return [m[0] for m in backbone.encode_image(pixels, image_sizes=sizes)]


class DetectionCollator:
    """Rows of a `DetectionDataset` or a `MapsDataset` -> a batch for `PromptedDetector`.

    Rows with maps are not joined yet (see `with_maps`): "pictures" holds, per row, its maps, or its pixels (3, h, w)
    where none are kept. They must be of one padded size.

    Args:
        pad: the backbone's.
    """

    def __init__(self, pad: Callable[[Sequence[Tensor]], Tensor]):
        self.pad = pad

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = {
            "image_sizes": torch.tensor([row["image_size"] for row in rows]),
            "original_sizes": torch.tensor([row["original_size"] for row in rows]),
            "labels": [{name: row[name] for name in ("boxes", "labels", "positive_map")} for row in rows],
            "captions": [row["caption"] for row in rows],
        }
        if "feature_maps" in rows[0]:
            pictures = [row["pixel_values"] if row["feature_maps"] is None else row["feature_maps"] for row in rows]
            return {"pictures": pictures, **batch}
        return {"pixel_values": self.pad([row["pixel_values"] for row in rows]), **batch}


def with_maps(backbone: Detector, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of `DetectionCollator` with its "pictures", if it has any, turned into "feature_maps".

    Raises:
        DataError: the pictures are of different sizes, so that their maps are not those of the batch.
    """
    if "pictures" not in batch:
        return batch
    batch, device = dict(batch), backbone.device
    maps = [
        # whole numbers, such as sizes, are read on the host
        picture_maps(backbone, p)
        if isinstance(p, Tensor)
        else [m.to(device, non_blocking=True) if m.is_floating_point() else m for m in p]
        for p in batch.pop("pictures")
    ]
    if len({tuple(m.shape for m in levels) for levels in maps}) > 1:
        raise DataError(
            "kept feature maps of pictures of different sizes make no batch; read them through a DataLoader, which "
            "asks for pixels then, or one by one"
        )
    return {"feature_maps": [torch.stack(level) for level in zip(*maps)], **batch}


class SizeGroupedSampler(Sampler[int]):
    """A permutation that depends on seed and epoch alone, in which batches hold pictures of one size where they can.

    Whole batches of one padded size come in random order, then what is left over, sorted by size. If more than half of
    the pictures are left over, a warning says so: their feature maps are computed in every epoch.

    Args:
        dataset: says the sizes of the present epoch's view.
        epoch: called at the start of every pass.
    """

    def __init__(self, dataset: MapsDataset, batch_size: int, seed: int, epoch: Callable[[], int]):
        self.dataset, self.batch_size, self.seed, self.epoch = dataset, batch_size, seed, epoch
        self._told = False

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch()])
        groups: dict[tuple[int, int], list[int]] = {}
        for index in rng.permutation(len(self.dataset)).tolist():
            groups.setdefault(self.dataset.shape(index), []).append(index)
        whole, rest = [], []
        for size in sorted(groups):
            group = groups[size]
            cut = len(group) - len(group) % self.batch_size
            whole += [group[start : start + self.batch_size] for start in range(0, cut, self.batch_size)]
            rest += group[cut:]
        if len(groups) > 1 and len(rest) > len(self.dataset) / 2 and not self._told:
            self._told = True
            logger.warning(
                "%d of %d pictures are in batches of several sizes, whose feature maps cannot be kept; a smaller batch "
                "size, or augment=False, makes training faster",
                len(rest),
                len(self.dataset),
            )
        order = [whole[i] for i in rng.permutation(len(whole))]
        return itertools.chain(*order, rest)


__all__ = [
    "DetectionCollator",
    "MapStore",
    "MapsDataset",
    "SizeGroupedSampler",
    "picture_maps",
    "with_maps",
]
