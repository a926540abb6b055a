"""What is timed: one call of a step. Both sides share how a step is taken, not what is computed in it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .detection_shapes import DetectionShape, fusion_inputs, prototypes


class TrainingStep(ABC):
    """Forward, backward and update.

    Attributes:
        parameters: what is compared between the sides; gradients stay on them. A side may train more.
        optimiser: of all that is trained.
    """

    parameters: dict[str, Tensor]
    optimiser: torch.optim.Optimizer

    @abstractmethod
    def loss(self) -> Tensor: ...

    def __call__(self) -> float:
        self.optimiser.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimiser.step()
        return loss.item()


class FusionStep(ABC):
    """The attention of one fusion layer, forward and backward; no update.

    Attributes:
        parameters: prototypes (K, inner), visual (1, N, d_v) and text (1, T, d_l); gradients stay on them.
        gradients: of the two outputs.
    """

    def __init__(self, shape: DetectionShape, valid: int):
        found = fusion_inputs(shape, valid)
        self.gradients = found["grad_visual"], found["grad_text"]
        self.parameters = {
            "prototypes": prototypes(shape, 1)[0].requires_grad_(),
            "visual": found["visual"].requires_grad_(),
            "text": found["text"].requires_grad_(),
        }

    @abstractmethod
    def attend(self, prototypes: Tensor, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Updates of image and text."""

    def __call__(self) -> float:
        """The sum of the outputs, weighted by their gradients."""
        for tensor in self.parameters.values():
            tensor.grad = None
        found = self.attend(**self.parameters)
        torch.autograd.backward(found, self.gradients)
        return sum((a * b).double().sum() for a, b in zip(found, self.gradients)).item()
