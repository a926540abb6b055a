"""Weights and images that depend on names alone, so that numbers of the official code can be compared without its
weights.

Part of the recipe by which `data/glip_t_reference.npz` was computed: every float entry of the official state dict is
drawn from a generator seeded with the CRC of its official name.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_GAINS = (
    (lambda n: ".offset." in n, 0.5),
    (lambda n: "dyhead_tower" in n and ".fc.2." in n, 2.0),
    (lambda n: "bbox_pred" in n, 0.3),
    # keep tokens and pixels distinguishable through many random layers
    (lambda n: n.endswith(("self.query.weight", "self.key.weight", "attn.v_proj.weight", "attn.l_proj.weight")), 2.0),
    (lambda n: n.endswith(("attention.output.dense.weight", "attn.proj.weight")), 0.3),
    (lambda n: n.endswith("attn.qkv.weight"), 1.5),
    (lambda n: "dot_product_projection_text" in n, 30.0),
)
_AFFINE = {
    "relative_position_bias_table": (0.0, 0.2),
    "gamma_v": (0.3, 0.05),
    "gamma_l": (0.3, 0.05),
    "scale": (1.0, 0.1),
    "log_scale": (0.0, 0.1),
    "bias_lang": (0.0, 0.5),
    "bias0": (-1.0, 0.1),
}


def det_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 values of the official state-dict entry `name`."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    noise = torch.randn(tuple(shape), generator=generator)
    last = name.rsplit(".", 1)[-1]
    if last in _AFFINE:
        mean, std = _AFFINE[last]
        return mean + std * noise
    is_norm = "norm" in name.lower() or ".bn." in name.lower()
    if last == "bias":
        return (0.05 if is_norm else 0.02) * noise
    assert last == "weight", name
    if noise.dim() == 1:
        assert is_norm, name
        return 1 + 0.1 * noise
    gain = 1.0
    for applies, value in _GAINS:
        gain = value if applies(name) else gain
    return gain * noise * noise[0].numel() ** -0.5


def det_image(height: int = 224, width: int = 288, seed: int = 20240711) -> Tensor:
    """(1, 3, height, width) smooth noise with some grain, like a normalised image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, (height + 31) // 32, (width + 31) // 32, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(1, 3, height, width, generator=generator)
