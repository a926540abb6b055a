"""What a classification data set is: class names, templates, and lists of labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..errors import ConfigError


@dataclass(frozen=True)
class ImageItem:
    """One labelled picture, not yet decoded.

    Attributes:
        path: the image file; or the archive or saved data set that holds it.
        label: index into the data set's class names.
        member: name inside a zip archive, or row number (as text) of a Hugging Face data set saved on disk.
    """

    path: Path
    label: int
    member: str | None = None

    @property
    def key(self) -> str:
        """A name for messages and for sorting."""
        return f"{self.path}::{self.member}" if self.member else str(self.path)


@dataclass(frozen=True)
class ClassificationData:
    """Labelled pictures in three splits.

    Attributes:
        name: of the data set, or of the folder.
        class_names: C different names, in label order.
        train, val, test: items; `val` and `test` may be empty.
        template: hand-written prompt with one `{}`, e.g. "a photo of a {}, a type of pet.".
        templates: ensemble of templates for zero-shot; empty if the data set has none.
    """

    name: str
    class_names: tuple[str, ...]
    train: tuple[ImageItem, ...]
    val: tuple[ImageItem, ...] = ()
    test: tuple[ImageItem, ...] = ()
    template: str = "a photo of a {}."
    templates: tuple[str, ...] = field(default=())

    def few_shot(self, num_shots: int, seed: int = 0) -> ClassificationData:
        """`num_shots` training items per class and min(num_shots, 4) validation items; test stays whole.

        Depends on the items and the seed alone, so all methods see the same shots.
        Raises DataError naming the classes that have fewer items than shots.
        """
        from .sampling import few_shot

        return few_shot(self, num_shots, seed)

    def subset(self, classes: Literal["all", "base", "new"]) -> ClassificationData:
        """All classes, the first half (base; the larger one if C is odd) or the second (new), relabelled from 0."""
        if classes == "all":
            return self
        half = -(-len(self.class_names) // 2)
        if classes not in ("base", "new"):
            raise ConfigError(f"classes must be 'all', 'base' or 'new', not {classes!r}")
        keep = range(half) if classes == "base" else range(half, len(self.class_names))
        return self.select(keep)

    def select(self, labels: Sequence[int]) -> ClassificationData:
        """Only the classes with these labels, relabelled in the given order."""
        new = {old: i for i, old in enumerate(labels)}
        cut = lambda items: tuple(replace(x, label=new[x.label]) for x in items if x.label in new)
        return replace(
            self,
            class_names=tuple(self.class_names[old] for old in labels),
            train=cut(self.train),
            val=cut(self.val),
            test=cut(self.test),
        )
