"""From class names to a caption, and from a caption to the tokens that stand for each class.

A grounded detector reads its classes as text: "person. bicycle. hair drier". A box of class 2 should match the tokens
"hair", "dr", "##ier" and no others; the row of zeros and ones that says so is the box's *positive map*.

    caption   person.  bicycle .  hair  dr  ##ier
    token 0    1     2   3     4   5    6    7     8        0 is [CLS], 8 is [SEP]
    class      0         1         2    2    2

Works with every fast tokenizer of transformers: where a character stands among the tokens is asked of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import CaptionLengthError, ClassNamesError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

SEPARATORS = {"train": (". ", ""), "demo": (" . ", " . "), "sentences": (". ", ".")}
"""What stands between two class names of a caption, and behind the last. "train" is the form of GLIP's training and
evaluation, "demo" that of its web demo; "sentences", each with its period, is what Grounding DINO reads."""


@dataclass(frozen=True)
class Caption:
    """A caption and where its classes stand in it.

    Attributes:
        text: the caption. names: its C classes (or phrases).
        tokens: token positions of each class, [CLS] counted; empty if a class has none.
        length: tokens of the caption, special ones ([CLS], [SEP]) included.
        labels: the label that each name has in its data set; empty where that is its position.
    """

    text: str
    names: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    length: int
    labels: tuple[int, ...] = ()

    def position(self, label: int) -> int | None:
        """Which of the names has this label; None if it is not in the caption."""
        if not self.labels:
            return int(label) if 0 <= label < len(self.names) else None
        return self.labels.index(label) if label in self.labels else None

    def positive_map(self, labels: Sequence[int] | Tensor, width: int | None = None) -> Tensor:
        """(len(labels), width) float 0/1: the tokens each label's box should match. `width` defaults to the length.

        Raises:
            ClassNamesError: a label that the caption does not name.
        """
        import torch  # captions are also read where torch is not wanted, as by `duotune list`

        rows = torch.zeros(len(labels), width or self.length)
        for row, label in zip(rows, labels):
            position = self.position(int(label))
            if position is None:
                raise ClassNamesError(f"the caption names no class with label {int(label)}; it has {self.names[:5]}...")
            row[list(self.tokens[position])] = 1
        return rows


@dataclass(frozen=True)
class CaptionPrompt:
    """How a class reads in a caption: `prefix` + `name` + `suffix`; only `name` counts as the class."""

    name: str
    prefix: str = ""
    suffix: str = ""


def clean_name(name: str) -> str:
    """A class name as it stands in captions: nothing in parentheses, no underscores, single spaces.

    >>> clean_name("hair_drier_(electric)")
    'hair drier'
    """
    name = re.sub(r"\(.*\)", "", name).replace("_", " ")
    return re.sub(r" {2,}", " ", name).strip()


def check_names(class_names: Sequence[str]) -> list[str]:
    """Cleaned names. Raises ClassNamesError if there are none, or one says nothing or is given twice."""
    names = [clean_name(name) for name in class_names]
    if not names:
        raise ClassNamesError("a caption needs at least one class name")
    empty = [given for given, name in zip(class_names, names) if not name]
    if empty:
        raise ClassNamesError(f"class names without text: {', '.join(map(repr, empty))}")
    # Names that differ only in what is cleaned away are legal: LVIS has two kinds of bow.
    if len(set(class_names)) < len(class_names):
        repeated = sorted({name for name in class_names if list(class_names).count(name) > 1})
        raise ClassNamesError(f"class names given more than once: {', '.join(map(repr, repeated))}")
    return names


def build_caption(
    class_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 256,
    style: str = "train",
    prompts: Sequence[CaptionPrompt] | None = None,
    labels: Sequence[int] = (),
) -> Caption:
    """The detection caption of class names, in the given order.

    Args:
        tokenizer: any fast one.
        max_tokens: longest caption, special tokens included.
        style: a key of `SEPARATORS`.
        prompts: how each class reads, one per name; None for the cleaned names.
        labels: of the names in their data set; empty for their positions.

    Raises:
        ClassNamesError: a name is empty or repeated, or the caption does not fit `max_tokens` (see `chunk_classes`).
        ConfigError: as many prompts or labels as names are needed.
    """
    text, spans = _join(class_names, style, prompts)
    if labels and len(labels) != len(class_names):
        raise ConfigError(f"{len(class_names)} class names need as many labels, got {len(labels)}")
    caption = grounding_caption(text, spans, tokenizer, max_tokens, class_names)
    return replace(caption, labels=tuple(int(label) for label in labels))


def _join(
    class_names: Sequence[str], style: str, prompts: Sequence[CaptionPrompt] | None
) -> tuple[str, list[list[tuple[int, int]]]]:
    """(caption, one list of one (first, behind last) character span per class)."""
    names = check_names(class_names)
    if style not in SEPARATORS:
        raise ConfigError(f"unknown caption style {style!r}; known: {', '.join(SEPARATORS)}")
    if prompts is None:
        prompts = [CaptionPrompt(name) for name in names]
    elif len(prompts) != len(names):
        raise ConfigError(f"{len(names)} class names need as many caption prompts, got {len(prompts)}")
    between, behind = SEPARATORS[style]
    text, spans = "", []
    for index, prompt in enumerate(prompts):
        text += (between if index else "") + prompt.prefix
        name = clean_name(prompt.name)
        spans.append([(len(text), len(text) + len(name))])
        text += name + prompt.suffix
    return text + behind, spans


def grounding_caption(
    text: str,
    spans: Sequence[Sequence[tuple[int, int]]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 256,
    names: Sequence[str] | None = None,
) -> Caption:
    """A caption of any form whose phrases are given as character ranges.

    Args:
        spans: per phrase one or more (first, behind last) character positions.
        names: of the phrases; None for their text.

    Raises:
        ClassNamesError: the caption does not fit `max_tokens`.
        ConfigError: the tokenizer does not tell where characters are.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(f"a fast tokenizer is needed to find class names in captions, got {type(tokenizer).__name__}")
    encoding = tokenizer(text)
    length = len(encoding["input_ids"])
    if length > max_tokens:
        raise CaptionLengthError(
            f"the caption of {len(spans)} classes takes {length} tokens, the model reads {max_tokens}; "
            "use fewer or shorter names, or several captions (chunk_classes)"
        )
    tokens = tuple(tuple(sorted({t for span in phrase for t in _span_tokens(encoding, *span)})) for phrase in spans)
    if names is None:
        names = [" ".join(text[a:b] for a, b in phrase) for phrase in spans]
    return Caption(text, tuple(names), tokens, length)


