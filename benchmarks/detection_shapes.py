"""What the detection benchmarks run on: GLIP-T's shapes, random weights by official names, one image, one caption.

Weights are drawn anew from a seed of their own name, so both sides make the same ones without sharing code. Their
spread keeps activations of the untrained model in a sane range; it changes no cost.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".")
PAD, CLS, SEP, STOP = 0, 2, 3, 5


@dataclass(frozen=True)
class DetectionShape:
    """Sizes of a GLIP model, of its input and of SDPT's prototypes (K per fusion layer)."""

    height: int
    width: int
    embed: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    channels: int
    groups: int
    layers: int
    inner: int
    fusion_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    text_hidden: int
    vocabulary: int
    text_slots: int
    prototypes: int

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the five image maps."""
        found = [(ceil(self.height / 8), ceil(self.width / 8))]
        for _ in range(4):
            found.append((ceil(found[-1][0] / 2), ceil(found[-1][1] / 2)))
        return found

    @property
    def positions(self) -> int:
        return sum(h * w for h, w in self.sizes)


GLIP_T = DetectionShape(
    800, 1088, 96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 256, 16, 6, 2048, 8, 768, 12, 12, 3072, 30522, 256, 10
)
QUICK_GLIP = DetectionShape(96, 128, 16, (1, 2, 2, 1), (1, 2, 2, 4), 4, 32, 4, 3, 64, 4, 48, 2, 2, 64, 80, 32, 3)
"""A shape small enough to hold ours against plain in a test."""


def text_config(s: DetectionShape):
    """The `transformers.BertConfig` of a shape's text encoder."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=s.vocabulary,
        hidden_size=s.text_width,
        num_hidden_layers=s.text_layers,
        num_attention_heads=s.text_heads,
        intermediate_size=s.text_hidden,
        max_position_embeddings=2 * s.text_slots,
    )


def class_names(valid: int) -> list[str]:
    """Names whose caption has `valid` tokens, [CLS] and [SEP] included: one word each; the first two if it is even."""
    count = (valid - 1) // 2
    names = [f"w{i}" for i in range(count)]
    if valid % 2 == 0:
        names[0] += f" w{count}"
    return names


def tokens_of(words: list[str]) -> list[int]:
    return [len(SPECIAL) + int(word[1:]) for word in words]


def caption(valid: int) -> tuple[list[int], list[list[int]]]:
    """Token ids [CLS] name . name ... [SEP], and the positions of each name's tokens."""
    ids, places = [CLS], []
    for i, name in enumerate(class_names(valid)):
        words = tokens_of(name.split())
        ids += ([STOP] if i else []) + words
        places.append(list(range(len(ids) - len(words), len(ids))))
    return [*ids, SEP], places


