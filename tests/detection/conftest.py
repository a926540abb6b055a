"""A tiny GLIP with random weights, saved as a folder and seen as a backbone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_glip import save_tiny_glip

NAMES = ["cat", "red square", "hair drier", "house boats"]  # 1, 2, 3 and 3 tokens; as in the tests


@pytest.fixture(scope="session")
def glip_folder(tmp_path_factory) -> Path:
    """GlipForObjectDetection of toy size and its processor, weights spread enough that differences show."""
    return save_tiny_glip(tmp_path_factory.mktemp("backbones") / "tiny-glip")


@pytest.fixture(scope="session")
def shared_backbone(glip_folder):
    """The backbone; tests must not change it."""
    from duotune import load_backbone

    return load_backbone(str(glip_folder), device="cpu")


@pytest.fixture
def backbone(shared_backbone):
    """A backbone of the test's own."""
    return copy.deepcopy(shared_backbone)


@pytest.fixture(scope="session")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(2)
    sizes = [(60, 80), (120, 90)]
    return [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=generator, dtype=torch.uint8).numpy())
        for h, w in sizes
    ]


@pytest.fixture(scope="session")
def labels(shared_backbone) -> list[dict[str, torch.Tensor]]:
    """Of two images, with the caption of `NAMES`."""
    caption = shared_backbone.caption(NAMES)
    return [
        {"boxes": torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60]]), "positive_map": caption.positive_map([0, 2])},
        {"boxes": torch.tensor([[10.0, 20, 60, 62]]), "positive_map": caption.positive_map([3])},
    ]
