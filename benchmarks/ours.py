"""The training steps as duotune runs them, with the frozen image features cached."""

from __future__ import annotations

import torch

from duotune import attach
from duotune.backbones.clip import ClipBackbone
from duotune.methods.base import Progress

from .shapes import Shape, WordTokenizer, batch, build_model, class_names, initial_parameters
from .steps import TrainingStep


class OurStep(TrainingStep):
    """One training step of "coop" or "dpt": call it; gradients stay on `parameters`."""

    def __init__(self, shape: Shape, method: str, num_classes: int, dtype: torch.dtype):
        backbone = ClipBackbone("benchmark", build_model(shape, dtype), WordTokenizer(shape.vocabulary))
        settings = {"num_context_tokens": shape.context_tokens}
        if method == "dpt":
            settings |= {"num_visual_tokens": shape.visual_tokens, "num_candidates": shape.candidates}
        self.model = attach(backbone, method, class_names(num_classes), config=settings)
        self.model.method.load_state_dict(initial_parameters(shape, method, num_classes))
        self.parameters = dict(self.model.method.named_parameters())
        self.pixels, self.labels = batch(shape, num_classes)
        with torch.no_grad():  # once per run: the features go to a cache
            self.frozen = torch.cat([backbone.encode_image(part) for part in self.pixels.split(4)])
        if method == "coop":
            self.pixels = None
        self.optimiser = torch.optim.SGD(self.parameters.values(), lr=0.002, momentum=0.9, weight_decay=5e-4)
        self.model.train()

    def loss(self) -> torch.Tensor:
        return self.model(self.pixels, self.frozen, self.labels, Progress(0, 60))["loss"]
