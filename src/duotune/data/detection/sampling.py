"""Few-shot detection as GLIP samples it (Li et al., CVPR 2022; github.com/microsoft/GLIP, commit 9dda955,
maskrcnn_benchmark/data/datasets/coco.py and modulated_coco.py): a pure function of items and seed.

The rule, exactly:
1. Leave out training pictures without a usable box: one with both sides longer than 1 pixel.
2. Order the rest by image id. A seed other than 0 shuffles them with Python's `random.Random(seed).shuffle` (GLIP's
   reader for grounding leaves the shuffle out: there every seed is 0).
3. Every class starts with a budget of `num_shots`. Go through the pictures once, in order. A picture is taken if at
   least one class that it shows (crowds count) has budget left; then *every* class it shows loses 1.

So a shot is a picture, not a box: a picture with twenty boxes of a class is one shot of it, with all its boxes, and
frequent classes get more pictures than shots, because others' pictures show them too. A class with fewer pictures gives
all it has. Only training pictures are sampled.

The lists that come with ODinW (`odinw.PUBLISHED_SHOTS`) were drawn once by its authors; published numbers are on those.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ...errors import ConfigError, DataError
from ...settings import check_whole
from ..base import first_few
from .base import DetectionData, DetectionItem
from .tree import Tree

logger = logging.getLogger(__name__)

MIN_SIDE = 1.0  # pixels; boxes need more


def has_usable_box(item: DetectionItem) -> bool:
    """Whether at least one box is more than 1 pixel wide and high."""
    sides = item.boxes[:, 2:] - item.boxes[:, :2]
    return bool((sides > MIN_SIDE).all(axis=1).any())


def few_shot_items(items: Iterable[DetectionItem], num_shots: int, seed: int = 0) -> list[DetectionItem]:
    """The pictures that the module's rule takes, in the order in which it meets them.

    Raises:
        ConfigError: num_shots below 1, or a negative seed.
    """
    check_whole(1, num_shots=num_shots)
    check_whole(0, seed=seed)
    order = sorted(filter(has_usable_box, items), key=lambda item: (isinstance(item.image_id, str), item.image_id))
    if seed:
        random.Random(seed).shuffle(order)
    spent: dict[int, int] = {}
    taken = []
    for item in order:
        shown = np.unique(item.labels).tolist()
        if any(spent.get(label, 0) < num_shots for label in shown):
            taken.append(item)
            for label in shown:
                spent[label] = spent.get(label, 0) + 1
    return taken


def few_shot(data: DetectionData, num_shots: int, seed: int = 1) -> DetectionData:
    """`data` with the training pictures of the module's rule; val and test stay whole.

    Args:
        num_shots: 1, 3, 5 and 10 are usual.
        seed: 0 takes pictures in the order of their ids; 3, 30 and 300 are GLIP's others.

    Raises:
        ConfigError: num_shots below 1, a negative seed, or grounding data, which has no classes.
        DataError: no training picture has a usable box.
    """
    if not data.class_names:
        raise ConfigError(f"{data.name} has phrases instead of classes; shots per class are not defined")
    taken = few_shot_items(data.train, num_shots, seed)
    if not taken:
        raise DataError(f"{data.name}: no training picture has a box larger than 1 x 1 pixel")
    few = fewer_pictures(data, num_shots)
    if few:
        logger.warning(
            "%s: %d of %d classes have fewer than %d training pictures and give all they have: %s",
            data.name,
            len(few),
            len(data.class_names),
            num_shots,
            first_few([f"{name} ({count})" for name, count in few.items()]),
        )
    return replace(data, train=tuple(taken))


def divide(
    data: DetectionData,
    seed: int | None,
    tree: Tree,
    said: str | None = None,
    val_share: float = 0.2,
    test_share: float = 0.3,
) -> DetectionData:
    """Data whose pictures are all in `test`, divided as class folders are; a note in the report says so.

    A picture's split depends on the seed and its own name below the tree alone: a hash of both is a number in 0..1,
    below `test_share` it is for testing, below the sum of both for validation. So adding pictures moves no other one.

    Args:
        seed: None: all stay in `test`.
        said: the split that the file's name says; then all pictures become that one.

    Raises:
        DataError: no picture is left for training.
    """
    items, source = data.test, data.name
    if seed is None:
        if said is None:
            note = f"{source} brings no splits: all of its {len(items)} pictures are the test split"
            data.report.notes.append(note)
        return data
    if said is not None:
        return replace(data, test=(), **{said: items})
    parts: dict[str, list[DetectionItem]] = {"train": [], "val": [], "test": []}
    for item in items:
        digest = hashlib.sha256(f"{seed}:split:{tree.name_of(item)}".encode()).digest()
        share = int.from_bytes(digest[:8], "big") / 2**64
        parts["test" if share < test_share else "val" if share < test_share + val_share else "train"].append(item)
    if not parts["train"]:
        raise DataError(
            f"{source} brings no splits, and dividing its {len(items)} pictures leaves none for training; sort them "
            "into train, val and test (train.json beside train/, and so on)"
        )
    counts = ", ".join(f"{len(part)} {split}" for split, part in parts.items())
    data.report.notes.append(
        f"{source} brings no splits: its pictures were divided by their names (seed {seed}): {counts}"
    )
    return replace(data, **{split: tuple(part) for split, part in parts.items()})


def fewer_pictures(data: DetectionData, num_shots: int) -> dict[str, int]:
    """Class -> number of its training pictures with a usable box, of every class that has fewer than `num_shots`."""
    counts = np.zeros(len(data.class_names), dtype=np.int64)
    for item in filter(has_usable_box, data.train):
        counts[np.unique(item.labels)] += 1
    return {name: int(count) for name, count in zip(data.class_names, counts) if count < num_shots}
