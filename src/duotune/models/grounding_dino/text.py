"""Captions as Grounding DINO reads them: sentence by sentence (arXiv 2303.05499, section 3.4, "sub-sentence level").

[CLS]  cat  .  hair  dr  ##ier  .  [SEP]
start     0    1  1    3   3    3   3    7      tokens with the same start see each other
position  0    0  1    0   1    2   3    0      counted within the sentence
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DELIMITERS = (101, 102, 1012, 1029)
"""[CLS], [SEP], "." and "?" in the vocabulary of bert-base-uncased: where sentences end."""


def sentence_starts(ids: Tensor) -> Tensor:
    """Where the sentence of each token starts.

    Tokens of a sentence that no delimiter ends, and the first and the last token, are sentences of their own; so they
    are in the official code. A caption is read alone: behind it there is no padding that could end it.

    Args:
        ids: (T,) tokens of one caption with its special tokens, without padding.

    Returns:
        (T,) int64 positions; a token's position in its sentence is its own minus this one.
    """
    length = len(ids)
    index = torch.arange(length, device=ids.device)
    ends = torch.isin(ids, torch.tensor(DELIMITERS, device=ids.device))
    end = torch.where(ends, index, length).flip(0).cummin(0).values.flip(0)  # the first delimiter from here on
    before = torch.where(ends, index, -1).cummax(0).values.roll(1)  # the last one before
    before[:1] = -1
    closed = (end > 0) & (end < length - 1)
    return torch.where(closed, before + 1, index)


def sentence_mask(starts: Tensor) -> Tensor:
    """(B, T) -> (B, T, T) bool, true where two tokens see each other."""
    return starts[:, :, None] == starts[:, None, :]


def sentence_positions(starts: Tensor) -> Tensor:
    """(B, T) -> (B, T) int64, positions within the sentences."""
    return torch.arange(starts.shape[1], device=starts.device) - starts


def encode_text(core: nn.Module, ids: Tensor, starts: Tensor) -> Tensor:
    """Captions -> (B, T, d) projected features.

    Args:
        core: the `model` of a transformers' (MM)GroundingDinoForObjectDetection.
        ids: (B, T), padded anyhow. starts: (B, T), see `sentence_starts`; padding starts at itself.
    """
    hidden = core.text_backbone(
        input_ids=ids,
        attention_mask=sentence_mask(starts)[:, None],
        token_type_ids=torch.zeros_like(ids),
        position_ids=sentence_positions(starts),
    ).last_hidden_state
    return core.text_projection(hidden)
