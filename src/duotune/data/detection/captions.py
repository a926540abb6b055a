"""Which classes the caption of a training picture names.

Pre-training on detection data (GLIP, Li et al. 2022; facts of its public code, data/datasets/od_to_grounding.py) does
not show all classes with every picture: 1,203 names do not fit, and a detector that always reads the same sentence
learns to ignore it. A caption names the picture's own classes and some that are absent, shuffled:

1. The picture's classes in random order, as long as they fit the budget; boxes of the other classes are left out.
2. How many absent classes: `num_negatives` with probability `full`, otherwise uniform 1 ... `num_negatives`. So many
   are drawn from *all* classes; those that the picture shows fall away.
3. They join in random order while they fit.
4. All names are shuffled.

Tuning on one task shows the fixed list of all classes instead (`OneCaption`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from ...errors import ClassNamesError, ConfigError
from ...grounding import Caption, CaptionPrompt, build_caption, clean_name, grounding_caption
from ...grounding.captions import check_names
from .base import DetectionItem


class CaptionChoice(Protocol):
    """What a detection data set asks for each picture."""

    def __call__(self, item: DetectionItem, rng: np.random.Generator) -> Caption:
        """The caption to train on; classes that it does not name lose their boxes."""


class OneCaption:
    """The same caption with every picture, such as that of all classes."""

    def __init__(self, caption: Caption):
        self.caption = caption

    def __call__(self, item: DetectionItem, rng: np.random.Generator | None = None) -> Caption:
        return self.caption


class ItemPhrases:
    """The sentence that grounding data brings. Raises ClassNamesError for a picture whose sentence is too long."""

    def __init__(self, tokenizer: Any, max_tokens: int = 256):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def __call__(self, item: DetectionItem, rng: np.random.Generator | None = None) -> Caption:
        if item.caption is None:
            raise ClassNamesError(f"{item.short_key} has no sentence; use OneCaption or SampledClasses")
        return grounding_caption(item.caption, item.phrases, self.tokenizer, self.max_tokens)


class SampledClasses:
    """Shuffled classes of the picture and sampled absent ones, by the module's rule.

    Args:
        class_names: C names in label order.
        tokenizer: any fast one. max_tokens: longest caption, special tokens included.
        num_negatives: most absent classes to draw; 85 in GLIP's pre-training.
        full: 0..1, probability of drawing so many; 0.5 in GLIP's pre-training.
        prompts: how each class reads; empty for plain names.
        style: how a caption joins names, a key of `grounding.captions.SEPARATORS`.

    Raises:
        ClassNamesError: a name says nothing, is given twice, or does not fit alone.
        ConfigError: numbers out of range.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        tokenizer: Any,
        max_tokens: int = 256,
        num_negatives: int = 85,
        full: float = 0.5,
        prompts: Sequence[CaptionPrompt] = (),
        style: str = "train",
    ):
        if num_negatives < 0 or not 0 <= full <= 1:
            raise ConfigError(f"num_negatives must not be negative, full must be 0..1: {num_negatives}, {full}")
        if prompts and len(prompts) != len(class_names):
            raise ConfigError(f"{len(class_names)} class names need as many caption prompts, got {len(prompts)}")
        self.class_names, self.prompts = tuple(class_names), tuple(prompts)
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.num_negatives, self.full, self.style = num_negatives, full, style
        # What each name costs with the separator behind it. The last one needs none: a token to spare.
        texts = [p.prefix + clean_name(p.name) + p.suffix for p in prompts] or [clean_name(n) for n in class_names]
        self.costs = [len(ids) for ids in tokenizer([f"{t}. " for t in texts], add_special_tokens=False)["input_ids"]]
        check_names(class_names)
        for label, cost in enumerate(self.costs):
            if cost > max_tokens - tokenizer.num_special_tokens_to_add():  # raises unless it was the separator
                build_caption([class_names[label]], tokenizer, max_tokens, style, prompts[label : label + 1] or None)

    def __call__(self, item: DetectionItem, rng: np.random.Generator) -> Caption:
        crowds = np.unique(item.labels[item.iscrowd]).tolist()
        labels = self.choose(np.unique(item.labels[~item.iscrowd]).tolist(), rng, crowds)
        while True:
            try:
                names = [self.class_names[label] for label in labels]
                prompts = [self.prompts[label] for label in labels] if self.prompts else None
                return build_caption(names, self.tokenizer, self.max_tokens, self.style, prompts, labels)
            except ClassNamesError:  # a tokenizer that joins words otherwise than one by one
                if len(labels) == 1:
                    raise
                labels = labels[:-1]

    def choose(self, present: Sequence[int], rng: np.random.Generator, never: Sequence[int] = ()) -> list[int]:
        """Labels that the caption names, in order: those present that fit, and absent ones (but none of `never`)."""
        left = self.max_tokens - self.tokenizer.num_special_tokens_to_add()
        kept = []
        for label in rng.permutation(np.asarray(present, dtype=np.int64)).tolist():
            if kept and self.costs[label] > left:
                break
            kept.append(label)
            left -= self.costs[label]
        number = min(self.num_negatives, len(self.class_names))
        if number and rng.random() >= self.full:
            number = int(rng.integers(1, number + 1))
        if not present:  # a picture of nothing still needs a caption
            number = min(max(number, 1) + len(never), len(self.class_names))
        shown = {*present, *never}
        for label in rng.choice(len(self.class_names), size=number, replace=False).tolist():
            if label in shown:
                continue
            if self.costs[label] > left:
                break
            kept.append(label)
            left -= self.costs[label]
        return rng.permutation(np.asarray(kept, dtype=np.int64)).tolist()
