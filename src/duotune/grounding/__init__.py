"""What data and models both need to know of detection with words.

captions    class names -> caption, where each class stands in it, captions of as many classes as fit
geometry    how large a picture becomes, and its boxes with it
"""

from __future__ import annotations

from .captions import Caption, CaptionPrompt, build_caption, chunk_classes, clean_name, grounding_caption
from .geometry import flip_boxes, resized_size, scale_boxes

__all__ = [
    "Caption",
    "CaptionPrompt",
    "build_caption",
    "chunk_classes",
    "clean_name",
    "flip_boxes",
    "grounding_caption",
    "resized_size",
    "scale_boxes",
]
