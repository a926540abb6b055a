"""Checkpoints of SDPT's authors (a fork of GLIP) -> a PromptedModel.

    theirs                                                       ours
    rpn.head.dyhead_tower.{3i}.b_attn.attn.cpt_input (1, K, e)   prototypes.tokens, the row of fusion layer i
    rpn.head.dyhead_tower.{3i}.b_attn.attn.cpt_maskpad (1, K)    nothing: zeros, which hide the text-side tokens

The tokens act as their code makes them act, `visible="text_queries"`. Their README's switches train much more than
the tokens (text layers and dynamic convolutions of the tower, the head), and the file holds the whole model: with
other weights around them the tokens mean nothing, so the rest of the file is compared with the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import load_backbone
from ..backbones.base import Backbone
from ..errors import ArtifactError
from ..model import PromptedModel, attach
from ..models.glip.conversion import our_name
from .reading import check_settings, is_plain, read_archive, understood

_TOKENS = re.compile(r"rpn\.head\.dyhead_tower\.(\d+)\.b_attn\.attn\.cpt_input")
_IGNORED = ".b_attn.attn.cpt_maskpad"


def import_sdpt(
    path: str | Path,
    backbone: str | Backbone,
    class_names: Sequence[str],
    check_backbone: bool = True,
    device: str | None = None,
    template: str | Sequence[str] | None = None,
    **settings: Any,
) -> PromptedModel:
    """Read the prototype tokens of a checkpoint (.pth) of the authors' code.

    Args:
        backbone: the GLIP they were learnt on.
        class_names: what to find; the file does not know.
        check_backbone: compare the other weights in the file, if there are any, with the backbone's.
        device: of a backbone given by its name.
        template: how a class reads in the caption, as in `attach`.
        settings: further fields of `SDPTConfig`, such as lr, which matter if training goes on.

    Returns:
        A PromptedModel in eval mode, ready for `save`.

    Raises:
        ArtifactError: the file cannot be read, holds no tokens, tokens of unequal shapes or of another width, or other
            weights than the backbone.
        PortError, ClassNamesError: as `attach` raises them.
    """
    content = read_archive(path)
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(f"{path} holds no dictionary of tensors; expected a checkpoint of SDPT's code")
    with understood(path):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items() if is_plain(tensor)}
        found = prototype_tokens(state, path)
    shapes = {tuple(tokens.shape) for tokens in found.values()}
    if len(shapes) > 1:
        raise ArtifactError(f"{path}: the layers' tokens have different shapes {sorted(shapes)}; expected one")
    ((count, width),) = shapes
    if isinstance(backbone, str):
        backbone = load_backbone(backbone, device=device)
    last, own = getattr(backbone, "num_fusion_layers", 0) - 1, getattr(backbone, "fusion_width", width)
    if last >= 0 and (width != own or max(found) > last):
        raise ArtifactError(
            f"{path} holds tokens of width {width} for fusion layers {sorted(found)}; {backbone.name} has width {own} "
            f"and layers 0 to {last}: import them onto the GLIP they were learnt on"
        )
    known = {"num_prototype_tokens": count, "layers": sorted(found), "visible": "text_queries"}
    check_settings(settings, known, path)
    model = attach(backbone, "sdpt", class_names, template, config={**settings, **known})
    if check_backbone:
        with understood(path):
            _compare(state, backbone, path)
    with torch.no_grad():
        for row, layer in zip(model.method.prototypes.tokens, model.method.prototypes.layers):
            row.copy_(found[layer])
    return model.eval()


def prototype_tokens(state: dict[str, Tensor], source: str | Path) -> dict[int, Tensor]:
    """Fusion layer -> tokens (K, e), float32. Raises ArtifactError if there are none."""
    found = {}
    for name, tensor in state.items():
        if not (match := _TOKENS.fullmatch(name)):
            continue
        block, part = divmod(int(match[1]), 3)
        if part or tensor.ndim != 3 or len(tensor) != 1:
            raise ArtifactError(
                f"{source}: {name} has shape {tuple(tensor.shape)}; expected (1, K, e) in blocks 0, 3, 6 ..."
            )
        if not tensor.isfinite().all():
            raise ArtifactError(f"{source}: {name} holds NaN or infinity")
        found[block] = tensor[0].float()
    if not found:
        raise ArtifactError(
            f"{source} holds no prototype tokens (rpn.head.dyhead_tower.N.b_attn.attn.cpt_input); is it of SDPT's code?"
        )
    return found


def _compare(state: dict[str, Tensor], backbone: Backbone, source: str | Path) -> None:
    own, different, compared = backbone.model.state_dict(), [], 0
    for name, tensor in state.items():
        if _TOKENS.fullmatch(name) or name.endswith(_IGNORED):
            continue
        try:
            ours = our_name(name)
        except KeyError:
            continue
        if ours is None or ours not in own:
            continue
        compared += 1
        if tensor.shape != own[ours].shape or not torch.equal(tensor.to(own[ours].dtype), own[ours].cpu()):
            different.append(name)
    if different:
        raise ArtifactError(
            f"{len(different)} of {compared} other weights in {source} are not those of {backbone.name} (first: "
            f"{different[0]}): they were trained too; convert this file's model into a backbone, or pass "
            "check_backbone=False to take the tokens alone"
        )


__all__ = ["import_sdpt", "prototype_tokens"]
