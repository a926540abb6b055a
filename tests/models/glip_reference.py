"""GLIP-T with name-seeded weights, and comparison with what the official code computed for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from det_init import det_tensor
from torch import Tensor

from duotune.models.glip import GlipConfig, GlipForObjectDetection
from duotune.models.glip.conversion import official_name
from duotune.models.glip.swin import WindowAttention, relative_position_index

REFERENCE = Path(__file__).parent / "data" / "glip_t_reference.npz"
INPUT_IDS = [101, 2711, 1012, 10165, 1012, 2606, 2852, 3771, 1012, 102]  # "person. bicycle. hair drier."
CLASS_TOKENS = [[1], [3], [5, 6, 7]]


def load_reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as archive:
        return {name: archive[name] for name in archive.files}


def seeded_glip_t() -> GlipForObjectDetection:
    """GLIP-T in eval mode, weights drawn by name. The ordinary initialisation would take longer."""
    with torch.device("meta"):
        model = GlipForObjectDetection(GlipConfig.glip_t())
    state = {
        name: det_tensor(official_name(name), tensor.shape)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    model.load_state_dict(state, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.relative_position_index = relative_position_index(module.window)
    embeddings = model.model.text.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)
    return model.eval()


def padded_caption(length: int = 256) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(1, length, dtype=torch.long)
    ids[0, : len(INPUT_IDS)] = torch.tensor(INPUT_IDS)
    return ids, (ids != 0).long()


def error_in_stds(reference: dict[str, np.ndarray], key: str, value: Tensor) -> float:
    """Largest difference at the sampled positions, over the standard deviation of the whole tensor."""
    assert tuple(value.shape) == tuple(reference[f"{key}#shape"]), key
    sampled = value.detach().reshape(-1)[torch.from_numpy(reference[f"{key}#at"]).long()]
    difference = (sampled - torch.from_numpy(reference[key])).abs().max().item()
    return difference / max(float(reference[f"{key}#std"]), 1e-12)
