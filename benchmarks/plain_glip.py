"""One SDPT training step on GLIP without any of duotune's shortcuts, arranged as the authors' code arranges it.

Every step runs Swin, feature pyramid and BERT; the caption fills all its slots with padding; every fusion layer takes
two pseudo-inverses, projects every image position to the full inner width and carries the prototypes along as rows of
both modalities; the fusion attention is checkpointed, and nothing else is. Deformable convolutions make their columns
with `grid_sample`, tap by tap, and again in the backward pass, as the authors' operator does. The weights of the
tower's text layers, of its convolutions and of the head get gradients, because the authors' switches leave them
trainable; `frozen=True` freezes them. Nothing of duotune is imported.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .detection_shapes import (
    PAD,
    DetectionShape,
    box_classes,
    boxes,
    caption,
    picture,
    prototypes,
    text_config,
    weights,
)
from .plain_losses import detection_loss
from .steps import FusionStep, TrainingStep


class Weights:
    """Official names below a prefix, with the layers that read them."""

    def __init__(self, values: dict[str, Tensor], prefix: str = ""):
        self.values, self.prefix = values, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.values[self.prefix + name]

    def under(self, name: str) -> Weights:
        return Weights(self.values, f"{self.prefix}{name}.")

    def linear(self, name: str, x: Tensor, bias: bool = True) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"] if bias else None)

    def norm(self, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], eps)

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self[f"{name}.weight"], self[f"{name}.bias"], stride, padding)


# ------------------------------------------------------------------ image tower


def swin_block(w: Weights, x: Tensor, heads: int, window: int, shift: int) -> Tensor:
    batch, height, width, d = x.shape
    y = F.pad(w.norm("norm1", x), (0, 0, 0, -width % window, 0, -height % window))
    rows, columns = y.shape[1] // window, y.shape[2] // window
    y = torch.roll(y, (-shift, -shift), (1, 2))

    def cut(t: Tensor) -> Tensor:
        t = t.reshape(-1, rows, window, columns, window, t.shape[-1]).transpose(2, 3)
        return t.reshape(-1, window * window, t.shape[-1])

    q, k, v = w.linear("attn.qkv", cut(y)).reshape(-1, window**2, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    cell = torch.arange(window)
    place = torch.stack(torch.meshgrid(cell, cell, indexing="ij")).flatten(1)
    delta = place[:, :, None] - place[:, None] + window - 1
    bias = w["attn.relative_position_bias_table"][delta[0] * (2 * window - 1) + delta[1]].permute(2, 0, 1)
    scores = (q * (d // heads) ** -0.5) @ k.mT + bias
    if shift:
        side = torch.zeros(1, y.shape[1], y.shape[2], 1)
        for i, down in enumerate((slice(-window), slice(-window, -shift), slice(-shift, None))):
            for j, right in enumerate((slice(-window), slice(-window, -shift), slice(-shift, None))):
                side[:, down, right] = 3 * i + j
        side = cut(side)
        apart = (side != side.mT) * -100.0
        scores = (scores.view(batch, -1, *scores.shape[1:]) + apart[:, None]).view(scores.shape)
    y = w.linear("attn.proj", (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, window**2, d))
    y = y.view(batch, rows, columns, window, window, d).transpose(2, 3).reshape(batch, rows * window, -1, d)
    x = x + torch.roll(y, (shift, shift), (1, 2))[:, :height, :width]
    return x + w.linear("mlp.fc2", F.gelu(w.linear("mlp.fc1", w.norm("norm2", x))))


def image_maps(w: Weights, shape: DetectionShape, pixels: Tensor) -> list[Tensor]:
    """(1, 3, H, W) -> five maps (1, C, h, w)."""
    body, fpn = w.under("backbone.body"), w.under("backbone.fpn")
    x = body.norm("patch_embed.norm", body.conv("patch_embed.proj", pixels, 4).permute(0, 2, 3, 1))
    found = []
    for stage, (depth, heads) in enumerate(zip(shape.depths, shape.heads)):
        for i in range(depth):
            block = body.under(f"layers.{stage}.blocks.{i}")
            x = swin_block(block, x, heads, shape.window, shape.window // 2 if i % 2 else 0)
        if stage:
            found.append(body.norm(f"norm{stage}", x).permute(0, 3, 1, 2))
        if stage < 3:
            down = body.under(f"layers.{stage}.downsample")
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
            x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
            x = down.linear("reduction", down.norm("norm", x), bias=False)
    merged, maps = None, []
    for level in (4, 3, 2):
        inner = fpn.conv(f"fpn_inner{level}", found[level - 2])
        merged = inner if merged is None else inner + F.interpolate(merged, size=inner.shape[-2:], mode="nearest")
        maps.insert(0, fpn.conv(f"fpn_layer{level}", merged, padding=1))
    p6 = fpn.conv("top_blocks.p6", maps[-1], 2, 1)
    return [*maps, p6, fpn.conv("top_blocks.p7", p6.relu(), 2, 1)]


# ------------------------------------------------------------------ fusion tower


def project_back(prototypes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(K, inner) -> (1, K, d): one pseudo-inverse per call."""
    return ((prototypes - bias) @ torch.linalg.pinv(weight.mT))[None]


