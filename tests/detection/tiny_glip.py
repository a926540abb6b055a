"""The tiny GLIP with random weights that tests of detectors share."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] . , cat dog red square house boat ##s hair dr ##ier in a smear cell tree"


@torch.no_grad()
def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Draw a GLIP's weights anew, wide enough that differences show."""
    for name, parameter in model.named_parameters():
        if "bias" in name and "bias0" not in name:
            parameter.normal_(0, 0.05)
        elif parameter.dim() > 1 and "embeddings" not in name:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    model.head.bias0.fill_(-1.0)
    return model


def save_tiny_glip(folder: Path) -> Path:
    """GlipForObjectDetection of toy size and its processor, weights spread enough that differences show."""
    from transformers import BertConfig, BertTokenizer

    from duotune.models.glip import GlipConfig, GlipForObjectDetection, GlipProcessor

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
        model = spread(GlipForObjectDetection(config))
    model.save_pretrained(folder)
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    GlipProcessor.from_config(config, tokenizer, short_side=64, long_side=96).save_pretrained(folder)
    return folder
