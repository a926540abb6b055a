"""A frozen backbone and a method: what is trained, evaluated and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbones.base import Backbone
from .methods import METHODS
from .methods.base import ImageBatch, Method, Progress


class PromptedModel(nn.Module):
    """A frozen backbone with a method attached.

    Attributes:
        backbone: frozen, always in eval mode; its bytes never change.
        method: owns every trainable parameter.
        method_name: the method's name in the table.
    """

    def __init__(self, backbone: Backbone, method: Method, method_name: str):
        super().__init__()
        self.backbone, self.method, self.method_name = backbone, method, method_name

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.method.class_names

    def set_classes(self, class_names: Sequence[str], template: str | Sequence[str] | None = None) -> PromptedModel:
        """Classify into other classes from now on; `template` stays as it is if None."""
        self.method.set_classes(self.backbone, class_names, template or self.method.template)
        return self

    def forward(
        self,
        pixel_values: Tensor | None = None,
        frozen_features: Tensor | None = None,
        labels: Tensor | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """{"logits": (B, C)}, and {"loss": scalar} if labels (B,) are given.

        Args:
            pixel_values: (B, 3, S, S) normalised pixels.
            frozen_features: (B, E) frozen image features, if cached.
            progress: for methods whose loss depends on the epoch.
        """
        output = self.method(self.backbone, ImageBatch(pixel_values, frozen_features))
        result = {"logits": output.logits}
        if labels is not None:
            result["loss"] = self.method.loss(output, labels, progress or Progress())
        return result

    def num_trainable_parameters(self) -> int:
        """How many numbers training may change."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def classify(self, images, top_k: int = 5, batch_size: int = 64) -> list:
        """Classes and probabilities of images (PIL images, paths, or arrays); see `Predictor.classify`."""
        from .predictor import Predictor

        return Predictor(self).classify(images, top_k=top_k, batch_size=batch_size)

    def save(self, folder: str | Path, **options: Any) -> Path:
        """Write the artifact (`prompt.safetensors`, `prompt.json`); options are those of `duotune.artifacts.save`."""
        from .artifacts import save

        return save(self, folder, **options)

    def detach(self) -> nn.Module:
        """The Hugging Face model as it was before `attach`, bit for bit."""
        return self.backbone.model


def attach(
    backbone: str | Backbone,
    method: str,
    class_names: Sequence[str],
    template: str | Sequence[str] = "a photo of a {}.",
    config: dict[str, Any] | None = None,
    seed: int | None = 0,
    **settings: Any,
) -> PromptedModel:
    """Attach a method to a frozen backbone.

    Args:
        backbone: Hub id, local folder, embedded name ("tiny"), or a loaded Backbone.
        method: name in the method table, see `list_methods()`.
        class_names: C names to classify into.
        template: prompt with one `{}`; several for a zero-shot ensemble.
        config, settings: fields of the method's config.
        seed: of the learnt parameters' random start; None draws from torch's global generator.

    Raises:
        UnknownNameError, PortError, ConfigError, ClassNamesError: each says what to do.
    """
    kind = METHODS.get(method)
    settings = kind.Config.from_dict({**(config or {}), **settings})
    if isinstance(backbone, str):
        from .backbones import load_backbone

        backbone = load_backbone(backbone)
    kind.check_ports(method, backbone)
    model = PromptedModel(backbone, kind(settings), method)
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model.set_classes(class_names, template)
    return model
