"""Files of others become ours: OpenAI's CLIP weights, and checkpoints of the authors' code."""

from __future__ import annotations

from .dassl import import_dassl
from .openai_clip import convert_openai_clip
from .sdpt import import_sdpt

__all__ = ["convert_openai_clip", "import_dassl", "import_sdpt"]
