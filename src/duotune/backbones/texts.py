"""Texts on their way into a text tower: token ids, where they end, and embeddings that learnt context may replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tracing import traced


@dataclass
class TextTokens:
    """Tokenised texts.

    Attributes:
        ids: (N, L) int64, padded at the right to the longest text.
        eos: (N,) int64, position of each text's end token, where its feature is read.
    """

    ids: Tensor
    eos: Tensor


class TextEnds:
    """End position of each text, known on the host, and what a tower derives from them once.

    A tower lays texts out by where they end; asked of a tensor, an accelerator would be waited for in every step.

    Args:
        positions: end positions, counted from 0.
    """

    def __init__(self, positions: Iterable[int]):
        self.positions = tuple(int(position) for position in positions)
        self._derived: dict[Any, Any] = {}

    @classmethod
    def of(cls, eos: Tensor | TextEnds) -> TextEnds:
        """Those of a (N,) int64 tensor; ends that are known already as they are."""
        return eos if isinstance(eos, TextEnds) else cls(eos.tolist())

    def __len__(self) -> int:
        return len(self.positions)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """`compute()`, remembered with these ends under `key`."""
        if key in self._derived:
            return self._derived[key]
        if traced():  # what is made while torch records is none of the program's own tensors
            return compute()
        with torch.inference_mode(False):  # it may be read where gradients are wanted
            self._derived[key] = compute()
        return self._derived[key]

    def split(self, size: int) -> list[TextEnds]:
        """Parts of at most `size` texts, in order."""
        cut = lambda: [TextEnds(self.positions[i : i + size]) for i in range(0, len(self), size)]
        return self.once(("parts", size), cut)


@dataclass
class TextSequence:
    """Token embeddings that a causal text tower reads; the first rows may be shared by all texts.

    The tower computes the shared rows once. Text n is `shared` followed by `own[n]`.

    Attributes:
        shared: (S, d) embeddings common to all texts, at least the start token; before positions are added.
        own: (N, L, d) the rest of each text.
        eos: (N,) int64, end position of each text counted within `own`; `TextEnds` where they are known beforehand.
    """

    shared: Tensor
    own: Tensor
    eos: Tensor | TextEnds
