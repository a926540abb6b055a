"""Resize and flip of a picture together with its boxes, as GLIP trains and tests.

The short side becomes one of several lengths, unless the long side would pass a limit (`grounding.resized_size`), with
Pillow's bilinear filter; then the picture is flipped left-right or not. Pixels are normalised by the model's processor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...errors import ConfigError
from ...grounding import flip_boxes, resized_size, scale_boxes

BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class DetectionTransform:
    """Resize the short side to one of `short_sides`, flip with probability `flip`.

    Attributes:
        short_sides: pixels; one is drawn per picture.
        longest: the long side stays at or below it, but for rounding.
        flip: probability of the flip, 0..1.
    """

    short_sides: tuple[int, ...] = (480, 560, 640, 720, 800)
    longest: int = 1333
    flip: float = 0.5

    def __post_init__(self):
        faults = []
        if not self.short_sides or min(self.short_sides) < 1:
            faults.append(f"short_sides must be one or more lengths in pixels, not {self.short_sides}")
        elif self.longest < max(self.short_sides):
            faults.append(f"longest must not be below the short sides: {self.longest}, {self.short_sides}")
        if not 0 <= self.flip <= 1:
            faults.append(f"flip must be a probability, not {self.flip}")
        if faults:
            raise ConfigError(*faults)

    def __call__(
        self, image: Image.Image, boxes: np.ndarray, rng: np.random.Generator | int | None = None
    ) -> tuple[Image.Image, np.ndarray]:
        """(picture, (n, 4) xyxy pixels) -> the same of the new picture, boxes float32.

        The same generator state or seed gives the same result; two numbers are drawn always, whatever comes of them.
        """
        before = image.size[1], image.size[0]
        (height, width), flipped = self.draw(before, rng)
        if (height, width) != before:
            image = image.resize((width, height), BILINEAR)
        if flipped:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image, self.move(boxes, before, (height, width), flipped)

    def draw(self, size: tuple[int, int], rng: np.random.Generator | int | None = None) -> tuple[tuple[int, int], bool]:
        """(height, width) -> (height, width) of the new picture, and whether it is flipped; draws two numbers."""
        rng = np.random.default_rng(rng)
        short = self.short_sides[int(rng.integers(len(self.short_sides)))]
        flipped = bool(rng.random() < self.flip)
        height, width = (max(1, side) for side in resized_size(*size, short, self.longest))
        return (height, width), flipped

    @staticmethod
    def move(boxes: np.ndarray, before: tuple[int, int], after: tuple[int, int], flipped: bool) -> np.ndarray:
        """(n, 4) xyxy pixels -> float32 boxes of the picture that was resized and flipped like this."""
        boxes = scale_boxes(np.asarray(boxes, dtype=np.float32).reshape(-1, 4), before, after)
        return flip_boxes(boxes, after[1]) if flipped else boxes

    @property
    def is_random(self) -> bool:
        """Whether the same picture may come out in different ways."""
        return len(set(self.short_sides)) > 1 or 0 < self.flip < 1

    def key(self) -> str:
        """A text that differs whenever the result may differ; part of cache keys."""
        return f"detection1:{','.join(map(str, self.short_sides))}:{self.longest}:{self.flip:.9g}"


def no_augmentation(short_side: int = 800, longest: int = 1333) -> DetectionTransform:
    """The transform of evaluation: one size, never flipped."""
    return DetectionTransform((short_side,), longest, 0.0)
