"""Official GLIP checkpoints (.pth) to folders that `from_pretrained` reads, and names in both directions.

official                                    here
backbone.body.*                             model.vision.swin.*
backbone.fpn.*                              model.vision.fpn.*
language_backbone.body.model.*              model.text.*
rpn.head.dyhead_tower.{3i}.b_attn.*         model.tower.blocks.{i}.fusion.*
rpn.head.dyhead_tower.{3i+1}.*              model.tower.blocks.{i}.text.*
rpn.head.dyhead_tower.{3i+2}.*              model.tower.blocks.{i}.image.*
rpn.head.*                                  head.*
rpn.anchor_generator.cell_anchors.{level}   (a constant: checked, not stored)
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ArtifactError, because, one_line, shown
from ...reading import check_file
from ...reading.archives import check_packed
from ...writing import folder_beside
from .anchors import cell_anchor
from .configuration_glip import GlipConfig

_PREFIXES = (
    ("backbone.body.", "model.vision.swin."),
    ("backbone.fpn.", "model.vision.fpn."),
    ("language_backbone.body.model.", "model.text."),
    ("rpn.head.", "head."),
)
_TOWER_PARTS = ("fusion", "text", "image")
_OFFICIAL_TOWER = re.compile(r"rpn\.head\.dyhead_tower\.(\d+)\.(.+)")
_OUR_TOWER = re.compile(r"model\.tower\.blocks\.(\d+)\.(fusion|text|image)\.(.+)")
# What SDPT's fork of the official code adds to a checkpoint.
_SDPT = re.compile(r"rpn\.head\.dyhead_tower\.\d+\.b_attn\.attn\.cpt_\w+")
_CELL_ANCHOR = "rpn.anchor_generator.cell_anchors."
# Written by old transformers, computed by new ones.
_IGNORED = {"language_backbone.body.model.embeddings.position_ids"}


def our_name(official: str) -> str | None:
    """Name here of an entry of an official state dict; None for constants that are not stored.

    Raises:
        KeyError: no GLIP has such an entry.
    """
    if official in _IGNORED or official.startswith(_CELL_ANCHOR):
        return None
    if match := _OFFICIAL_TOWER.fullmatch(official):
        block, part = divmod(int(match[1]), 3)
        rest = match[2]
        if part == 0:
            if not rest.startswith("b_attn."):
                raise KeyError(official)
            rest = rest.removeprefix("b_attn.")
        return f"model.tower.blocks.{block}.{_TOWER_PARTS[part]}.{rest}"
    for theirs, ours in _PREFIXES:
        if official.startswith(theirs):
            return ours + official.removeprefix(theirs)
    raise KeyError(official)


def official_name(ours: str) -> str:
    """Inverse of `our_name`.

    Raises:
        KeyError: no parameter of `GlipForObjectDetection` has such a name.
    """
    if match := _OUR_TOWER.fullmatch(ours):
        part = _TOWER_PARTS.index(match[2])
        return f"rpn.head.dyhead_tower.{3 * int(match[1]) + part}.{'b_attn.' if part == 0 else ''}{match[3]}"
    for theirs, prefix in _PREFIXES:
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    raise KeyError(ours)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Official state dict of a .pth file, a leading `module.` removed. Only tensors and plain containers are read;
    code is not run.

    Raises:
        ArtifactError: no such file, not a checkpoint, or objects in it that would have to be executed.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ArtifactError(f"no checkpoint at {path}")
    check_packed(check_file(path, "an official checkpoint", ArtifactError), ArtifactError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not blocked:
            raise ArtifactError(f"{path} is no PyTorch checkpoint, or a damaged one; download it again") from None
        raise ArtifactError(
            f"{path} cannot be loaded without executing code from it: it holds {blocked[1]}, which only running code "
            "from the file could restore; save just its 'model' entry where you trust it"
        ) from None
    except Exception as error:
        raise ArtifactError(f"{path} is no PyTorch checkpoint: {because(error)}") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(f"{path} should hold a dictionary of tensors, plain or under 'model'")
    for name, value in state.items():
        if (
            not isinstance(name, str)
            or value.layout != torch.strided
            or value.nbytes > value.untyped_storage().nbytes()
        ):
            raise ArtifactError(f"{path}: {shown(name)} is no plain tensor under a name; download it again")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def guess_config(state: dict[str, Tensor]) -> GlipConfig:
    """GLIP-T or GLIP-L by the width of the first convolution.

    Raises:
        ArtifactError: neither.
    """
    weight = state.get("backbone.body.patch_embed.proj.weight")
    if weight is None or not weight.dim():
        raise ArtifactError(
            "the checkpoint has no 'backbone.body.patch_embed.proj.weight', so it is no GLIP with a Swin backbone; "
            f"it begins with {', '.join(one_line(name, 60) for name in list(state)[:3])}"
        )
    presets = {96: GlipConfig.glip_t, 192: GlipConfig.glip_l}
    if weight.shape[0] not in presets:
        raise ArtifactError(
            f"the checkpoint's Swin is {weight.shape[0]} wide; GLIP-T has 96, GLIP-L 192. Pass config= for another size"
        )
    return presets[weight.shape[0]]()


def map_state_dict(state: dict[str, Tensor], config: GlipConfig) -> dict[str, Tensor]:
    """Official state dict -> state dict of `GlipForObjectDetection(config)`, complete and of the right shapes.

    Raises:
        ArtifactError: names missing and unexpected entries, wrong shapes and constants.
    """
    from .modeling_glip import GlipForObjectDetection

    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in GlipForObjectDetection(config).state_dict().items()}
    mapped, unexpected, faults = {}, [], []
    for name, tensor in state.items():
        try:
            ours = our_name(name)
        except KeyError:
            unexpected.append(name)
            continue
        if ours is None:
            faults += _wrong_constant(name, tensor, config)
        elif ours not in expected:
            unexpected.append(name)
        elif tensor.shape != expected[ours]:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected[ours])}")
        else:
            mapped[ours] = tensor
    # Shape faults are reported as such, so leave them out of the missing ones.
    missing = [official_name(n) for n in expected if n not in mapped and official_name(n) not in state]
    faults = _listing("missing", missing) + _listing("unexpected", unexpected) + faults[:5]
    if faults:
        raise ArtifactError("the checkpoint is of another architecture: " + "; ".join(faults))
    return mapped


def _wrong_constant(name: str, tensor: Tensor, config: GlipConfig) -> list[str]:
    if name in _IGNORED:
        return []
    level = int(digits) if (digits := name.removeprefix(_CELL_ANCHOR)).isdecimal() and len(digits) < 3 else 5
    expected = torch.tensor([cell_anchor(config.strides[level], config.anchor_scale)]) if level < 5 else None
    if expected is not None and tensor.shape == expected.shape and torch.allclose(tensor.float(), expected):
        return []
    right = expected.tolist() if expected is not None else "no such level"
    return [f"{name} is {shown(tensor.tolist(), 60)}, expected {right}"]


def _listing(kind: str, names: list[str], limit: int = 5) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return [f"{len(names)} {kind} ({', '.join(one_line(name, 60) for name in sorted(names)[:limit])}{more})"]


def convert_glip_checkpoint(
    path: str | Path,
    out: str | Path,
    config: GlipConfig | None = None,
    tokenizer: Any = "google-bert/bert-base-uncased",
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Turn an official GLIP-T or GLIP-L checkpoint into a folder for `from_pretrained`.

    The folder holds model, configuration, image settings and tokenizer; it appears complete or not at all.

    Args:
        path: the .pth file. out: the folder to make.
        config: sizes; None to tell GLIP-T and GLIP-L apart by themselves.
        tokenizer: Hub id or folder of the BERT tokenizer, or a loaded one.
        dtype: precision of the stored weights; None keeps the checkpoint's.
        overwrite: replace an existing folder.
        say: is told what is left out, in a line.

    Raises:
        ArtifactError: the checkpoint cannot be read or is of another architecture, the tokenizer cannot be found, or
            `out` exists.
    """
    from .modeling_glip import GlipForObjectDetection
    from .processing_glip import GlipProcessor

    out = Path(out)
    if out.exists() and not overwrite:
        raise ArtifactError(f"{out} exists already; choose another folder or pass overwrite=True")
    state = read_checkpoint(path)
    if learnt := [name for name in state if _SDPT.fullmatch(name)]:
        state = {name: tensor for name, tensor in state.items() if name not in learnt}
        say(
            f"skipped {len(learnt)} entries that SDPT's code learnt ({learnt[0]}, ...): they are no part of GLIP; "
            "`duotune import` reads them"
        )
    config = config or guess_config(state)
    state = map_state_dict(state, config)
    processor = GlipProcessor.from_config(config, _load_tokenizer(tokenizer))
    with torch.device("meta"):
        model = GlipForObjectDetection(config)
    dtype = dtype or state["head.bias0"].dtype
    model = model.to(dtype)  # so that config.json says it
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    with folder_beside(out, overwrite=True) as partial:
        model.save_pretrained(partial, state_dict=state)
        processor.save_pretrained(partial)
    return out


def _load_tokenizer(tokenizer: Any) -> Any:
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(tokenizer))
    except Exception as error:  # transformers meets a broken folder with any exception there is
        raise ArtifactError(
            f"the BERT tokenizer {str(tokenizer)!r} can be found neither on disk nor on the Hub; "
            "pass tokenizer= a folder that holds it"
        ) from error


__all__ = ["convert_glip_checkpoint", "guess_config", "map_state_dict", "official_name", "our_name", "read_checkpoint"]
