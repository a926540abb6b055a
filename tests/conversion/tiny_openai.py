"""A tiny random CLIP in OpenAI's layout, the same on every machine, and its forward written out from the equations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"
BPE = DATA / "bpe.txt"
"""A made-up vocabulary file in the form of OpenAI's: one header line, one merge per line."""

CLASS_NAMES = ("cat", "big_dog", "Tree frog", "red car", "photo")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a CLIP; heads are 64 wide."""

    width: int = 64
    layers: int = 2
    patch: int = 8
    image: int = 32
    text_width: int = 64
    text_layers: int = 2
    context: int = 12
    embed: int = 32
    vocab: int = 512 + len(BPE.read_text().split("\n")) - 1 + 2


def openai_state_dict(sizes: Sizes = Sizes(), seed: int = 0) -> dict[str, Tensor]:
    """Random weights under OpenAI's names, rounded to half precision as in the published files, stored in float32."""
    random = np.random.RandomState(seed)  # its stream never changes between numpy versions

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape) * std).half().float()

    state = {}

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = (
            (1 + normal(width, std=0.2)).half().float(),
            normal(width, std=0.2),
        )

    def blocks(name: str, width: int, layers: int) -> None:
        for i in range(layers):
            block = f"{name}.resblocks.{i}"
            shapes = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
            shapes |= {"mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}
            for part, (out, inp) in shapes.items():
                state[f"{block}.{part}weight"] = normal(out, inp, std=inp**-0.5)
                state[f"{block}.{part}bias"] = normal(out, std=0.1)
            norm(f"{block}.ln_1", width)
            norm(f"{block}.ln_2", width)

    s = sizes
    state["logit_scale"] = torch.tensor(math.log(20.0)).half().float()
    state["token_embedding.weight"] = normal(s.vocab, s.text_width, std=0.3)
    state["positional_embedding"] = normal(s.context, s.text_width, std=0.1)
    state["text_projection"] = normal(s.text_width, s.embed, std=s.text_width**-0.5)
    blocks("transformer", s.text_width, s.text_layers)
    norm("ln_final", s.text_width)
    state["visual.conv1.weight"] = normal(s.width, 3, s.patch, s.patch, std=0.1)
    state["visual.class_embedding"] = normal(s.width)
    state["visual.positional_embedding"] = normal((s.image // s.patch) ** 2 + 1, s.width, std=0.3)
    state["visual.proj"] = normal(s.width, s.embed, std=s.width**-0.5)
    norm("visual.ln_pre", s.width)
    norm("visual.ln_post", s.width)
    blocks("visual.transformer", s.width, s.layers)
    return state


def images(count: int, sizes: Sizes = Sizes(), seed: int = 1) -> Tensor:
    """(count, 3, S, S) random pixels, taken as normalised."""
    pixels = np.random.RandomState(seed).standard_normal((count, 3, sizes.image, sizes.image))
    return torch.from_numpy(pixels).float()


class _Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); attention written out head by head."""

    def __init__(self, width: int, causal: bool):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64)  # holds the weights under OpenAI's names; never called
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.heads, self.causal = width // 64, causal

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        projected = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = projected.view(batch, length, 3, self.heads, 64).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(2, 3) / 8.0
        if self.causal:
            scores = scores + torch.full((length, length), float("-inf")).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = x + F.linear(mixed, self.attn.out_proj.weight, self.attn.out_proj.bias)
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class _Blocks(nn.Module):
    def __init__(self, width: int, layers: int, causal: bool):
        super().__init__()
        self.resblocks = nn.Sequential(*(_Block(width, causal) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class _Image(nn.Module):
    def __init__(self, s: Sizes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, s.width, s.patch, s.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(s.width))
        self.positional_embedding = nn.Parameter(torch.empty((s.image // s.patch) ** 2 + 1, s.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.transformer = _Blocks(s.width, s.layers, causal=False)
        self.proj = nn.Parameter(torch.empty(s.width, s.embed))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x)[:, 0]) @ self.proj


class OpenAIClip(nn.Module):
    """(pixels (B, 3, S, S), ids (N, L) padded with 0) -> image features (B, E), text features (N, E)."""

    def __init__(self, sizes: Sizes = Sizes(), seed: int = 0):
        super().__init__()
        s = sizes
        self.visual = _Image(s)
        self.transformer = _Blocks(s.text_width, s.text_layers, causal=True)
        self.token_embedding = nn.Embedding(s.vocab, s.text_width)
        self.positional_embedding = nn.Parameter(torch.empty(s.context, s.text_width))
        self.ln_final = nn.LayerNorm(s.text_width)
        self.text_projection = nn.Parameter(torch.empty(s.text_width, s.embed))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.load_state_dict(openai_state_dict(sizes, seed))
        self.eval()

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding)
        rows = self.ln_final(x)[torch.arange(ids.shape[0]), ids.argmax(dim=-1)]
        return self.visual(pixels), rows @ self.text_projection
