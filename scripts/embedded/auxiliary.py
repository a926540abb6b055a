"""What pre-training of the embedded GLIP adds to the detector's own loss, and how its processes share gradients."""

from __future__ import annotations

import collections
import math
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pretrain_clip import sentence_embeddings
from rendering import KINDS
from scene_batches import LONGEST_CAPTION
from scenes import is_object
from torch import Tensor, nn

from duotune.grounding import build_caption
from duotune.models.glip.deform_conv import ModulatedDeformConv


def teach_names(model, processor, records, minutes: float, batch: int = 48, lr: float = 1.5e-3) -> float:
    """Stage one: the mean token of each name in a caption, mapped linearly, points where MiniLM points. -> last cosine."""
    names = sorted({r["name"] for r in records if not r["concept"].startswith("n:")} | set(KINDS.values()))
    likely = sorted({r["name"] for r in records if is_object(r)})
    number = {name: k for k, name in enumerate(names)}
    teacher = sentence_embeddings(names).to(model.device)
    mapped = nn.Linear(model.config.text_dim, teacher.shape[1]).to(model.device)
    text = model.model.text.train()
    optimiser = torch.optim.AdamW([*text.parameters(), *mapped.parameters()], lr=lr, weight_decay=0.01)
    rng, started, step, recent = np.random.default_rng(0), time.time(), 0, collections.deque(maxlen=50)
    while (part := (time.time() - started) / (60 * minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1, step / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * part)))
        captions = []
        for _ in range(batch):
            pool = likely if rng.random() < 0.6 else names
            picked = [pool[k] for k in rng.choice(len(pool), int(rng.integers(1, 13)), replace=False)]
            captions.append(build_caption(picked, processor.tokenizer, LONGEST_CAPTION))
        ids = {k: v.to(model.device) for k, v in processor.tokenize([c.text for c in captions]).items()}
        hidden = text(**ids).last_hidden_state
        rows = [hidden[b, list(tokens)].mean(0) for b, c in enumerate(captions) for tokens in c.tokens]
        wanted = teacher[[number[name] for c in captions for name in c.names]]
        cosine = F.cosine_similarity(mapped(torch.stack(rows)), wanted).mean()
        optimiser.zero_grad()
        (1 - cosine).backward()
        nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimiser.step()
        recent.append(cosine.item())
        step += 1
    return float(np.mean(recent))


def choosing_loss(out, labels: list[dict[str, Tensor]], strides=(8, 16), border: float = 34.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each object's name among the names of its caption, and the share that is right.

    Read off the token logits of the cell in the middle of the object, on the level that objects of its size go to: a
    name's logit is the mean over its tokens. The detector's own loss compares every name with nothing instead.
    """
    cells, wide = [0, len(out.anchors[0])], [round(len(level) ** 0.5) for level in out.anchors]
    total = right = count = 0
    for logits, label in zip(out.logits, labels):
        centre, sides = (
            (label["boxes"][:, :2] + label["boxes"][:, 2:] + 1) / 2,
            label["boxes"][:, 2:] - label["boxes"][:, :2],
        )
        coarse = (sides.prod(1).sqrt() > border).long()
        place = (centre / torch.tensor(strides, device=centre.device)[coarse, None]).long()
        limit = torch.tensor(wide, device=centre.device)[coarse]
        place = torch.minimum(place, limit[:, None] - 1)
        index = torch.tensor(cells, device=centre.device)[coarse] + place[:, 1] * limit + place[:, 0]
        names = F.pad(label["names"], (0, logits.shape[1] - label["names"].shape[1]))
        scores = logits[index].float() @ (names / names.sum(1, keepdim=True)).T
        total = total + F.cross_entropy(scores, label["places"], reduction="sum")
        right, count = right + (scores.argmax(1) == label["places"]).sum(), count + len(index)
    return total / count, right / count


class PlainConvolutions:
    """While on, deformable convolutions are computed as the plain ones that they are where all offsets are zero.

    Offsets start at zero here and are held there until `off`: several times faster, and what is learnt serves the
    deformable ones from the step on which they are let go.
    """

    def __init__(self, model):
        self.deformable = ModulatedDeformConv.forward
        self.offsets = [block.image.offset for block in model.model.tower.blocks]

    @torch.no_grad()
    def start(self) -> None:
        for convolution in self.offsets:
            convolution.weight.zero_()
            convolution.bias.zero_()

    def on(self) -> None:
        half = torch.tensor(0.0).sigmoid().item()  # the mask where nothing is asked of it
        ModulatedDeformConv.forward = lambda m, x, offset, mask: F.conv2d(
            x, half * m.weight, m.bias, m.stride, padding=1
        )

    def off(self) -> None:
        ModulatedDeformConv.forward = self.deformable


class ConceptReader(nn.Module):
    """The auxiliary loss: which concept lies at the middle of each box, read off the maps before fusion."""

    def __init__(self, channels: int, concepts: int, strides=(8, 16)):
        super().__init__()
        self.strides = strides
        self.read = nn.ModuleList(nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, concepts)) for _ in strides)

    def forward(self, maps, labels: list[dict[str, Tensor]], concepts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """(loss, share of objects that are named right)."""
        wanted = torch.cat(concepts)
        sample = torch.cat([torch.full((len(c),), b) for b, c in enumerate(concepts)]).to(wanted.device)
        centre = torch.cat([(label["boxes"][:, :2] + label["boxes"][:, 2:] + 1) / 2 for label in labels])
        total = right = 0.0
        for read, level, stride in zip(self.read, maps, self.strides):
            row, column = (
                (centre[:, axis] / stride).long().clamp(0, level.shape[2 + (axis == 0)] - 1) for axis in (1, 0)
            )
            logits = read(level[sample, :, row, column].float())
            total = total + F.cross_entropy(logits, wanted, label_smoothing=0.05)
            right = right + (logits.argmax(1) == wanted).float().mean()
        return total / len(self.strides), right / len(self.strides)


class Together:
    """What the processes of one training share; does nothing where there is one."""

    def __init__(self, rank: int, processes: int, meeting: str):
        self.rank, self.processes = rank, processes
        if processes > 1:
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)

    def first(self, values: list[Tensor]) -> None:
        """Take over the first process's values."""
        for value in values if self.processes > 1 else ():
            dist.broadcast(value, 0)

    def average(self, parameters: list[nn.Parameter]) -> None:
        """Average gradients."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.processes > 1:
            flat = torch.cat([g.flatten() for g in grads]) / self.processes
            dist.all_reduce(flat)
            for grad, part in zip(grads, flat.split([g.numel() for g in grads])):
                grad.copy_(part.view_as(grad))