def weight_shapes(s: DetectionShape) -> dict[str, tuple[int, ...]]:
    """Official names of all floating-point weights, and their sizes."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, *columns: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = (rows, *columns)
        if bias:
            found[f"{name}.bias"] = (rows,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    body = "backbone.body"
    linear(f"{body}.patch_embed.proj", s.embed, 3, 4, 4)
    norm(f"{body}.patch_embed.norm", s.embed)
    for stage, (depth, heads) in enumerate(zip(s.depths, s.heads)):
        d = s.embed << stage
        for i in range(depth):
            block = f"{body}.layers.{stage}.blocks.{i}"
            norm(f"{block}.norm1", d)
            found[f"{block}.attn.relative_position_bias_table"] = ((2 * s.window - 1) ** 2, heads)
            linear(f"{block}.attn.qkv", 3 * d, d)
            linear(f"{block}.attn.proj", d, d)
            norm(f"{block}.norm2", d)
            linear(f"{block}.mlp.fc1", 4 * d, d)
            linear(f"{block}.mlp.fc2", d, 4 * d)
        if stage < 3:
            linear(f"{body}.layers.{stage}.downsample.reduction", 2 * d, 4 * d, bias=False)
            norm(f"{body}.layers.{stage}.downsample.norm", 4 * d)
        if stage:
            norm(f"{body}.norm{stage}", d)
    for level in (2, 3, 4):
        linear(f"backbone.fpn.fpn_inner{level}", s.channels, s.embed << (level - 1), 1, 1)
        linear(f"backbone.fpn.fpn_layer{level}", s.channels, s.channels, 3, 3)
    for level in (6, 7):
        linear(f"backbone.fpn.top_blocks.p{level}", s.channels, s.channels, 3, 3)

    def text_layer(name: str) -> None:
        for part in ("query", "key", "value"):
            linear(f"{name}.attention.self.{part}", s.text_width, s.text_width)
        linear(f"{name}.attention.output.dense", s.text_width, s.text_width)
        norm(f"{name}.attention.output.LayerNorm", s.text_width)
        linear(f"{name}.intermediate.dense", s.text_hidden, s.text_width)
        linear(f"{name}.output.dense", s.text_width, s.text_hidden)
        norm(f"{name}.output.LayerNorm", s.text_width)

    bert = "language_backbone.body.model"
    for name, rows in (("word", s.vocabulary), ("position", 2 * s.text_slots), ("token_type", 2)):
        linear(f"{bert}.embeddings.{name}_embeddings", rows, s.text_width, bias=False)
    norm(f"{bert}.embeddings.LayerNorm", s.text_width)
    for layer in range(s.text_layers):
        text_layer(f"{bert}.encoder.layer.{layer}")

    head = "rpn.head"
    for layer in range(s.layers):
        fuse = f"{head}.dyhead_tower.{3 * layer}.b_attn"
        found[f"{fuse}.gamma_v"], found[f"{fuse}.gamma_l"] = (s.channels,), (s.text_width,)
        norm(f"{fuse}.layer_norm_v", s.channels)
        norm(f"{fuse}.layer_norm_l", s.text_width)
        for name, width in (("v", s.channels), ("l", s.text_width)):
            linear(f"{fuse}.attn.{name}_proj", s.inner, width)
            linear(f"{fuse}.attn.values_{name}_proj", s.inner, width)
            linear(f"{fuse}.attn.out_{name}_proj", width, s.inner)
        text_layer(f"{head}.dyhead_tower.{3 * layer + 1}")
        image = f"{head}.dyhead_tower.{3 * layer + 2}"
        for place in range(3):
            linear(f"{image}.DyConv.{place}.conv", s.channels, s.channels, 3, 3)
            norm(f"{image}.DyConv.{place}.bn", s.channels)
        linear(f"{image}.AttnConv.1", 1, s.channels, 1, 1)
        linear(f"{image}.relu.fc.0", s.channels // 4, s.channels)
        linear(f"{image}.relu.fc.2", 4 * s.channels, s.channels // 4)
        linear(f"{image}.offset", 27, s.channels, 3, 3)
    linear(f"{head}.bbox_pred", 4, s.channels, 1, 1)
    linear(f"{head}.centerness", 1, s.channels, 1, 1)
    linear(f"{head}.dot_product_projection_text", s.channels, s.text_width)
    found |= {f"{head}.log_scale": (1,), f"{head}.bias_lang": (s.text_width,), f"{head}.bias0": (1,)}
    found |= {f"{head}.scales.{level}.scale": (1,) for level in range(5)}
    return found


def weight(name: str, size: tuple[int, ...]) -> Tensor:
    """float32 values of one weight."""
    noise = torch.randn(size, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("bias0"):
        return noise * 0.1 - 4
    if name.endswith((".scale", "norm1.weight", "norm2.weight", "norm3.weight", "norm.weight", "bn.weight")):
        return 1 + 0.1 * noise
    if name.endswith(("layer_norm_v.weight", "layer_norm_l.weight", "LayerNorm.weight")):
        return 1 + 0.1 * noise
    if ".gamma_" in name:
        return 0.3 + 0.05 * noise
    if len(size) == 1:
        return 0.03 * noise
    gain = 0.5 if ".offset." in name else 0.1 if ".bbox_pred." in name else 1.0
    return gain * noise * noise[0].numel() ** -0.5


def weights(shape: DetectionShape, only: str = "") -> dict[str, Tensor]:
    """All weights whose official name begins with `only`."""
    return {name: weight(name, size) for name, size in weight_shapes(shape).items() if name.startswith(only)}


def picture(shape: DetectionShape) -> Tensor:
    """(1, 3, H, W): smooth noise with some grain, like a normalised image."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, 3, ceil(shape.height / 32), ceil(shape.width / 32), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(shape.height, shape.width), mode="bilinear")
    return smooth + 0.3 * torch.randn(smooth.shape, generator=generator)


def boxes(shape: DetectionShape, count: int = 8) -> Tensor:
    """(count, 4) boxes with inclusive corners, of 1/16 to 1/2 of the picture's sides."""
    generator = torch.Generator().manual_seed(3)
    unit = torch.rand(count, 4, generator=generator)
    sides = torch.tensor([shape.width, shape.height])
    extent = (1 / 16 + unit[:, 2:] * 7 / 16) * sides
    corner = unit[:, :2] * (sides - extent)
    return torch.cat([corner, corner + extent - 1], 1).round()


def box_classes(valid: int, count: int = 8) -> list[int]:
    """Class of each box."""
    return [(3 * i) % len(class_names(valid)) for i in range(count)]


def prototypes(shape: DetectionShape, layers: int | None = None) -> Tensor:
    """(layers, K, inner) in (-1, 1), what both sides start from."""
    layers = shape.layers if layers is None else layers
    size = (layers, shape.prototypes, shape.inner)
    return 2 * torch.rand(size, generator=torch.Generator().manual_seed(2)) - 1


def fusion_inputs(shape: DetectionShape, valid: int) -> dict[str, Tensor]:
    """Normed image positions and text slots of one layer, and what the gradient of each output is."""
    generator = torch.Generator().manual_seed(4)
    normal = lambda rows, width: torch.randn(1, rows, width, generator=generator)
    found = {"visual": normal(shape.positions, shape.channels), "text": normal(shape.text_slots, shape.text_width)}
    found["grad_visual"] = normal(shape.positions, shape.channels)
    found["grad_text"] = normal(shape.text_slots, shape.text_width)
    found["grad_text"][:, valid:] = 0  # nobody reads what comes out where the caption has ended
    return found
