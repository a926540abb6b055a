"""CLIP (any Hugging Face `CLIPModel` with a ViT) as a dual encoder whose towers are driven layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import ClassNamesError
from .base import DualEncoder, TextEnds, TextSequence, TextTokens, VisionPrompts, weights_dtype
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
from .layers import PackedTexts, text_layer, vision_layer

KEPT_PER_ROW = 14
"""About how many vectors of the text width a layer keeps per row for the backward pass."""


class ClipBackbone(DualEncoder):
    """Ports of a `CLIPModel`.

    Args:
        name: what it was loaded from.
        model: the `CLIPModel`; frozen and put into eval mode here.
        tokenizer: its `CLIPTokenizer`.
        image_size: pixels. image_mean, image_std: RGB normalisation.

    Attributes:
        max_text_bytes: what the text tower may keep for the backward pass (2 GB); above it, texts are run in
            parts and each part a second time on the way back.
    """

    can_checkpoint = True
    max_text_bytes = 2e9

    @classmethod
    def load(cls, name: str, source: str | Path, dtype: torch.dtype | None, device: torch.device | str) -> ClipBackbone:
        """See `load_clip`."""
        return load_clip(name, source, dtype, device)

    def __init__(
        self,
        name: str,
        model,
        tokenizer,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
    ):
        super().__init__(name, model)
        self.tokenizer = tokenizer
        text, vision = model.config.text_config, model.config.vision_config
        self.text_width, self.vision_width = text.hidden_size, vision.hidden_size
        self.text_layers, self.vision_layers = text.num_hidden_layers, vision.num_hidden_layers
        self.max_text_tokens = text.max_position_embeddings
        self.embed_dim = model.config.projection_dim
        self.image_size = vision.image_size
        self.image_mean = cast("tuple[float, float, float]", tuple(image_mean))
        self.image_std = cast("tuple[float, float, float]", tuple(image_std))

    # transformers 5.16 nests the towers' modules one level deeper than later releases
    @property
    def _text(self):
        return getattr(self.model.text_model, "text_model", self.model.text_model)

    @property
    def _vision(self):
        return getattr(self.model.vision_model, "vision_model", self.model.vision_model)

    @property
    def logit_scale(self) -> Tensor:
        return self.model.logit_scale.float().exp()

    def tokenize(self, texts: Sequence[str]) -> TextTokens:
        rows = self.tokenizer(list(texts)).input_ids
        for text, row in zip(texts, rows):
            if len(row) > self.max_text_tokens:
                raise ClassNamesError(
                    f"{text!r} has {len(row)} tokens, the text tower of {self.name} holds {self.max_text_tokens}; "
                    "shorten the class name or the template"
                )
        # the end token is the last one the tokenizer wrote: the same position under both of CLIP's conventions
        # (highest id, or first id equal to the configured end token)
        eos = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.full((len(rows), int(eos.max()) + 1), rows[0][-1])
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return TextTokens(self.receive(ids), self.receive(eos))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self._text.embeddings.token_embedding(ids)

    def encode_sequence(self, sequence: TextSequence) -> Tensor:
        ends = TextEnds.of(sequence.eos)
        rows = len(sequence.shared) + sum(ends.positions) + len(ends)
        size = self._text.embeddings.position_embedding.weight.element_size()
        kept = KEPT_PER_ROW * rows * self.text_width * self.text_layers * size
        if kept <= self.max_text_bytes or not torch.is_grad_enabled():
            return self._encode_texts(sequence.shared, sequence.own, ends)
        # too much for memory: keep nothing inside the tower, and run it again, part by part, on the way back
        texts = max(1, int(len(ends) * self.max_text_bytes / kept))
        parts = zip(sequence.own.split(texts), ends.split(texts))
        return torch.cat(
            [checkpoint(self._encode_texts, sequence.shared, *part, use_reentrant=False) for part in parts]
        )

    def _encode_texts(self, shared: Tensor, own: Tensor, ends: TextEnds) -> Tensor:
        tower = self._text
        positions = tower.embeddings.position_embedding.weight
        layout, device = (len(shared), own.shape[1]), own.device
        packed = ends.once((*layout, str(device)), lambda: PackedTexts(*layout, ends, device))
        if packed.num_shared + packed.length > self.max_text_tokens:
            raise ClassNamesError(
                f"context and class name need {packed.num_shared + packed.length} tokens, the text tower of "
                f"{self.name} holds {self.max_text_tokens}; use fewer context tokens or shorter names"
            )
        own = packed.unpad(own[:, : packed.length].to(positions.dtype))
        shared = shared.to(positions.dtype)
        rows = torch.cat([shared + positions[: len(shared)], own + positions[packed.positions]])
        layers = tower.encoder.layers
        for i, layer in enumerate(layers):
            rows = self.checkpointed(text_layer, layer, rows, packed, i == len(layers) - 1)
        return self.model.text_projection(tower.final_layer_norm(rows))

    def encode_image(self, pixel_values: Tensor, prompts: VisionPrompts | None = None) -> Tensor:
        tower = self._vision
        x = tower.pre_layrnorm(tower.embeddings(pixel_values))
        layers = tower.encoder.layers
        for i, layer in enumerate(layers):
            tokens = prompts(i, x) if prompts is not None else None
            if prompts is not None and tokens is not None and prompts.persistent:
                x = torch.cat([x, tokens.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)
                tokens = None
            x = self.checkpointed(vision_layer, layer, x, tokens, i == len(layers) - 1)
        return self.model.visual_projection(tower.post_layernorm(x[:, 0]))


def load_clip(name: str, source: str | Path, dtype: torch.dtype | None, device: torch.device | str) -> ClipBackbone:
    """Load a `CLIPModel` folder or Hub id. `dtype` None: see `weights_dtype`."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    with guarded(name, source, "CLIP model"):
        check_files(name, source, "CLIP model")
        model, report = CLIPModel.from_pretrained(source, **LOADING)
        check_report(name, report, "CLIPModel")
        check_finite(name, model)
        tokenizer = AutoTokenizer.from_pretrained(source)
        text = model.config.text_config
        # 2 stands in the configuration of OpenAI's models, whose text ends at the highest id
        check_tokenizer(name, tokenizer, text.vocab_size, [text.eos_token_id] if text.eos_token_id != 2 else [])
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
        check_side(name, image_size=model.config.vision_config.image_size)
        mean, std = check_normalisation(
            name,
            processor.get("image_mean", (0.48145466, 0.4578275, 0.40821073)),
            processor.get("image_std", (0.26862954, 0.26130258, 0.27577711)),
            1.0,
        )
        backbone = ClipBackbone(name, model, tokenizer, mean, std)
    return backbone.to(device=device, dtype=weights_dtype(dtype, model.dtype, device))