def fusion_attention(
    w: Weights, heads: int, visual: Tensor, text: Tensor, mask: Tensor, prototypes: Tensor, seen_by_images: bool
) -> tuple[Tensor, Tensor]:
    """visual (1, N, d_v), text (1, T, d_l), mask (1, T), prototypes (K, inner) -> updates of both."""
    count = len(prototypes)
    v = torch.cat([visual, project_back(prototypes, w["v_proj.weight"].detach(), w["v_proj.bias"].detach())], 1)
    l = torch.cat([text, project_back(prototypes, w["l_proj.weight"].detach(), w["l_proj.bias"].detach())], 1)
    mask = torch.cat([mask, torch.full((1, count), float(seen_by_images))], 1)
    split = lambda x: x.view(1, x.shape[1], heads, -1).transpose(1, 2).contiguous()[0]
    q, k = split(w.linear("v_proj", v)), split(w.linear("l_proj", l))
    q = q * q.shape[-1] ** -0.5
    values_v, values_l = split(w.linear("values_v_proj", v)), split(w.linear("values_l_proj", l))
    scores = torch.bmm(q, k.mT).clamp(-50000, 50000)
    turned = scores.mT
    to_text = (turned - turned.amax(-1, keepdim=True)).clamp(-50000, 50000).softmax(-1)
    to_image = (scores + mask.masked_fill(mask == 0, -9e15)[:, None]).softmax(-1)
    join = lambda x: x.transpose(0, 1).reshape(1, x.shape[1], -1)
    delta_v = w.linear("out_v_proj", join(torch.bmm(to_image, values_l)))
    delta_l = w.linear("out_l_proj", join(torch.bmm(to_text, values_v)))
    return delta_v[:, :-count], delta_l[:, :-count]


def fuse(
    w: Weights, heads: int, maps: list[Tensor], text: Tensor, mask: Tensor, prototypes: Tensor, seen_by_images: bool
) -> tuple[list[Tensor], Tensor]:
    visual = w.norm("layer_norm_v", torch.cat([m.flatten(2).mT for m in maps], 1))
    text = w.norm("layer_norm_l", text)
    delta_v, delta_l = fusion_attention(w.under("attn"), heads, visual, text, mask, prototypes, seen_by_images)
    visual, text = visual + w["gamma_v"] * delta_v, text + w["gamma_l"] * delta_l
    parts = visual.mT.split([m.shape[2] * m.shape[3] for m in maps], 2)
    return [part.reshape(m.shape) for part, m in zip(parts, maps)], text


def text_layer(w: Weights, heads: int, text: Tensor, mask: Tensor) -> Tensor:
    split = lambda x: x.view(1, x.shape[1], heads, -1).transpose(1, 2)
    q, k, v = (split(w.linear(f"attention.self.{name}", text)) for name in ("query", "key", "value"))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).clamp(-50000, 50000)
    scores = scores + ((1 - mask) * torch.finfo(scores.dtype).min)[:, None, None]
    attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(text.shape)
    text = w.norm("attention.output.LayerNorm", text + w.linear("attention.output.dense", attended), 1e-12)
    hidden = F.gelu(w.linear("intermediate.dense", text).clamp(-50000, 50000)).clamp(-50000, 50000)
    return w.norm("output.LayerNorm", text + w.linear("output.dense", hidden).clamp(-50000, 50000), 1e-12)


