"""How transformers' Grounding DINO and MM Grounding DINO are run: module by module, with their own weights.

text      captions -> token features; the sentences of a caption do not see each other
image     pixels -> feature maps; learnt tokens may enter the windows of a Swin
encoder   image and text attend to each other, layer after layer; learnt tokens may enter
decoder   the best positions become queries, queries become boxes and token logits
losses    matching and losses
pictures  PIL images -> pixels
"""

from __future__ import annotations

from .decoder import GroundingDinoOutput, LinearProbeHead, decode, predict
from .encoder import fuse
from .image import encode_image
from .losses import LossWeights, Prediction, Target, detection_losses
from .pictures import Pictures
from .text import encode_text, sentence_starts

__all__ = [
    "GroundingDinoOutput",
    "LinearProbeHead",
    "LossWeights",
    "Pictures",
    "Prediction",
    "Target",
    "decode",
    "detection_losses",
    "encode_image",
    "encode_text",
    "fuse",
    "predict",
    "sentence_starts",
]
