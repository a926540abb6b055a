"""A tiny GLIP with random weights and a WordPiece tokenizer of a few words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from tiny_glip import spread  # noqa: E402

# Real BERT ids of the words in the caption whose numbers are known, and a few others; the rest is filler.
VOCABULARY = {
    0: "[PAD]",
    100: "[UNK]",
    101: "[CLS]",
    102: "[SEP]",
    103: "[MASK]",
    1010: ",",
    1012: ".",
    2606: "hair",
    2711: "person",
    2852: "dr",
    3771: "##ier",
    10165: "bicycle",
    1037: "a",
    2158: "man",
    2007: "with",
    4937: "cat",
    3899: "dog",
    2417: "red",
}


def bert_tokenizer(folder: Path):
    """A fast BertTokenizer with `VOCABULARY` at its true ids, lower-casing."""
    from transformers import AutoTokenizer, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    tokens = [VOCABULARY.get(i, f"[unused{i}]") for i in range(max(VOCABULARY) + 1)]
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return bert_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bert")


@pytest.fixture(scope="session")
def tiny_config():
    from transformers import BertConfig

    from duotune.models.glip import GlipConfig

    text = BertConfig(
        vocab_size=max(VOCABULARY) + 1,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return GlipConfig.tiny(text_config=text)


@pytest.fixture(scope="session")
def tiny_glip(tiny_config):
    """The tiny GLIP in eval mode, weights spread enough that differences show; shared: tests must not change it."""
    from duotune.models.glip import GlipForObjectDetection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spread(GlipForObjectDetection(tiny_config).eval())
