"""Few-shot sampling and splitting: pure functions of the items and a seed.

Orders come from SHA-256 of seed and position instead of a random generator, so that the same seed
means the same pictures on every machine and under every version of Python and NumPy. An item counts by
its place in its class's sorted list, and a class by its name: where the data set lies, the order of listing, other
classes and their order do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from ..errors import ConfigError, DataError, shown
from ..settings import check_whole, fits
from .base import ClassificationData, ImageItem, clean_class_name, first_few
from .layout import plain_name

T = TypeVar("T")
MAX_VAL_SHOTS = 4  # CoOp (Zhou et al., IJCV 2022) validates on min(shots, 4) pictures per class; so do its followers


def shuffled(items: list[ImageItem], *salt: object) -> list[ImageItem]:
    """`items` in an order that depends on their sorted keys and the salt alone."""
    prefix = ":".join(map(str, salt))
    digest = lambda position: hashlib.sha256(f"{prefix}:{position}".encode(errors="surrogatepass")).digest()
    ordered = sorted(items, key=_place)
    return [ordered[i] for i in sorted(range(len(ordered)), key=digest)]


def _place(item: ImageItem) -> tuple[int, str]:
    """Sorts by key, however its accents are stored; row numbers by value: other classes' rows make them longer."""
    row = (item.member or "").isdecimal()
    return len(item.member or "") if row else 0, plain_name(item.key)


def check_every_class(data: object, items: Iterable[ImageItem]) -> None:
    """Raises DataError if a class has none of the training `items`: what is learnt of it would be chance.

    Data with boxes pass: a picture there may show any number of classes.
    """
    if not isinstance(data, ClassificationData):
        return
    seen = {item.label for item in items}
    if absent := [name for label, name in enumerate(data.class_names) if label not in seen]:
        raise DataError(
            f"{data.name}: {len(absent)} of {len(data.class_names)} classes have no training pictures that can be "
            f"read: {first_few(absent)}; add some, or leave these classes out of all splits"
        )


def spread(items: Sequence[T], count: int) -> list[T]:
    """Up to `count` of the items at even distances, the first and the last among them (of one: the first)."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def by_label(items: Iterable[ImageItem]) -> dict[int, list[ImageItem]]:
    """label -> its items, labels ascending."""
    groups: dict[int, list[ImageItem]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return dict(sorted(groups.items()))


def few_shot(data: ClassificationData, num_shots: int, seed: int = 1, *, repeat: bool = False) -> ClassificationData:
    """`num_shots` training and up to min(num_shots, 4) validation items per class; the test split stays whole.

    Shots are nested: with one seed, the 4 shots of a class contain its 2 shots. A class's shots depend on its own
    items, its name and the seed, so taking shots and taking classes (`subset`, `select`) commute. Validation takes
    what there is when a class has less.

    Args:
        num_shots: training items per class, at least 1.
        seed: another seed, other shots; 1 is the first, as of `attach` and training.
        repeat: a class with fewer items than shots has them repeated in turn, instead of an error.

    Raises:
        ConfigError: num_shots is no whole number of at least 1.
        DataError: classes with fewer training items than shots (with `repeat`: with none), by name.
    """
    check_whole(1, num_shots=num_shots)
    train, val = by_label(data.train), by_label(data.val)
    wanted = 1 if repeat else num_shots
    counts = [(name, len(train.get(label, ()))) for label, name in enumerate(data.class_names)]
    if short := [f"{name} ({count})" for name, count in counts if count < wanted]:
        raise DataError(
            f"{data.name}: {num_shots} shots wanted, but {len(short)} of {len(counts)} classes have fewer training "
            f"pictures: {first_few(short)}; take fewer shots"
            + ("" if repeat else " (in Python, few_shot(..., repeat=True) shows some twice)")
        )
    shots: list[ImageItem] = []
    held_out: list[ImageItem] = []
    for label, name in enumerate(data.class_names):
        order = shuffled(train[label], seed, "train", name)
        shots += [order[i % len(order)] for i in range(num_shots)]
        held_out += shuffled(val.get(label, []), seed, "val", name)[: min(num_shots, MAX_VAL_SHOTS)]
    return replace(data, train=tuple(shots), val=tuple(held_out))


def split(
    items: Iterable[ImageItem],
    class_names: Sequence[str],
    val_share: float = 0.2,
    test_share: float = 0.3,
    seed: int = 0,
) -> tuple[list[ImageItem], list[ImageItem], list[ImageItem]]:
    """(train, val, test), class by class: what a class gives depends on its own items, its name and the seed.

    Each class gives round(n * share) items away, and at least one to a share above 0, but keeps at least one for
    training: of two items one is for testing, of one none.

    Args:
        class_names: in label order, as `clean_class_name` makes them or not.
        val_share, test_share: 0..1, together below 1.

    Raises:
        ConfigError: shares out of range, or a seed that is no whole number from 0.
    """
    shares = val_share, test_share
    if not all(fits(share, float) and share >= 0 for share in shares) or sum(shares) >= 1:
        raise ConfigError(f"val_share and test_share must be 0..1 and sum to less than 1: {shown(shares, 80)}")
    check_whole(0, seed=seed)
    train: list[ImageItem] = []
    val: list[ImageItem] = []
    test: list[ImageItem] = []
    for label, group in by_label(items).items():
        order, n = shuffled(group, seed, "split", clean_class_name(str(class_names[label]))), len(group)
        num_test = min(n - 1, max(1, int(n * test_share + 0.5))) if test_share else 0
        num_val = min(n - 1 - num_test, max(1, int(n * val_share + 0.5))) if val_share else 0
        test += order[:num_test]
        val += order[num_test : num_test + num_val]
        train += order[num_test + num_val :]
    return train, val, test
