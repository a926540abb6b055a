"""A tiny GLIP with random weights, saved as a folder and seen as a backbone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . , cat dog red square house boat ##s hair dr ##ier in a smear cell tree"
NAMES = ["cat", "red square", "hair drier", "house boats"]  # 1, 2, 3 and 3 tokens; as in the tests


@pytest.fixture(scope="session")
def glip_folder(tmp_path_factory) -> Path:
    """GlipForObjectDetection of toy size and its processor, weights spread enough that differences show."""
    from transformers import BertConfig, BertTokenizer

    from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor

    folder = tmp_path_factory.mktemp("backbones") / "tiny-glip"
    vocabulary = {word: i for i, word in enumerate(WORDS.split())}
    text = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    config = GlipConfig.tiny(text_config=text, num_fusion_layers=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GlipForObjectDetection(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "bias" in name and "bias0" not in name:
                    parameter.normal_(0, 0.05)
                elif parameter.dim() > 1 and "embeddings" not in name:
                    parameter.normal_(0, parameter[0].numel() ** -0.5)
            model.head.bias0.fill_(-1.0)
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    GlipProcessor.from_config(config, tokenizer, short_side=64, long_side=96).save_pretrained(folder)
    return folder


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
