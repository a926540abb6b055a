"""From fused features to boxes: the best positions become queries, the decoder refines them, heads read them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import DataError
from ...precision import full_precision, wide
from .encoder import Layout, flatten
from .losses import Prediction


@dataclass
class GroundingDinoOutput:
    """What boxes are decoded from.

    Attributes:
        logits: (B, Q, T), each query against each token of the caption.
        boxes: (B, Q, 4) centre x, centre y, width, height in 0..1 of the picture without padding.
        sizes: (B, 4) height and width of the pictures in pixels, then those that they are padded to.
    """

    logits: Tensor
    boxes: Tensor
    sizes: Tensor


@dataclass
class DecoderStates:
    """What the heads read.

    Attributes:
        hidden: (B, layers, Q, d). references: (B, layers, Q, 4), boxes that go into each layer.
        encoder: prediction of the positions that became queries; None if nobody asked.
    """

    hidden: Tensor
    references: Tensor
    encoder: Prediction | None


class LinearProbeHead(nn.Module):
    """A copy of the heads, with a linear layer before the class head that starts as the identity.

    Grounding DINO's class head is a product of queries and text without a weight of its own, so a projection of the
    text, which GLIP's head has, is added; it, the last linear layers of the boxes and MM Grounding DINO's biases are
    what is trained.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.class_embed, self.bbox_embed = copy.deepcopy(model.class_embed), copy.deepcopy(model.bbox_embed)
        self.text = nn.Linear(model.config.d_model, model.config.d_model)
        nn.init.eye_(self.text.weight)
        nn.init.zeros_(self.text.bias)
        self.float().requires_grad_(False)
        for part in (self.text, self.class_embed, *(box.layers[-1] for box in self.bbox_embed)):
            part.requires_grad_(True)


def token_logits(head: nn.Module, queries: Tensor, text: Tensor) -> Tensor:
    """(B, Q, d), (B, T, d) -> (B, Q, T), float32 at least; MM Grounding DINO scales and has a bias."""
    with full_precision(queries.device):
        logits = wide(queries) @ wide(text).mT
    bias = getattr(head, "bias", None)
    return logits if bias is None else logits / math.sqrt(queries.shape[-1]) + bias


def decode(
    core: nn.Module,
    maps: Sequence[Tensor],
    sizes: Tensor,
    text: Tensor,
    text_mask: Tensor,
    with_encoder: bool = False,
) -> DecoderStates:
    """Fused features -> queries behind each decoder layer.

    Args:
        core: the `model` of a transformers' (MM)GroundingDinoForObjectDetection.
        maps, text: from `fuse`. sizes: see `Layout.of`. text_mask: (B, T), nonzero for tokens of the caption.
        with_encoder: give the encoder's prediction too, which the loss wants.

    Raises:
        DataError: the pictures have fewer positions than there are queries.
    """
    layout, flat, seen = Layout.of(maps, sizes), flatten(maps), text_mask != 0
    if flat.shape[1] < core.config.num_queries:
        height, width = sizes[:, 2:].amax(0).tolist()
        raise DataError(
            f"pictures of {height} x {width} pixels give {flat.shape[1]} positions, the model chooses "
            f"{core.config.num_queries}; use larger ones"
        )
    chosen, logits = _choose(core, flat, layout, text, seen)
    references, encoder = logits.detach().sigmoid(), None
    if with_encoder:
        encoder = Prediction(token_logits(core.encoder_output_class_embed, chosen, text), wide(logits).sigmoid())
    out = core.decoder(
        inputs_embeds=core.query_position_embeddings.weight.expand(len(flat), -1, -1),
        vision_encoder_hidden_states=flat,
        vision_encoder_attention_mask=layout.mask,
        text_encoder_hidden_states=text,
        text_encoder_attention_mask=~seen,
        reference_points=references,
        spatial_shapes=layout.shape_tensor,
        spatial_shapes_list=layout.shapes,
        level_start_index=layout.level_starts,
        valid_ratios=layout.ratios,
        return_dict=True,
    )
    before = torch.cat([references[:, None], out.intermediate_reference_points[:, :-1]], 1)
    return DecoderStates(out.intermediate_hidden_states, before, encoder)


def _choose(core: nn.Module, flat: Tensor, layout: Layout, text: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The positions that match a token best: their features (B, Q, d) and the logits (B, Q, 4) of their boxes.

    Which they are is decided without gradients; only the chosen ones are computed with them.
    """
    with torch.no_grad():
        features, proposals = core.generate_encoder_output_proposals(flat, ~layout.mask, layout.shapes)
        scores = token_logits(core.encoder_output_class_embed, features, text)
        scores = scores.masked_fill(~seen[:, None], -torch.inf).amax(-1)
        best = scores.topk(core.config.num_queries, dim=1).indices
    take = lambda rows: rows.gather(1, best[..., None].expand(-1, -1, rows.shape[-1]))
    proposals = take(proposals)
    usable = proposals.isfinite().all(-1, keepdim=True)
    features = core.enc_output_norm(core.enc_output(take(flat).masked_fill(~usable, 0.0)))
    return features, core.encoder_output_bbox_embed(features) + proposals


def predict(head: nn.Module, states: DecoderStates, text: Tensor, layer: int) -> Prediction:
    """What a head says of the queries behind a decoder layer (0-based).

    Args:
        head: a (MM)GroundingDinoForObjectDetection, or a `LinearProbeHead`.
    """
    hidden, references = states.hidden[:, layer], states.references[:, layer]
    with full_precision(hidden.device):
        if isinstance(head, LinearProbeHead):
            text = head.text(text.to(head.text.weight.dtype))
        moved = head.bbox_embed[layer](hidden.to(next(head.bbox_embed[layer].parameters()).dtype))
        boxes = wide(moved) + torch.special.logit(wide(references), eps=1e-5)
        return Prediction(token_logits(head.class_embed[layer], hidden, text), boxes.sigmoid())
