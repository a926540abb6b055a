"""What a method may see of a frozen model: its ports.

    text tower      tokens in, text features out; learnt context may replace word embeddings
    vision tower    pixels in, image features out; asks `prompts(layer, hidden)` before every layer
    fusion layers   bidirectional attention between image and text tokens (detectors)
    detect head     boxes and token logits (detectors)

Towers are driven, not hooked: an adapter runs the frozen layers itself, so a prompt needs no
monkey-patching and rows that nobody reads are never computed.
"""

from __future__ import annotations

import abc
import enum
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Port(str, enum.Enum):
    """A place where a method may act."""

    TEXT_TOWER = "text tower"
    VISION_TOWER = "vision tower"
    FUSION_LAYERS = "fusion layers"
    DETECT_HEAD = "detect head"

    def __str__(self) -> str:
        return self.value


@dataclass
class TextTokens:
    """Tokenised texts.

    Attributes:
        ids: (N, L) int64, padded at the right to the longest text.
        eos: (N,) int64, position of each text's end token, where its feature is read.
    """

    ids: Tensor
    eos: Tensor


@dataclass
class TextSequence:
    """Token embeddings that a causal text tower reads; the first rows may be shared by all texts.

    The tower computes the shared rows once. Text n is `shared` followed by `own[n]`.

    Attributes:
        shared: (S, d) embeddings common to all texts, at least the start token; before positions are added.
        own: (N, L, d) the rest of each text.
        eos: (N,) int64, end position of each text counted within `own`.
    """

    shared: Tensor
    own: Tensor
    eos: Tensor


class VisionPrompts(Protocol):
    """What a vision tower asks before each layer.

    persistent: False: a layer's tokens are removed from its output (VPT-deep, CAVPT).
        True: tokens stay in the sequence (VPT-shallow).
    """

    persistent: bool

    def __call__(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Tokens (P, d) or (B, P, d) for `layer` (0-based), given its input (B, N, d); None for no prompt."""


class Backbone(nn.Module, abc.ABC):
    """A frozen pre-trained model seen through ports.

    Attributes:
        name: the Hub id, folder or embedded name it was loaded from.
        ports: the ports this backbone has.
        model: the Hugging Face model, never changed.
    """

    ports: frozenset[Port] = frozenset()

    def __init__(self, name: str, model: nn.Module):
        super().__init__()
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self._fingerprint: str | None = None

    def train(self, mode: bool = True) -> Backbone:
        """A frozen model stays in eval mode: its dropout must not come alive during training."""
        return super().train(False)

    def fingerprint(self) -> str:
        """16 hex digits that depend on every weight's name, shape and value as loaded.

        Independent of device and of the precision the model is later cast to; computed once.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().float().contiguous().numpy())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def _apply(self, fn, *args, **kwargs):
        # a cast to a lower precision loses bits: take the fingerprint of what was loaded first
        probe = (
            next(self.model.parameters())[:0] if next(self.model.parameters()).ndim else next(self.model.parameters())
        )
        if fn(probe).dtype != probe.dtype:
            self.fingerprint()
        return super()._apply(fn, *args, **kwargs)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


class DualEncoder(Backbone):
    """A backbone with a text tower and a vision tower that meet in one embedding space (CLIP).

    Attributes:
        text_width, vision_width: token widths. embed_dim: width E of the joint space.
        text_layers, vision_layers: number of layers.
        max_text_tokens: longest text in tokens, start and end included.
        image_size: side of the square input in pixels.
        image_mean, image_std: per-channel normalisation of RGB in 0..1.
    """

    ports = frozenset({Port.TEXT_TOWER, Port.VISION_TOWER})
    text_width: int
    vision_width: int
    embed_dim: int
    text_layers: int
    vision_layers: int
    max_text_tokens: int
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    @property
    @abc.abstractmethod
    def logit_scale(self) -> Tensor:
        """Scalar that multiplies cosines (already exponentiated)."""

    @abc.abstractmethod
    def tokenize(self, texts: Sequence[str]) -> TextTokens:
        """Raises ClassNamesError if a text does not fit `max_text_tokens`."""

    @abc.abstractmethod
    def embed_tokens(self, ids: Tensor) -> Tensor:
        """(…,) token ids -> (…, text_width) embeddings, without positions."""

    @abc.abstractmethod
    def encode_sequence(self, sequence: TextSequence) -> Tensor:
        """-> (N, E) text features, not normalised. Differentiable in `shared` and `own`."""

    @abc.abstractmethod
    def encode_image(self, pixel_values: Tensor, prompts: VisionPrompts | None = None) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, E) image features, not normalised."""

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Frozen features (N, E) of plain texts, not normalised, without gradient."""
        rows = []
        with torch.no_grad():
            for start in range(0, len(texts), batch_size):
                tokens = self.tokenize(texts[start : start + batch_size])
                embedded = self.embed_tokens(tokens.ids)
                rows.append(self.encode_sequence(TextSequence(embedded[0, :1], embedded[:, 1:], tokens.eos - 1)))
        return torch.cat(rows)
