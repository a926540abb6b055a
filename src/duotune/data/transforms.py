"""From an RGB picture to normalised pixels, with Pillow and NumPy alone.

Both transforms compute what torchvision's `Resize`, `CenterCrop`, `RandomResizedCrop`, `RandomHorizontalFlip`,
`ToTensor` and `Normalize` compute on Pillow images, which is what CLIP's, CoOp's and DPT's code uses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from ..errors import ConfigError

Triple = tuple[float, float, float]
BICUBIC = Image.Resampling.BICUBIC
LONGEST = 64  # beyond this many squares in a row a resized picture is not made whole: 1 x 80,000,000 would fill memory


class Transform(Protocol):
    """What a data set asks of a transform."""

    def __call__(self, image: Image.Image, rng: np.random.Generator | int | None = None) -> np.ndarray:
        """RGB picture -> (3, S, S) float32."""

    def key(self) -> str:
        """A text that differs whenever the result may differ; part of cache keys."""


@functools.lru_cache(maxsize=8)
def _values(mean: Triple, std: Triple) -> np.ndarray:
    """(3, 256) what each 8-bit value of each channel becomes."""
    shares = np.arange(256, dtype=np.float32) / np.float32(255)
    return (shares[None] - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


def normalise(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """RGB picture -> (3, H, W) float32, `(value / 255 - mean) / std` per channel.

    Looked up instead of computed: 8-bit pixels take 256 values; the result is the same, bit for bit.
    """
    pixels, values = np.asarray(image), _values(tuple(mean), tuple(std))
    result = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        np.take(values[channel], pixels[:, :, channel], out=result[channel], mode="clip")
    return result


def _check(size: int, mean: Triple, std: Triple) -> None:
    faults = []
    if size < 1:
        faults.append(f"size must be at least 1 pixel, not {size}")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        faults.append(f"mean and std must have one number per RGB channel, std above 0; got {mean}, {std}")
    if faults:
        raise ConfigError(*faults)


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:.9g}" for value in values)


@dataclass(frozen=True)
class TestTransform:
    """Resize the short side to `size` (bicubic), cut the centre square, normalise. Draws no random numbers.

    Attributes:
        size: side S of the result in pixels.
        mean, std: per RGB channel, of values in 0..1.
    """

    size: int
    mean: Triple
    std: Triple

    __test__ = False  # not a test class, whatever pytest thinks of the name

    def __post_init__(self):
        _check(self.size, self.mean, self.std)

    def __call__(self, image: Image.Image, rng: np.random.Generator | int | None = None) -> np.ndarray:
        """RGB picture -> (3, S, S) float32; `rng` is not used."""
        return normalise(self.resize_and_crop(image), self.mean, self.std)

    def resize_and_crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        long = int(self.size * max(width, height) / min(width, height))
        if long > LONGEST * self.size:
            return self._square_of_a_line(image, long)
        width, height = (self.size, long) if width <= height else (long, self.size)
        if image.size != (width, height):
            image = image.resize((width, height), BICUBIC)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def _square_of_a_line(self, image: Image.Image, long: int) -> Image.Image:
        """The same square from the part of a very long picture that it is made of; `long`: the whole side."""
        share = max(image.size) / long  # pixels of the picture per pixel of the result
        start = round((long - self.size) / 2)
        low, high = start * share, (start + self.size) * share
        reach = math.ceil(2 * max(1.0, share)) + 2  # of the bicubic filter
        first, last = max(0, math.floor(low) - reach), min(max(image.size), math.ceil(high) + reach)
        low, high = low - first, high - first
        if image.width <= image.height:
            part, box = image.crop((0, first, image.width, last)), (0, low, image.width, high)
        else:
            part, box = image.crop((first, 0, last, image.height)), (low, 0, high, image.height)
        return part.resize((self.size, self.size), BICUBIC, box=box)

    def key(self) -> str:
        return f"test1:{self.size}:{_numbers(self.mean)}:{_numbers(self.std)}"


@dataclass(frozen=True)
class TrainTransform:
    """A random crop resized to `size` (bicubic), flipped left-right half of the time, normalised.

    Attributes:
        size: side S of the result in pixels.
        mean, std: per RGB channel, of values in 0..1.
        scale: smallest and largest area of the crop, as a share of the picture's.
        ratio: narrowest and widest crop, width / height.
        flip: probability of the flip, 0..1.
    """

    size: int
    mean: Triple
    std: Triple
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    ATTEMPTS = 10  # as torchvision; then the largest centred crop of an allowed ratio

    def __post_init__(self):
        _check(self.size, self.mean, self.std)
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ConfigError(f"scale must be 0 < low <= high <= 1, ratio 0 < low <= high: {self.scale}, {self.ratio}")
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip must be a probability, not {self.flip}")

    def __call__(self, image: Image.Image, rng: np.random.Generator | int | None = None) -> np.ndarray:
        """RGB picture -> (3, S, S) float32. The same generator state or seed gives the same pixels."""
        rng = np.random.default_rng(rng)
        left, top, width, height = self.crop_box(*image.size, rng)
        # Cut first, then resize: `resize(box=...)` would let the bicubic filter look beyond the crop.
        image = image.crop((left, top, left + width, top + height)).resize((self.size, self.size), BICUBIC)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return normalise(image, self.mean, self.std)

    def crop_box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(left, top, width, height) of a crop: area uniform in `scale`, log of the ratio uniform in log `ratio`."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(self.ATTEMPTS):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = int(rng.integers(0, height - h + 1))
                left = int(rng.integers(0, width - w + 1))
                return left, top, w, h
        w, h = width, height
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return (width - w) // 2, (height - h) // 2, w, h

    def key(self) -> str:
        return (
            f"train1:{self.size}:{_numbers(self.mean)}:{_numbers(self.std)}:"
            f"{_numbers(self.scale)}:{_numbers(self.ratio)}:{self.flip:.9g}"
        )