def columns(x: Tensor, offset: Tensor, mask: Tensor, stride: int) -> Tensor:
    """(1, C, H, W), (1, 18, h, w), (1, 9, h, w) -> (C 9, h w): what each tap of each output position reads."""
    height, width = x.shape[-2:]
    h, w = mask.shape[-2:]
    y, z = torch.meshgrid(torch.arange(h) * stride - 1.0, torch.arange(w) * stride - 1.0, indexing="ij")
    found = []
    for tap in range(9):
        down = y + tap // 3 + offset[0, 2 * tap]
        right = z + tap % 3 + offset[0, 2 * tap + 1]
        grid = torch.stack([(2 * right + 1) / width - 1, (2 * down + 1) / height - 1], -1)
        sampled = F.grid_sample(x, grid[None], mode="bilinear", padding_mode="zeros", align_corners=False)
        found.append(sampled[0] * mask[0, tap])
    return torch.stack(found, 1).flatten(2).flatten(0, 1)


def deformable(w: Weights, x: Tensor, offset: Tensor, mask: Tensor, stride: int) -> Tensor:
    """Deformable convolution and group norm; the columns are made again in the backward pass."""

    def convolve(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        out = weight.flatten(1) @ columns(x, offset, mask, stride) + bias[:, None]
        return out.view(1, -1, *mask.shape[-2:])

    return checkpoint(convolve, x, offset, mask, w["conv.weight"], w["conv.bias"], use_reentrant=False)


def dynamic_conv(w: Weights, groups: int, maps: list[Tensor]) -> list[Tensor]:
    def branch(place: int, x: Tensor, offset: Tensor, mask: Tensor, stride: int = 1) -> Tensor:
        part = w.under(f"DyConv.{place}")
        return F.group_norm(deformable(part, x, offset, mask, stride), groups, part["bn.weight"], part["bn.bias"])

    found = []
    for level, x in enumerate(maps):
        planes = w.conv("offset", x, padding=1)
        offset, mask = planes[:, :18].contiguous(), planes[:, 18:].sigmoid()
        branches = [branch(1, x, offset, mask)]
        if level > 0:
            branches.append(branch(2, maps[level - 1], offset, mask, stride=2))
        if level < len(maps) - 1:
            size = maps[level + 1].shape[-2:]
            cells = size[0] * size[1]  # the operator reads the buffers as if they had the coarser map's size
            coarse = offset.flatten()[: 18 * cells].view(1, 18, *size), mask.flatten()[: 9 * cells].view(1, 9, *size)
            out = branch(0, maps[level + 1], *coarse)
            branches.append(F.interpolate(out, size=x.shape[-2:], mode="bilinear", align_corners=True))
        stacked = torch.stack(branches)
        gates = torch.stack([w.conv("AttnConv.1", b.mean((2, 3), keepdim=True)).relu() for b in branches])
        x = (stacked * (F.relu6(gates + 3) / 6)).mean(0)
        squeezed = w.linear("relu.fc.2", w.linear("relu.fc.0", x.mean((2, 3))).relu())
        a1, b1, a2, b2 = (F.relu6(squeezed + 3) / 6)[..., None, None].chunk(4, 1)
        first = x * ((a1 - 0.5) * 2 + 1) + (b1 - 0.5)
        found.append(torch.maximum(first, x * ((a2 - 0.5) * 2) + (b2 - 0.5)))
    return found


def head(w: Weights, maps: list[Tensor], text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token logits (N, T), box deltas (N, 4), centerness (N)."""
    unit = F.normalize(text, dim=-1)
    words = w.linear("dot_product_projection_text", unit / 2)
    bias = unit @ w["bias_lang"] + w["bias0"]
    flat = lambda x: x.flatten(2).mT[0]
    logits = torch.cat([flat(m) @ words[0].mT / w["log_scale"].exp() + bias for m in maps]).clamp(-50000, 50000)
    deltas = [flat(w.conv("bbox_pred", m)) * w[f"scales.{level}.scale"] for level, m in enumerate(maps)]
    return logits, torch.cat(deltas), torch.cat([flat(w.conv("centerness", m))[:, 0] for m in maps])


# ------------------------------------------------------------------ what is timed


class PlainSdptStep(TrainingStep):
    """One SDPT training step: call it; gradients stay on `parameters`.

    Args:
        valid: tokens of the caption; the other slots are padding.
        frozen: give gradients to the prototypes alone.
        visible: "both", or "text_queries", where the mask hides the text-side prototypes as in the authors' code.
    """

    def __init__(self, shape: DetectionShape, valid: int, frozen: bool = False, visible: str = "both"):
        from transformers import BertModel

        self.shape, self.visible = shape, visible
        values = weights(shape)
        with torch.device("meta"):
            self.bert = BertModel(text_config(shape), add_pooling_layer=False).eval().requires_grad_(False)
        prefix = "language_backbone.body.model."
        own = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        self.bert.load_state_dict(own, strict=False, assign=True)
        self.bert.requires_grad_(False)
        self.bert.embeddings.position_ids = torch.arange(2 * shape.text_slots)[None]
        self.bert.embeddings.token_type_ids = torch.zeros(1, 2 * shape.text_slots, dtype=torch.long)
        self.weights = Weights({k: v for k, v in values.items() if not k.startswith(prefix)})
        if not frozen:
            for name, value in self.weights.values.items():
                value.requires_grad_(name.startswith("rpn.head.") and ".b_attn." not in name)
        ids, places = caption(valid)
        self.ids = torch.full((1, shape.text_slots), PAD)
        self.ids[0, :valid] = torch.tensor(ids)
        self.mask = (torch.arange(shape.text_slots) < valid).float()[None]
        self.pixels, self.boxes = picture(shape), boxes(shape)
        self.positive = torch.zeros(len(self.boxes), shape.text_slots)
        for row, label in zip(self.positive, box_classes(valid)):
            row[places[label]] = 1
        self.parameters = {"prototypes.tokens": prototypes(shape).requires_grad_()}
        trained = [*self.parameters.values(), *(v for v in self.weights.values.values() if v.requires_grad)]
        self.optimiser = torch.optim.AdamW(trained, lr=1e-5)

    def loss(self) -> Tensor:
        shape, w = self.shape, self.weights
        maps = image_maps(w, shape, self.pixels)
        text = self.bert(input_ids=self.ids, attention_mask=self.mask.long()).last_hidden_state
        for layer, tokens in enumerate(self.parameters["prototypes.tokens"]):
            tower = w.under("rpn.head.dyhead_tower")
            maps, text = checkpoint(
                fuse,
                tower.under(f"{3 * layer}.b_attn"),
                shape.fusion_heads,
                maps,
                text,
                self.mask,
                tokens,
                self.visible == "both",
                use_reentrant=False,
            )
            text = text_layer(tower.under(f"{3 * layer + 1}"), shape.text_heads, text, self.mask)
            maps = dynamic_conv(tower.under(f"{3 * layer + 2}"), shape.groups, maps)
        outputs = head(w.under("rpn.head"), maps, text)
        return detection_loss(*outputs, shape.sizes, self.boxes, self.positive, self.mask[0])


class PlainFusion(FusionStep):
    """One fusion layer's attention with all text slots."""

    def __init__(self, shape: DetectionShape, valid: int):
        super().__init__(shape, valid)
        prefix = "rpn.head.dyhead_tower.0.b_attn.attn."
        self.weights, self.heads = Weights(weights(shape, prefix), prefix), shape.fusion_heads
        self.mask = (torch.arange(shape.text_slots) < valid).float()[None]

    def attend(self, prototypes: Tensor, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return fusion_attention(self.weights, self.heads, visual, text, self.mask, prototypes, seen_by_images=True)
