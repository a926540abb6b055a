"""Tiny pictures in the layouts that real data sets have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _write_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def write_image():
    """write_image(path, seed, (width, height)): a small random picture and its folders."""
    return _write_image


@pytest.fixture
def class_folders(tmp_path):
    """class_folders(folder, {"cat": 3, "dog": 2}): numbered pictures in one folder per class below tmp_path."""

    def make(folder: str, counts: dict[str, int], suffix: str = ".png") -> Path:
        root = tmp_path / folder
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _write_image(root / name / f"{i:03d}{suffix}", seed=i)
        return root

    return make
