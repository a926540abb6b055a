"""What a classification data set is: class names, templates, and lists of labelled pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .. import reading
from ..errors import ClassNamesError, ConfigError, DataError, shown
from ..names import clean_class_name, first_few, same_classes


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One labelled picture, not yet decoded.

    Attributes:
        path: the image file; or the archive or saved data set that holds it.
        label: index into the data set's class names.
        member: name inside a zip archive, or row number (as text) of a Hugging Face data set saved on disk.

    ImageNet has 1.3 million of these, hence slots.
    """

    path: Path
    label: int
    member: str | None = None

    @property
    def key(self) -> str:
        """A name for messages and for sorting."""
        return f"{self.path}::{self.member}" if self.member else str(self.path)

    @property
    def short_key(self) -> str:
        """The last two parts of the name ("cat/0001.jpg"): the same wherever the data set lies."""
        if self.member is None:
            return "/".join(self.path.parts[-2:])
        return "/".join((self.path.name, *self.member.split("/"))[-2:])


class LabelledItems(tuple[ImageItem, ...]):
    """Items of a data set, and what their labels stand for; otherwise a tuple. A slice of it knows that, too.

    Attributes:
        class_names: C names, in label order.
    """

    class_names: tuple[str, ...]

    def __new__(cls, items: Iterable[ImageItem], class_names: tuple[str, ...]) -> LabelledItems:
        made = super().__new__(cls, items)
        made.class_names = class_names
        return made

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return type(self)(found, self.class_names) if isinstance(index, slice) else found

    def __reduce__(self):
        return type(self), (tuple(self), self.class_names)


@dataclass(frozen=True)
class ClassificationData:
    """Labelled pictures in three splits.

    Attributes:
        name: of the data set, or of the folder.
        class_names: C different names, in label order.
        train, val, test: items, kept as `LabelledItems`; `val` and `test` may be empty.
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

    def __post_init__(self):
        for split in ("train", "val", "test"):
            object.__setattr__(self, split, LabelledItems(getattr(self, split), self.class_names))

    def __str__(self) -> str:
        rows = [f"{self.name}: {len(self.class_names)} classes"]
        return "\n".join([*rows, *(f"{s:<5}  {len(getattr(self, s)):>7} images" for s in ("train", "val", "test"))])

    def few_shot(self, num_shots: int, seed: int = 1, repeat: bool = False) -> ClassificationData:
        """`num_shots` training items per class and min(num_shots, 4) validation items; test stays whole.

        Depends on the items and the seed alone, so all methods see the same shots; see `sampling.few_shot`.
        Raises DataError naming the classes that have fewer items than shots, unless `repeat`.
        """
        from .sampling import few_shot

        return few_shot(self, num_shots, seed, repeat=repeat)

    def subset(self, classes: Literal["all", "base", "new"]) -> ClassificationData:
        """All classes, the first half (base; the larger one if C is odd) or the second (new), relabelled from 0."""
        if classes == "all":
            return self
        half = -(-len(self.class_names) // 2)
        if classes not in ("base", "new"):
            raise ConfigError(f"classes must be 'all', 'base' or 'new', not {classes!r}")
        keep = range(half) if classes == "base" else range(half, len(self.class_names))
        if not keep:
            raise DataError(f"{self.name} has one class alone, so it has no {classes} classes; use all classes")
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


def in_order_of(class_names: Sequence[str], data: Any) -> Any:
    """Classification or detection data with its classes in this order, called so; as it is where it has others."""
    order = same_classes(class_names, data.class_names)
    if order is None or tuple(class_names) == tuple(data.class_names):
        return data
    return replace(data.select(order), class_names=tuple(class_names))


def images_per_split(data: object) -> str:
    """ "24 train, 20 test": the splits of `data` that hold something; "none" if none does."""
    return ", ".join(f"{len(getattr(data, s))} {s}" for s in ("train", "val", "test") if getattr(data, s)) or "none"


def clean_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Class names as prompts read them, see `clean_class_name`.

    Raises ClassNamesError if a name is empty or no valid Unicode, or two names are equal afterwards.
    """
    originals = [str(name) for name in names]
    if len(originals) > reading.MAX_CLASSES:
        raise ClassNamesError(f"{len(originals):,} classes are given; the limit is {reading.MAX_CLASSES:,}")
    cleaned = tuple(map(clean_class_name, originals))
    if broken := [name for name in originals if any("\ud800" <= letter <= "\udfff" for letter in name)]:
        raise ClassNamesError(
            f"class names must be Unicode, and {shown(broken[0])} is not; rename it (folders: in UTF-8)"
        )
    if not all(cleaned):
        raise ClassNamesError(f"class names must not be empty; number {cleaned.index('')} of {len(cleaned)} is")
    if len(set(cleaned)) < len(cleaned):
        meant: dict[str, list[str]] = {}
        for name, original in zip(cleaned, originals):
            meant.setdefault(name, []).append(original)
        groups = [(name, group) for name, group in meant.items() if len(group) > 1]
        doubled = "; ".join(f"{shown(name, 60)} from {shown(group)}" for name, group in groups[:3])
        raise ClassNamesError(f"class names must be different once '_' reads as a space, but {doubled}; rename one")
    return cleaned


def make_data(
    name: str,
    class_names: Iterable[str],
    train: Iterable[ImageItem],
    val: Iterable[ImageItem] = (),
    test: Iterable[ImageItem] = (),
    template: str = "a photo of a {}.",
    templates: Iterable[str] = (),
) -> ClassificationData:
    """Check what a reader found and put it together.

    Raises:
        ClassNamesError: a name is empty or doubled, or a template has not one `{}`.
        DataError: no pictures at all, or a class that has none in any split.
    """
    if not isinstance(name, str):
        raise DataError(f"the name of a data set must be a text, not {shown(name, 60)}")
    if isinstance(class_names, str) or not isinstance(class_names, Iterable):
        raise ClassNamesError(f"{name}: class names must be a list of texts, not {shown(class_names, 60)}")
    if isinstance(templates, str) or not isinstance(templates, Iterable):
        raise ClassNamesError(f"{name}: templates must be a list of texts, not {shown(templates, 60)}")
    names = clean_class_names(class_names)
    templates = tuple(templates)
    for text in (template, *templates):
        if not isinstance(text, str) or text.count("{}") != 1:
            raise ClassNamesError(f"{name}: a template must contain one '{{}}' for the class name; got {shown(text)}")
    data = ClassificationData(name, names, tuple(train), tuple(val), tuple(test), template, templates)
    seen = {item.label for items in (data.train, data.val, data.test) for item in items}
    if not seen:
        raise DataError(f"{name}: no pictures found in any split")
    if empty := [names[label] for label in range(len(names)) if label not in seen]:
        raise DataError(f"{name}: {len(empty)} of {len(names)} classes have no pictures: {first_few(empty)}")
    return data
