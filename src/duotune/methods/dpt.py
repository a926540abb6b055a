"""DPT: dual-modality prompt tuning (arXiv 2208.08340).

    class names + context ──► text tower ──► tuned text (C, E) ──────────────────────┐
                                                 │ rows of the Q candidates          │
    image ─► frozen CLIP ─► top-Q candidates ────┤                                   │
                                                 ▼                                   │
    image ─► patches ─► [layers 1 … b-1 + P_i] ─► [layers b … L + CAVPT] ─► tuned image ─► exp(scale) · cos

1. Text context as in CoOp. 2. Visual prompt tokens as in VPT-deep at layers 1 … b-1.
3. Class-aware visual prompts (CAVPT) at layers b … L, Q tokens per image: cross-attention from the
   tuned, not normalised text features of the image's Q candidate classes to the layer's detached
   input tokens (`prompts.ClassAwarePrompts`). Candidates are the top-Q classes of plain frozen
   zero-shot CLIP with the hand-written template; Q is capped at C.

    loss = CE(s) + α · L_ca,       s = logits of tuned image against tuned text
    L_ca = mean CE of the auxiliary logits over the (image, layer, candidate) triples whose
           candidate is the ground truth; nothing if there is none
    for the first `guidance_epochs` the first term is instead
           CE(frozen image, tuned text) + CE(tuned image, template text) + 0.1 · CE(s)

Where this differs from the authors' code: auxiliary logits are computed for one triple per image and
layer alone, in the working precision (theirs casts to half); candidates and frozen features can come
from a cache; the amp branch works.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.base import DualEncoder
from ..errors import ConfigError
from ..names import same_classes
from ..processes import mean_over_processes
from ..prompts.class_aware import AuxiliaryHead, ClassAwarePrompts
from .base import ClassifierOutput, ImageBatch, Method, ParamGroup, Progress
from .common import cosine_logits, frozen_image_features, scaled_cosines, template_features
from .coop import TextContext
from .vlp import VLPConfig
from .vpt import VisualPrompts


@dataclass
class DPTConfig(VLPConfig):
    """Settings of DPT, with the authors' defaults (those of CoOp and VPT included).

    class_aware_from: b, the first layer with class-aware prompts, counted from 1; 0 for the last layer alone.
    num_candidates: Q, candidate classes (= class-aware tokens) per image; capped at the number of classes.
    num_extra_tokens: learnt keys and values beside the layer's own tokens.
    guidance_epochs: epochs guided by the frozen features.
    guidance_weight: weight of CE(s) during those epochs.
    aux_loss_weight: α.
    """

    class_aware_from: int = 0
    num_candidates: int = 10
    num_extra_tokens: int = 10
    guidance_epochs: int = 30
    guidance_weight: float = 0.1
    aux_loss_weight: float = 0.3

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if not self.deep:
            yield "dpt needs deep visual prompts (deep=True)"
        if self.class_aware_from < 0:
            yield f"class_aware_from must be 0 (last layer) or a layer counted from 1, not {self.class_aware_from}"
        yield from self.below_one("num_candidates")
        yield from self.negative("num_extra_tokens", "guidance_epochs", "guidance_weight", "aux_loss_weight")

    def remarks(self, num_epochs: int) -> Iterator[str]:
        yield from super().remarks(num_epochs)
        if self.guidance_epochs >= num_epochs:
            yield (
                f"all {num_epochs} epochs are guided by the frozen features (guidance_epochs={self.guidance_epochs}), "
                f"with CE(s) at a weight of {self.guidance_weight:g}; train longer, or lower guidance_epochs"
            )


class _LayerPrompts:
    """What the vision tower asks of DPT for one batch; gathers the attended candidates of CAVPT layers."""

    persistent = False

    def __init__(self, visual: VisualPrompts, class_aware: nn.ModuleList, first: int, candidates: Tensor):
        self.visual, self.class_aware, self.first, self.candidates = visual, class_aware, first, candidates
        self.attended: list[Tensor] = []

    def __call__(self, layer: int, hidden: Tensor) -> Tensor | None:
        if layer < self.first:
            return self.visual(layer, hidden)
        tokens, attended = self.class_aware[layer - self.first](hidden.float(), self.candidates)
        self.attended.append(attended)
        return tokens


class DPT(Method):
    """Text context, visual prompts and class-aware visual prompts; see the module docstring."""

    Config = DPTConfig
    config: DPTConfig
    aux: nn.ModuleList
    aux_names: tuple[str, ...]
    needs_frozen_features = True
    training_only = ("aux",)
    tells = ("candidates",)

    def __init__(self, config: DPTConfig):
        super().__init__(config)
        self.text, self.visual = TextContext(config), VisualPrompts(config)

    def on_classes(self, backbone: DualEncoder) -> None:
        config, num_classes = self.config, len(self.class_names)
        self.text.set_classes(backbone, self.class_names)
        self.first = (config.class_aware_from or backbone.vision_layers) - 1
        if not 0 <= self.first < backbone.vision_layers:
            raise ConfigError(
                f"class_aware_from is layer {config.class_aware_from}, the vision tower of {backbone.name} has layers "
                f"1 to {backbone.vision_layers}"
            )
        self.visual.create(backbone, num_layers=self.first)
        if not hasattr(self, "class_aware"):
            self.class_aware = nn.ModuleList(
                ClassAwarePrompts(backbone.embed_dim, backbone.vision_width, config.num_extra_tokens)
                for _ in range(backbone.vision_layers - self.first)
            )
        if not hasattr(self, "aux") or same_classes(self.class_names, self.aux_names) is None:
            self.aux = nn.ModuleList(AuxiliaryHead(backbone.vision_width, num_classes) for _ in self.class_aware)
        self.aux_names = self.class_names
        features = template_features(backbone, self.class_names, self.template)
        self.register_buffer("template_text", features, persistent=False)

    @property
    def class_rows(self) -> tuple[str, ...]:
        heads = tuple(f"aux.{i}.classifier.weight" for i in range(len(self.aux)))
        return self.text.class_rows + heads

    def forward(self, backbone: DualEncoder, batch: ImageBatch) -> ClassifierOutput:
        frozen = frozen_image_features(backbone, batch)
        text = self.remember("text", lambda: self.text.features(backbone).float(), backbone)
        with torch.no_grad():
            count = min(self.config.num_candidates, len(self.class_names))
            cosines = cosine_logits(backbone, frozen, self.template_text)
            candidates = cosines.topk(count, dim=-1).indices  # (B, Q)
        prompts = _LayerPrompts(self.visual, self.class_aware, self.first, text[candidates])
        image = backbone.encode_image(batch.pixel_values, prompts)
        extras = {"image": image, "text": text, "frozen": frozen, "candidates": candidates}
        extras["attended"] = torch.stack(prompts.attended, dim=1)  # (B, layers, Q, d)
        extras["logit_scale"] = backbone.logit_scale
        return ClassifierOutput(cosine_logits(backbone, image, text), extras)

    def loss(self, output: ClassifierOutput, labels: Tensor, progress: Progress) -> Tensor:
        config, e = self.config, output.extras
        loss = F.cross_entropy(output.logits, labels)
        if progress.epoch < config.guidance_epochs:
            text_side = scaled_cosines(e["logit_scale"], e["frozen"], e["text"])
            image_side = scaled_cosines(e["logit_scale"], e["image"], self.template_text)
            guided = F.cross_entropy(text_side, labels) + F.cross_entropy(image_side, labels)
            loss = guided + config.guidance_weight * loss
        return loss + config.aux_loss_weight * self.auxiliary_loss(e["attended"], e["candidates"], labels)

    def auxiliary_loss(self, attended: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        """L_ca of attended candidates (B, layers, Q, d), candidate classes (B, Q) and labels (B,)."""
        hits = candidates == labels[:, None]
        # each image has one candidate that is its class, or none; looking up which ones do would wait for the device
        found, slot = hits.any(1), hits.int().argmax(1)
        own = attended.gather(2, slot.view(-1, 1, 1, 1).expand(-1, attended.shape[1], 1, attended.shape[3]))
        each = [F.cross_entropy(head(own[:, i, 0]), labels, reduction="none") for i, head in enumerate(self.aux)]
        count = mean_over_processes(found.sum().float(), least=1.0)  # of images whose class is a candidate
        return (torch.stack(each) * found).sum() / (count * len(each))

    def param_groups(self) -> list[ParamGroup]:
        lr, warmup = self.config.visual_lr, self.config.visual_warmup_epochs
        class_aware = [*self.class_aware.parameters(), *self.aux.parameters()]
        groups = [
            self.text.param_group(),
            self.visual.param_group(),
            ParamGroup("class_aware", class_aware, lr, warmup),
        ]
        return [g for g in groups if g.params]
