"""How single layers are initialised.

transformers skips modules without parameters of their own when it calls the `_init_weights` of a model from outside its
package, so a container cannot set its parts right afterwards; the parts say it themselves.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, TypeVar

from torch import nn
from transformers import initialization as init

Scheme: TypeAlias = Literal["normal", "xavier", "torch", "kaiming", "small"]
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def tagged(layer: Layer, scheme: Scheme) -> Layer:
    """`layer`, to be initialised by `scheme` instead of the default of its kind."""
    layer.init_scheme = scheme
    return layer


def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Weights by the layer's scheme ("normal" for linear layers, "torch" for convolutions); bias 0.

    Leaves tensors alone that were loaded from a checkpoint.
    """
    scheme = getattr(layer, "init_scheme", "normal" if isinstance(layer, nn.Linear) else "torch")
    if scheme == "normal":  # the official code truncates at 100 standard deviations
        init.normal_(layer.weight, std=0.02)
    elif scheme == "xavier":
        init.xavier_uniform_(layer.weight)
    elif scheme == "torch":  # what torch gives a new layer
        init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    elif scheme == "kaiming":
        init.kaiming_uniform_(layer.weight, a=1)
    elif scheme == "small":
        init.normal_(layer.weight, std=0.01)
    else:
        raise ValueError(f"unknown scheme {scheme!r}")
    if layer.bias is not None:
        init.zeros_(layer.bias)
