"""Tiny (MM) Grounding DINO models with random weights, for tests."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

WORDS = "cat dog red square house boat ##s hair dr ##ier a in smear cell tree hat on"
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029, ",": 1010}
KINDS = ("grounding_dino", "mm_grounding_dino")
equal_to_transformers = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers before 5.23 gives text other positions than the official code, see docs/backbones.md",
)


def make_tokenizer():
    """BERT's, with the special tokens and delimiters where bert-base-uncased has them."""
    from transformers import BertTokenizer

    vocabulary = {f"[unused{i}]": i for i in range(1040)}
    taken = {i: word for word, i in SPECIAL.items()} | dict(enumerate(WORDS.split(), 200))
    by_id = {i: taken.get(i, word) for word, i in vocabulary.items()}
    return BertTokenizer(vocab={word: i for i, word in by_id.items()}, do_lower_case=True)


def make_model(kind: str = KINDS[0], **settings):
    """A model of toy size in eval mode, weights spread enough that every part shows."""
    if settings:
        return build_model(kind, **settings)
    return copy.deepcopy(_plain_model(kind, torch.get_default_dtype()))


@functools.lru_cache
def _plain_model(kind: str, dtype: torch.dtype):
    return build_model(kind)


def build_model(kind: str, **settings):
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        MMGroundingDinoConfig,
        MMGroundingDinoForObjectDetection,
        SwinConfig,
    )

    config_class, model_class = {
        KINDS[0]: (GroundingDinoConfig, GroundingDinoForObjectDetection),
        KINDS[1]: (MMGroundingDinoConfig, MMGroundingDinoForObjectDetection),
    }[kind]
    image = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        drop_path_rate=0.0,
        out_indices=[2, 3, 4],
    )
    text = BertConfig(
        vocab_size=1040,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 64,
        "num_queries": 10,
        "max_text_len": 32,
        **settings,
    }
    config = config_class(backbone_config=sizes.pop("backbone_config", image), text_config=text, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("vision_param", "text_param")):
                    parameter.normal_(0.5, 0.1)
                elif "bbox_embed" in name:  # boxes stay away from the edges, where sigmoids are flat
                    parameter.normal_(0, 0.3 * parameter[0].numel() ** -0.5)
                elif "norm" in name and name.endswith("weight"):
                    parameter.normal_(1, 0.1)
                elif "embed" in name and parameter.dim() > 0 and "projection" not in name:
                    parameter.normal_(0, 0.5)
                elif parameter.dim() > 1:
                    parameter.normal_(0, parameter[0].numel() ** -0.5)
                elif "class_embed" in name:  # as it starts, a tiny model would find nothing
                    parameter.fill_(-1.0)
                else:
                    parameter.normal_(0, 0.1)
    return model.eval()


def write_folder(folder: Path, kind: str = KINDS[0], short_side: int = 64, long_side: int = 96, **settings) -> Path:
    """The folder that transformers would write of such a model."""
    from transformers import GroundingDinoImageProcessorPil

    make_model(kind, **settings).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    GroundingDinoImageProcessorPil(size={"shortest_edge": short_side, "longest_edge": long_side}).save_pretrained(
        folder
    )
    return folder
