"""What the contract is held over: tiny random models of every registered backbone, every registered method, and pairs.

A new method is found in its table. A new backbone needs a line in `FOLDERS`; what it is fed follows from its ports.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "detection"))
from tiny_glip import save_tiny_glip  # noqa: E402
from tiny_grounding_dino import write_folder  # noqa: E402

from duotune.backbones import BACKBONES  # noqa: E402
from duotune.backbones.base import Backbone, Detector  # noqa: E402
from duotune.methods import DETECTION_METHODS, METHODS  # noqa: E402
from duotune.methods.base import Method  # noqa: E402

NAMES = ["cat", "red square", "dog", "house boat"]
NEW_NAMES = ["tree", "red house"]
NEW_TEMPLATE = "a {} in a square"


@dataclass(frozen=True)
class Subject:
    """A tiny model of a registered backbone.

    Attributes:
        backbone: name in the table.
        write: (folder, save_tiny_clip) -> writes the model's folder.
        tolerance: of logits, relative to the largest, where batches are summed in another order.
        unread: modules of the model that nothing reads, which `full` need not train.
    """

    backbone: str
    write: Callable[[Path, Callable], Any]
    tolerance: float = 1e-5
    unread: Callable[[nn.Module], nn.Module] = lambda model: nn.Module()

    @property
    def adapter(self) -> type[Backbone]:
        return BACKBONES.get(self.backbone)


def _unread_norm(model: nn.Module) -> nn.Module:
    return model.model.backbone.conv_encoder.model.swin.layernorm


FOLDERS = {
    "clip": Subject("clip", lambda folder, save_tiny_clip: save_tiny_clip(folder)),
    "glip": Subject("glip", lambda folder, _: save_tiny_glip(folder), unread=lambda model: model.head.cls_logits),
    "grounding_dino": Subject(
        "grounding_dino", lambda folder, _: write_folder(folder, "grounding_dino"), 2e-5, _unread_norm
    ),
    "mm_grounding_dino": Subject(
        "grounding_dino", lambda folder, _: write_folder(folder, "mm_grounding_dino"), 2e-5, _unread_norm
    ),
}


def from_outside() -> dict[str, type[Method]]:
    """What examples/third_party_method.py registers; the table is given back as it was."""
    path, before = ROOT / "examples" / "third_party_method.py", dict(METHODS._table)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    new = {name: METHODS.get(name) for name in METHODS if name not in before}
    METHODS._table.clear()
    METHODS._table.update(before)
    return new


OUTSIDE = from_outside()
KINDS = [(name, table.get(name)) for table in (METHODS, DETECTION_METHODS) for name in table] + list(OUTSIDE.items())


@dataclass(frozen=True)
class Case:
    """A method on a backbone that has its ports."""

    folder: str
    method: str
    kind: type[Method]

    def __str__(self) -> str:
        return f"{self.folder}-{self.method}"

    @property
    def subject(self) -> Subject:
        return FOLDERS[self.folder]


CASES = [
    Case(folder, name, kind)
    for folder, (name, kind) in itertools.product(FOLDERS, KINDS)
    if kind.requires <= FOLDERS[folder].adapter.ports
]
ILLEGAL = [
    (folder, name)
    for folder, name in itertools.product(FOLDERS, dict(KINDS))
    if not any(case.folder == folder and case.method == name for case in CASES)
]


def inputs(backbone: Backbone) -> dict[str, Tensor]:
    """Arguments of `forward` for a few pictures; those of a detector are of different sizes."""
    generator = torch.Generator().manual_seed(1)
    if not isinstance(backbone, Detector):
        return {"pixel_values": torch.randn(4, 3, backbone.image_size, backbone.image_size, generator=generator)}
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    pixels[1, :, 48:], pixels[1, :, :, 80:] = 0, 0
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[64, 96], [48, 80]])}


def labels(backbone: Backbone) -> Any:
    """Of `inputs`, with the classes `NAMES`."""
    if not isinstance(backbone, Detector):
        return torch.tensor([0, 1, 2, 3])
    caption = backbone.caption(NAMES)
    return [
        {"boxes": torch.tensor([[4.0, 4, 40, 40], [30, 10, 90, 60]]), "positive_map": caption.positive_map([0, 2])},
        {"boxes": torch.tensor([[10.0, 20, 60, 44]]), "positive_map": caption.positive_map([3])},
    ]


def kept(backbone: Backbone) -> dict[str, Any]:
    """What a cache keeps of `inputs`, as arguments of `forward`."""
    given = inputs(backbone)
    with torch.no_grad():
        if not isinstance(backbone, Detector):
            return {"frozen_features": backbone.encode_image(**given)}
        return {"feature_maps": backbone.encode_image(given["pixel_values"], image_sizes=given["image_sizes"])}


def outputs(out: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of `forward` that a prediction is made of."""
    raw = getattr(out.get("output"), "raw", None)
    parts = {name: getattr(raw, name, None) for name in ("boxes", "box_deltas", "centerness")}
    return {"logits": out["logits"], **{name: value for name, value in parts.items() if value is not None}}


def plain_outputs(backbone: Backbone) -> list[Tensor]:
    """Every tensor that the Hugging Face model itself gives, without duotune."""
    pixels = inputs(backbone)["pixel_values"]
    ids = backbone_tokenizer(backbone)(["cat. dog."] * len(pixels), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = backbone.model(input_ids=ids, pixel_values=pixels)
    return [value for value in found.to_tuple() if isinstance(value, Tensor)]


def backbone_tokenizer(backbone: Backbone) -> Any:
    return getattr(backbone, "tokenizer", None) or backbone.processor.tokenizer


def digest(module: nn.Module) -> str:
    """Of every parameter and buffer, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def hooks(module: nn.Module) -> int:
    """How many there are; transformers has its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())
