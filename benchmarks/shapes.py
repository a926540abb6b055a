"""What the benchmarks run on: CLIP's shapes with random weights, and class names of realistic length.

Random weights cost the same as trained ones, so nothing is downloaded. Names come from a table of
token counts close to ImageNet's class names under CLIP's tokenizer (1 to 6 tokens, 2.3 on average):
what matters for the cost is how long the names are, not what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

NAME_LENGTHS = (1, 2, 2, 3, 1, 2, 4, 1, 2, 3, 2, 1, 3, 2, 1, 4, 2, 3, 1, 6)
"""Tokens per class name, repeated over the classes."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a CLIP model and of a batch."""

    image_size: int
    patch: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    embed: int
    vocabulary: int
    text_length: int = 77
    head: int = 64
    batch: int = 32
    context_tokens: int = 16
    visual_tokens: int = 10
    candidates: int = 10

    @property
    def image_tokens(self) -> int:
        return (self.image_size // self.patch) ** 2 + 1


VIT_B16 = Shape(224, 16, 768, 12, 512, 12, 512, 49408)
QUICK = Shape(32, 8, 64, 2, 64, 2, 32, 600, head=32, batch=4, context_tokens=4, visual_tokens=3, candidates=3)
"""A shape small enough to hold ours against plain in a test."""


class WordTokenizer:
    """One token per word or full stop: [start] words [end], like a CLIP tokenizer without merges."""

    def __init__(self, vocabulary: int):
        self.start, self.end = vocabulary - 2, vocabulary - 1

    def encode(self, text: str) -> list[int]:
        words = text.replace(".", " .").replace(",", " ,").split()
        ids = [sum(ord(c) * 31**i for i, c in enumerate(word)) % (self.start - 1) + 1 for word in words]
        return [self.start, *ids, self.end]

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> SimpleNamespace:
        rows = [self.encode(text) for text in texts]
        return SimpleNamespace(input_ids=rows if add_special_tokens else [row[1:-1] for row in rows])


def class_names(count: int) -> list[str]:
    """`count` different names whose lengths follow NAME_LENGTHS."""
    lengths = [NAME_LENGTHS[i % len(NAME_LENGTHS)] for i in range(count)]
    return [" ".join([*("ab"[j % 2] for j in range(n - 1)), f"c{i}"]) for i, n in enumerate(lengths)]


def build_model(shape: Shape, dtype: torch.dtype = torch.float32):
    """A `CLIPModel` with random weights, the same ones at every call."""
    from transformers import CLIPConfig, CLIPModel

    text = dict(
        hidden_size=shape.text_width,
        intermediate_size=4 * shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_width // shape.head,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.text_length,
        eos_token_id=shape.vocabulary - 1,
        bos_token_id=shape.vocabulary - 2,
        pad_token_id=shape.vocabulary - 1,
        hidden_act="quick_gelu",
    )
    vision = dict(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // shape.head,
        image_size=shape.image_size,
        patch_size=shape.patch,
        hidden_act="quick_gelu",
    )
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=shape.embed)
    return CLIPModel(config).eval().requires_grad_(False).to(dtype)


def batch(shape: Shape, num_classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, S, S) and labels (B,)."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(shape.batch, 3, shape.image_size, shape.image_size, generator=generator)
    return pixels, torch.randint(0, num_classes, (shape.batch,), generator=generator)


def initial_parameters(shape: Shape, method: str, num_classes: int) -> dict[str, Tensor]:
    """What both sides start from, under the names of duotune's state dicts."""
    generator = torch.Generator().manual_seed(2)
    normal = lambda *size, std=0.02: torch.randn(*size, generator=generator) * std
    parameters = {"text.context.tokens": normal(shape.context_tokens, shape.text_width)}
    if method == "dpt":
        d = shape.vision_width
        parameters |= {
            "visual.prompts.tokens": normal(shape.vision_layers - 1, shape.visual_tokens, d),
            "class_aware.0.extra_tokens": normal(10, d),
            "class_aware.0.meta.weight": normal(d, shape.embed, std=shape.embed**-0.5),
            "class_aware.0.meta.bias": normal(d),
            "class_aware.0.attention.query.weight": normal(32, d, std=d**-0.5),
            "class_aware.0.attention.key.weight": normal(32, d, std=d**-0.5),
            "class_aware.0.attention.value.weight": normal(d, d, std=d**-0.5),
            "class_aware.0.norm.weight": 1 + normal(d),
            "class_aware.0.norm.bias": normal(d),
            "aux.0.norm.weight": 1 + normal(d),
            "aux.0.norm.bias": normal(d),
            "aux.0.classifier.weight": normal(num_classes, d, std=d**-0.5),
        }
    return parameters