def _span_tokens(encoding: Any, begin: int, end: int) -> range:
    """Tokens of the characters begin ... end - 1; edges that belong to no token move inwards by up to two."""
    first = next((t for i in range(3) if (t := encoding.char_to_token(begin + i)) is not None), None)
    last = next((t for i in range(1, 4) if end - i >= 0 and (t := encoding.char_to_token(end - i)) is not None), None)
    return range(0) if first is None or last is None else range(first, last + 1)


def chunk_classes(
    class_names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int = 256,
    max_classes: int | None = None,
    style: str = "train",
    prompts: Sequence[CaptionPrompt] | None = None,
) -> list[Caption]:
    """Captions that together name all classes, in order, each as long as fits.

    One forward pass per caption then covers any number of classes. `Caption.labels` says which label each of its
    names has in `class_names`. Fits are tried with the tokenizer itself, not estimated from single names.

    Args:
        max_tokens: longest caption, special tokens included.
        max_classes: at most so many classes per caption; None for as many as fit.

    Raises:
        ClassNamesError: a name is empty or repeated, or one alone does not fit.
    """
    check_names(class_names)
    if max_classes is not None and max_classes < 1:
        raise ConfigError(f"max_classes must be at least 1, not {max_classes}")
    if prompts is not None and len(prompts) != len(class_names):
        raise ConfigError(f"{len(class_names)} class names need as many caption prompts, got {len(prompts)}")
    part = lambda labels: (
        [class_names[i] for i in labels],
        None if prompts is None else [prompts[i] for i in labels],
    )

    def length(labels: list[int]) -> int:
        names, chosen = part(labels)
        return len(tokenizer(_join(names, style, chosen)[0])["input_ids"])

    chunks: list[list[int]] = [[]]
    for label, name in enumerate(class_names):
        if chunks[-1] and (len(chunks[-1]) == max_classes or length([*chunks[-1], label]) > max_tokens):
            chunks.append([])
        if not chunks[-1] and (size := length([label])) > max_tokens:
            size -= tokenizer.num_special_tokens_to_add()
            raise ClassNamesError(f"class {name!r} alone takes {size} tokens; shorten it")
        chunks[-1].append(label)
    captions = []
    for labels in chunks:
        names, chosen = part(labels)
        captions.append(build_caption(names, tokenizer, max_tokens, style, chosen, labels))
    return captions
