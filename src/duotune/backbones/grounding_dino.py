"""transformers' Grounding DINO and MM Grounding DINO as detectors with ports.

Their modules are run one by one (`duotune.models.grounding_dino`), so that learnt tokens can enter the bidirectional
attentions and the windows of a Swin; nothing of the model is replaced.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError, PortError
from ..grounding import Caption, CaptionPrompt, build_caption
from ..models.glip.boxes import multiclass_nms
from ..models.glip.detection import class_scores
from ..models.grounding_dino import (
    GroundingDinoOutput,
    LinearProbeHead,
    LossWeights,
    Pictures,
    Target,
    decode,
    detection_losses,
    encode_image,
    encode_text,
    fuse,
    predict,
    sentence_starts,
)
from ..models.grounding_dino.image import is_swin
from ..models.grounding_dino.losses import corners
from ..models.grounding_dino.text import DELIMITERS
from ..precision import full_precision
from .base import CaptionFeatures, Detector, DetectorOutput, FusionPrompts, Port, WindowTokens, weights_dtype
from .folders import (
    LOADING,
    check_files,
    check_finite,
    check_normalisation,
    check_report,
    check_side,
    check_tokenizer,
    guarded,
)

MAX_DETECTIONS = 300
"""Boxes per picture in the evaluation of the authors."""


class GroundingDinoBackbone(Detector):
    """Ports of a `GroundingDinoForObjectDetection` or `MMGroundingDinoForObjectDetection`.

    Feature maps are the projected levels before the encoder and, as the last of the list, (B, 4) int64 sizes: height
    and width of each picture, and those that it is padded to.

    Args:
        name: what it was loaded from.
        model: frozen and put into eval mode here.
        tokenizer: a fast BERT tokenizer.
        pictures: how pictures become pixels.
    """

    caption_style = "sentences"
    can_checkpoint = True

    def __init__(self, name: str, model: nn.Module, tokenizer, pictures: Pictures | None = None):
        super().__init__(name, model)
        config, core = model.config, model.model
        if not config.two_stage or not config.embedding_init_target:  # transformers cannot run these either
            raise ConfigError(f"{name} must choose queries from the encoder (two_stage) and learn what they start with")
        self.tokenizer, self.pictures = tokenizer, pictures or Pictures()
        self.normalize, self.pad = self.pictures.normalize, self.pictures.pad
        self.short_side, self.long_side = self.pictures.short_side, self.pictures.long_side
        self.max_detections = MAX_DETECTIONS
        self.max_text_tokens = config.max_text_len
        self.num_fusion_layers = len(core.encoder.layers)
        self.visual_width = self.text_width = config.d_model
        self.fusion_width = core.encoder.layers[0].fusion_layer.attn.embed_dim
        self.weights = LossWeights(
            token_cost=config.class_cost,
            box_cost=config.bbox_cost,
            giou_cost=config.giou_cost,
            box=config.bbox_loss_coefficient,
            giou=config.giou_loss_coefficient,
            alpha=config.focal_alpha,
        )
        if not is_swin(core):
            self.ports = self.ports - {Port.VISION_WINDOWS}

    @classmethod
    def load(
        cls, name: str, source: str | Path, dtype: torch.dtype | None, device: torch.device | str
    ) -> GroundingDinoBackbone:
        """Load a folder or Hub id in transformers' format.

        `dtype` None: see `weights_dtype`. Raises DataError.
        """
        from transformers import AutoModelForZeroShotObjectDetection, AutoTokenizer

        with guarded(name, source, "Grounding DINO model"):
            check_files(name, source, "Grounding DINO model")
            model, report = AutoModelForZeroShotObjectDetection.from_pretrained(source, **LOADING)
            check_report(name, report, "Grounding DINO")
            check_finite(name, model)
            tokenizer, pictures = AutoTokenizer.from_pretrained(source), Pictures.from_pretrained(source)
            check_tokenizer(name, tokenizer, model.config.text_config.vocab_size)
            check_delimiters(name, tokenizer)
            check_side(name, short_side=pictures.short_side, long_side=pictures.long_side)
            check_normalisation(name, pictures.mean, pictures.std, 1.0)
            backbone = cls(name, model, tokenizer, pictures)
        return backbone.to(device=device, dtype=weights_dtype(dtype, model.dtype, device))

    # ------------------------------------------------------------------ what goes in

    @property
    def block_widths(self) -> tuple[tuple[int, ...], ...]:  # type: ignore[override]  # others set it; asking may raise
        """Raises PortError if the image tower is no Swin."""
        config = self.model.config.backbone_config
        if not is_swin(self.model.model):
            raise PortError(f"the image tower of {self.name} is a {config.model_type}, which has no windows; try sdpt")
        return tuple((config.embed_dim << stage,) * depth for stage, depth in enumerate(config.depths))

    def caption(self, class_names: Sequence[str], prompts: Sequence[CaptionPrompt] | None = None) -> Caption:
        return build_caption(class_names, self.tokenizer, self.max_text_tokens, self.caption_style, prompts)

    def prepare(self, images: Sequence[Any]) -> tuple[Tensor, Tensor]:
        pictures = [self.normalize(self.pictures.resize(image)) for image in images]
        sizes = torch.tensor([picture.shape[1:] for picture in pictures])
        return self.receive(self.pad(pictures)), sizes

    def encode_image(
        self, pixel_values: Tensor, window_tokens: WindowTokens | None = None, image_sizes: Tensor | None = None
    ) -> list[Tensor]:
        if window_tokens is not None and not is_swin(self.model.model):
            self.block_widths  # noqa: B018  tells that there are no windows
        maps = encode_image(self.model.model, pixel_values.to(self.model.dtype), window_tokens)
        return [*maps, self._sizes(pixel_values, image_sizes)]

    @staticmethod
    def _sizes(pixel_values: Tensor, image_sizes: Tensor | None) -> Tensor:
        """(B, 4), see the class; without sizes all is picture."""
        whole = torch.tensor([tuple(pixel_values.shape[-2:])] * len(pixel_values))
        own = whole if image_sizes is None else torch.as_tensor(image_sizes).cpu().to(whole)
        if own.shape != whole.shape or bool((own > whole).any()) or bool((own < 1).any()):
            raise DataError(
                f"image_sizes must be a height and width within {whole[0].tolist()} per picture, got {own.tolist()}"
            )
        return torch.cat([own, whole], 1)

    def _encode_caption(self, text: str) -> CaptionFeatures:
        ids, mask, starts = self._tokenize([text])
        return CaptionFeatures(encode_text(self.model.model, ids, starts), mask, starts)

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, mask and sentence starts, each (B, T); made on the host and copied."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_text_tokens)["input_ids"]
        length = max(map(len, found))
        ids = torch.zeros(len(found), length, dtype=torch.long)
        mask, starts = torch.zeros_like(ids), torch.arange(length).repeat(len(found), 1)
        for i, row in enumerate(map(torch.tensor, found)):
            ids[i, : len(row)], mask[i, : len(row)], starts[i, : len(row)] = row, 1, sentence_starts(row)
        return self.receive(ids), self.receive(mask), self.receive(starts)

    # ------------------------------------------------------------------ fusion and heads

    def fusion_projections(self, layer: int) -> tuple[nn.Linear, nn.Linear]:
        attention = self.model.model.encoder.layers[layer].fusion_layer.attn
        return attention.vision_proj, attention.text_proj

    def fuse(
        self, maps: Sequence[Tensor], text: CaptionFeatures, prompts: FusionPrompts | None = None
    ) -> tuple[list[Tensor], CaptionFeatures]:
        return self._fuse(self.model, maps, text, prompts, self.gradient_checkpointing)

    def read(
        self,
        maps: Sequence[Tensor],
        text: CaptionFeatures,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        head: nn.Module | None = None,
    ) -> DetectorOutput:
        return self._read(self.model, maps, text, labels, head)

    @staticmethod
    def _fuse(model, maps, text, prompts=None, checkpointing=False) -> tuple[list[Tensor], CaptionFeatures]:
        *levels, sizes = maps
        if text.starts is None:
            raise ConfigError("Grounding DINO reads sentences: features of captions need `starts`, see encode_captions")
        levels, hidden = fuse(model.model, levels, sizes, text.hidden, text.mask, text.starts, prompts, checkpointing)
        return [*levels, sizes], CaptionFeatures(hidden, text.mask, text.starts)

    def _read(self, model, maps, text, labels=None, head=None) -> DetectorOutput:
        *levels, sizes = maps
        states = decode(model.model, levels, sizes, text.hidden, text.mask, with_encoder=labels is not None)
        last = states.hidden.shape[1] - 1
        layers = [
            predict(head if head is not None else model, states, text.hidden, layer)
            for layer in (range(last + 1) if labels is not None else [last])
        ]
        raw, losses = GroundingDinoOutput(layers[-1].logits, layers[-1].boxes, sizes), None
        if labels is not None:
            length, wide = text.mask.shape[1], torch.promote_types(raw.boxes.dtype, torch.float32)
            targets = [
                Target.of(label["boxes"].to(self.device, wide), label["positive_map"].to(self.device), size, length)
                for label, size in zip(labels, sizes[:, :2])
            ]
            with full_precision(self.device):
                losses = detection_losses(layers, states.encoder, targets, text.mask, self.weights)
        return DetectorOutput(raw.logits, text.mask, raw, losses)

    # ------------------------------------------------------------------ copies to train

    def copy_head(self) -> nn.Module:
        return LinearProbeHead(self.model).to(self.device)

    def copy_model(self) -> nn.Module:
        model = copy.deepcopy(self.model).float().requires_grad_(True)
        if is_swin(model.model):  # the norm behind the last block is that of its output stage
            model.model.backbone.conv_encoder.model.swin.layernorm.requires_grad_(False)
        return model

    def text_encoder(self, model: nn.Module) -> nn.Module:
        return model.model.text_backbone

    def run(
        self,
        model: nn.Module,
        pixel_values: Tensor,
        captions: Sequence[Caption],
        labels: Sequence[Mapping[str, Tensor]] | None = None,
        image_sizes: Tensor | None = None,
    ) -> DetectorOutput:
        ids, mask, starts = self._tokenize([caption.text for caption in captions])
        text = CaptionFeatures(encode_text(model.model, ids, starts), mask, starts)
        maps = [*encode_image(model.model, pixel_values.to(model.dtype)), self._sizes(pixel_values, image_sizes)]
        maps, text = self._fuse(model, maps, text, checkpointing=self.gradient_checkpointing)
        return self._read(model, maps, text, labels)

    # ------------------------------------------------------------------ boxes

    def _decode(
        self,
        raw: Any,
        captions: Sequence[Caption],
        image_sizes: Tensor,
        target_sizes: Tensor | None,
        limits: Mapping[str, float],
    ) -> list[dict[str, Any]]:
        """As in `Detector.detections`. A class's score in a query is its tokens' mean probability; a query may be found
        for several classes. The best `max_detections` (300) pairs are kept, with a score above `score_threshold` (0);
        suppression of overlapping boxes of a class happens only if `nms_threshold` is given.
        """
        return [
            self._decode_one(raw, index, caption, size, size if target_sizes is None else target_sizes[index], limits)
            for index, (caption, size) in enumerate(zip(captions, image_sizes))
        ]

    def _decode_one(self, raw, index: int, caption: Caption, image_size, target_size, limits) -> dict[str, Any]:
        """Boxes of one picture."""
        limit = int(limits.get("max_detections", self.max_detections))
        scores = class_scores(raw.logits[index], caption.tokens)
        values, pairs = scores.flatten().topk(min(limit, scores.numel()))
        classes = scores.shape[1]
        told = [
            raw.boxes[index, pairs // classes].float(),
            values[:, None],
            (pairs % classes).to(values.dtype)[:, None],
        ]
        rows = torch.cat(told, 1).cpu()  # one copy: what follows is few boxes, and asks how many there are
        rows = rows[rows[:, 4] > limits.get("score_threshold", 0.0)]
        values, labels = rows[:, 4], rows[:, 5].long()
        # in pixels of the input first: boxes are relative to what the model took for the picture
        (height, width), (image_height, image_width) = raw.sizes[index, :2].tolist(), [int(side) for side in image_size]
        new_height, new_width = [int(side) for side in target_size]
        x, y = width * new_width / image_width, height * new_height / image_height
        boxes = corners(rows[:, :4]) * values.new_tensor([x, y, x, y])
        boxes = torch.minimum(boxes.clamp(min=0), values.new_tensor([new_width, new_height] * 2))
        if limits.get("nms_threshold") is not None:
            inclusive = boxes - boxes.new_tensor([0, 0, 1, 1])
            kept = multiclass_nms(inclusive, values, labels, limits["nms_threshold"])
            boxes, values, labels = boxes[kept], values[kept], labels[kept]
        names = [caption.names[label] for label in labels.tolist()]
        return {"boxes": boxes, "scores": values, "labels": labels, "names": names}


def check_delimiters(name: str, tokenizer) -> None:
    """Raises DataError if the tokenizer's [CLS], [SEP], "." and "?" are not those at which the model ends sentences."""
    own = tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]", ".", "?"])
    if tuple(own) != DELIMITERS:
        raise DataError(
            f"the tokenizer of {name!r} writes [CLS], [SEP], '.' and '?' as {own}; Grounding DINO ends sentences at "
            f"{list(DELIMITERS)}: use the tokenizer of bert-base-uncased"
        )
