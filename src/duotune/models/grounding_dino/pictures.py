"""From PIL images to Grounding DINO's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import DataError
from ...grounding import resized_size


@dataclass(frozen=True)
class Pictures:
    """How pictures are resized, normalised and padded.

    Attributes:
        short_side, long_side: pixels; the short side becomes the first unless the long one would pass the second.
        mean, std: of RGB in 0..1.
    """

    short_side: int = 800
    long_side: int = 1333
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Pictures:
        """What the image processor of a folder or Hub repository says.

        Raises:
            OSError, ValueError: there is none. DataError: it resizes otherwise than by short and long side.
        """
        from transformers import GroundingDinoImageProcessorPil

        processor = GroundingDinoImageProcessorPil.from_pretrained(source)
        short, longest = processor.size.get("shortest_edge"), processor.size.get("longest_edge")
        if not short or not longest:
            raise DataError(f"the image processor of {source} resizes by {dict(processor.size)}, not by its edges")
        return cls(short, longest, tuple(processor.image_mean), tuple(processor.image_std))

    def resize(self, image: Image.Image) -> Image.Image:
        """An RGB picture of the size that the model is tested with."""
        image = image.convert("RGB")
        before = image.size[1], image.size[0]
        height, width = (max(side, 1) for side in resized_size(*before, self.short_side, self.long_side))
        return image if (height, width) == before else image.resize((width, height), Image.Resampling.BILINEAR)

    def normalize(self, image: Image.Image) -> Tensor:
        """An RGB picture as (3, h, w) float32, neither resized nor padded."""
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
        return ((pixels - torch.tensor(self.mean)) / torch.tensor(self.std)).permute(2, 0, 1).contiguous()

    def pad(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (3, h, w) -> (B, 3, H, W) of the largest sides: zeros at the right and the bottom."""
        height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
        batch = pictures[0].new_zeros(len(pictures), 3, height, width)
        for row, picture in zip(batch, pictures):
            row[:, : picture.shape[1], : picture.shape[2]] = picture
        return batch
