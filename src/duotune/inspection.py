"""What learnt context says: the vocabulary words whose embeddings lie nearest to each context token.

CoOp's authors read their context this way (arXiv 2109.01134) and warn that the words rarely make
sense: a learnt vector need not lie near any word. The distance tells how far away the word is.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError
from .model import PromptedModel


@dataclass(frozen=True)
class NearestWord:
    """A vocabulary entry near a context token.

    Attributes:
        word: the entry; "…" stands where a word goes on.
        distance: Euclidean distance in token-embedding space.
    """

    word: str
    distance: float

    def __str__(self) -> str:
        return f"{self.word} {self.distance:.3f}"


def nearest_words(model: PromptedModel, top_k: int = 3, class_name: str | None = None) -> list[list[NearestWord]]:
    """M lists, one per context token, of its `top_k` nearest vocabulary entries, nearest first.

    Args:
        class_name: whose context, if each class has its own; None: the first class's.

    Returns:
        An empty list if the method learns no text context.

    Raises:
        ConfigError: the model has no class of that name.
    """
    import torch

    text = getattr(model.method, "text", None)
    if text is None or not hasattr(text, "context"):
        return []
    if class_name is not None and class_name not in model.class_names:
        raise ConfigError(f"no class {class_name!r}; known: {', '.join(model.class_names)}")
    tokens = text.context.tokens.detach()
    if tokens.ndim == 3:
        tokens = tokens[model.class_names.index(class_name) if class_name is not None else 0]
    backbone = model.backbone
    entries = backbone.tokenizer.get_vocab()  # word -> id
    words = {number: word for word, number in entries.items()}
    ids = torch.tensor(sorted(words), device=backbone.device)
    with torch.no_grad():
        table = backbone.embed_tokens(ids).float()
        distances = torch.cdist(tokens.to(table), table)  # (M, vocabulary)
        near = distances.topk(min(top_k, len(ids)), largest=False)
    return [
        [NearestWord(_readable(words[int(ids[i])]), float(d)) for d, i in zip(values, indices)]
        for values, indices in zip(near.values, near.indices)
    ]


def _readable(entry: str) -> str:
    return entry.removesuffix("</w>") if entry.endswith("</w>") or entry.startswith("<|") else entry + "…"


__all__ = ["NearestWord", "nearest_words"]
