"""The map-style detection data set that DataLoader workers read, and the check for broken pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ...errors import DataError
from ...processes import ALONE, Processes
from ..images import image_size, open_image, probe_image
from ..torch_dataset import ImageDataset, ImageReport, check_images
from .base import DetectionItem
from .captions import CaptionChoice
from .transforms import DetectionTransform


def open_detection_image(item: DetectionItem) -> Image.Image:
    """Decode a picture in the orientation that its boxes belong to.

    The annotation's width and height decide: usually the EXIF tag is obeyed, but boxes of some data sets were drawn on
    the picture as it is stored.

    Raises:
        DataError: the picture cannot be read, or has another size than the annotation says.
    """
    image = open_image(item)
    if image.size != (item.width, item.height):
        upright, image = image.size, open_image(item, orientation=False)
        if image.size != (item.width, item.height):
            raise DataError(
                f"{item.key} is {upright[0]} x {upright[1]} pixels, its annotation says {item.width} x {item.height}; "
                "boxes would not fit: correct one of them"
            )
    return image


class DetectionDataset(Dataset):
    """Items with pixels, boxes, caption and positive map, made where they are asked for.

    Args:
        items: what to read, in order.
        transform: of picture and boxes.
        pixels: what a model makes of a resized RGB picture: -> (3, h, w) float32, same size.
        captions: which caption goes with an item.
        views, seed: V > 0: each picture has V fixed views, epoch e shows view e mod V (so that what a frozen model
            computes of them can be kept). 0: a fresh view every epoch, reproducible from (seed, epoch, index). As in
            `data.torch_dataset.ImageDataset`; the caption belongs to the view.

    Raises:
        ConfigError: negative views or seed.
        DataError: from `dataset[i]`, if the image cannot be read or has another size than its annotation says.
    """

    def __init__(
        self,
        items: Sequence[DetectionItem],
        transform: DetectionTransform,
        pixels: Callable[[Image.Image], Any],
        captions: CaptionChoice,
        views: int = 0,
        seed: int = 0,
    ):
        self.items, self.transform = tuple(items), transform
        self.pixels, self.captions = pixels, captions
        self._views = ImageDataset(self.items, transform, views, seed)  # its epochs, views and random numbers

    def __len__(self) -> int:
        return len(self.items)

    @property
    def epoch(self) -> int:
        return self._views.epoch

    @property
    def views(self) -> int:
        """How many fixed views each picture has; 0 if they are fresh."""
        return self._views.views

    @property
    def view(self) -> int:
        """Number of the view that the present epoch shows; the epoch itself if views are fresh."""
        return self._views.view

    def set_epoch(self, epoch: int) -> None:
        """Show this epoch's views from now on."""
        self._views.set_epoch(epoch)

    def rng(self, index: int) -> np.random.Generator:
        """The random numbers of item `index` in the present epoch: first the transform's, then the caption's."""
        return self._views.rng(index)

    def key(self) -> str:
        """A text that differs whenever pixels of the same image may. Part of cache keys."""
        return self._views.key()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Item `index`.

        Returns:
            pixel_values (3, h, w) float32; image_size (h, w) and original_size (H, W); boxes (n, 4) float32 xyxy
            pixels of the resized picture and labels (n,) int64, without crowds and without boxes of classes that the
            caption does not name; positive_map (n, T) float32; caption; num_left_out, how many boxes it does not name;
            image_id; index.
        """
        item = self.items[index]
        image, _ = self.transform(open_detection_image(item), item.boxes, self.rng(index))
        return {"pixel_values": torch.as_tensor(self.pixels(image)), **self.annotation(index)}

    def annotation(self, index: int) -> dict[str, Any]:
        """All but the pixels of `self[index]`, without reading the picture."""
        item, rng = self.items[index], self.rng(index)
        size, flipped = self.transform.draw((item.height, item.width), rng)
        boxes = self.transform.move(item.boxes, (item.height, item.width), size, flipped)
        caption = self.captions(item, rng)
        usable = ~item.iscrowd
        named = np.array([caption.position(label) is not None for label in item.labels.tolist()], dtype=bool)
        rows = usable & named
        labels = torch.from_numpy(item.labels[rows])
        return {
            "image_size": size,
            "original_size": (item.height, item.width),
            "boxes": torch.from_numpy(boxes[rows]),
            "labels": labels,
            "positive_map": caption.positive_map(labels),
            "caption": caption,
            "num_left_out": int((usable & ~named).sum()),
            "image_id": item.image_id,
            "index": index,
        }


def check_detection_images(
    items: Sequence[DetectionItem], workers: int = 0, max_broken_share: float = 0.01, processes: Processes = ALONE
) -> tuple[list[DetectionItem], ImageReport]:
    """`check_images`, and each picture's size against its annotation.

    Returns:
        The good items in their order, and the report.

    Raises:
        DataError: more than `max_broken_share` cannot be read or are of another size; names the first few.
    """
    return check_images(items, workers, max_broken_share, probe=_probe, processes=processes)


def _probe(item: DetectionItem) -> None:
    probe_image(item)
    stored, turned = image_size(item)
    wanted = item.width, item.height
    if wanted not in (stored, turned):
        raise DataError(
            f"{item.key} is {turned[0]} x {turned[1]} pixels, its annotation says {wanted[0]} x {wanted[1]}; "
            "boxes would not fit: correct one of them"
        )
