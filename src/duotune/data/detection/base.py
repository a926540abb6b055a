"""What a detection data set is: class names, and pictures with labelled boxes in three splits.

Boxes are xyxy in pixels of the undistorted picture, the corner behind the last pixel included in neither: width =
x2 - x1, as COCO's [x, y, width, height] means it. Models that count corner pixels (GLIP) subtract 1 from x2 and y2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ClassNamesError, DataError
from ...grounding import CaptionPrompt
from ..base import first_few
from ..layout import plain_name
from .report import DetectionReport

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True, eq=False)
class DetectionItem:
    """One picture with its boxes, not yet decoded.

    Attributes:
        path: the image file; or the zip archive that holds it.
        image_id: in the annotation file.
        width, height: pixels.
        boxes: (n, 4) float32 xyxy pixels, inside the picture, of positive size; n may be 0.
        labels: (n,) int64, indices into the data set's class names; for grounding, into the item's `phrases`.
        ids: (n,) int64 of the annotations.
        iscrowd: (n,) bool: the box covers a crowd; evaluation neither rewards nor punishes what is found there.
        area: (n,) float64 pixels, of the object's mask where the annotation says so, of the box elsewhere.
        neg_labels: LVIS: labels known to be absent. not_exhaustive_labels: LVIS: labels not annotated completely.
        caption: grounding: the sentence that describes the picture; None for plain detection.
        phrases: grounding: per phrase its (first, behind last) character spans in the caption.
        member: name inside a zip archive; None for files.
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    iscrowd: np.ndarray
    area: np.ndarray
    neg_labels: tuple[int, ...] = ()
    not_exhaustive_labels: tuple[int, ...] = ()
    caption: str | None = None
    phrases: tuple[tuple[tuple[int, int], ...], ...] = ()
    member: str | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def key(self) -> str:
        """A name for messages and for sorting; grounding data holds a picture once per sentence."""
        return f"{self.path}::{self.member}" if self.member else str(self.path)

    @property
    def short_key(self) -> str:
        """The last two parts of the path and the image id: the same wherever the data set lies."""
        parts = self.path.parts if self.member is None else (self.path.name, *self.member.split("/"))
        return "/".join((*parts[-2:], str(self.image_id)))

    def keep(self, rows: np.ndarray) -> DetectionItem:
        """The item with some of its boxes: (n,) bool or indices."""
        return replace(
            self,
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            ids=self.ids[rows],
            iscrowd=self.iscrowd[rows],
            area=self.area[rows],
        )


@dataclass(frozen=True)
class DetectionData:
    """Pictures with boxes in three splits.

    Attributes:
        name: of the data set, or of the folder.
        class_names: C different names in label order, as the data set writes them; captions clean them. Empty for
            grounding data, whose items bring their own phrases.
        category_ids: C ids that the classes have in the annotation files.
        train, val, test: items; each may be empty, not all.
        caption_prompts: how each class reads in a caption, where the data set says so; empty for plain names.
        frequencies: LVIS: "r", "c" or "f" per class; empty elsewhere.
        report: what the reader met and what it did about it.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    train: tuple[DetectionItem, ...] = ()
    val: tuple[DetectionItem, ...] = ()
    test: tuple[DetectionItem, ...] = ()
    caption_prompts: tuple[CaptionPrompt, ...] = ()
    frequencies: tuple[str, ...] = ()
    report: DetectionReport = field(default_factory=DetectionReport, compare=False)

    def few_shot(self, num_shots: int, seed: int = 1) -> DetectionData:
        """Training pictures until every class has `num_shots`; val and test stay whole. See `sampling.few_shot`."""
        from .sampling import few_shot

        return few_shot(self, num_shots, seed)

    @property
    def templates(self) -> str | tuple[str, ...]:
        """How each class reads in a caption, as `attach` takes it: "{}", or one template per class."""
        if not self.caption_prompts:
            return "{}"
        return tuple(f"{prompt.prefix}{{}}{prompt.suffix}" for prompt in self.caption_prompts)

    def named_as_read(self) -> DetectionData:
        """The data set with the class names that its captions use, where it says so ("holes" for "pothole")."""
        if not self.caption_prompts:
            return self
        return replace(self, class_names=check_class_names([p.name for p in self.caption_prompts], self.name))

    def select(self, labels: Sequence[int]) -> DetectionData:
        """The same classes in another order: `labels` holds every present label once, in the new order."""
        if sorted(labels) != list(range(len(self.class_names))):
            raise DataError(f"{self.name}: expected each of {len(self.class_names)} labels once, got {list(labels)}")
        new = np.argsort(np.asarray(labels, dtype=np.int64))

        def moved(item: DetectionItem) -> DetectionItem:
            others: dict[str, Any] = {
                name: tuple(int(new[label]) for label in getattr(item, name))
                for name in ("neg_labels", "not_exhaustive_labels")
            }
            return replace(item, labels=new[item.labels], **others)

        take = lambda values: tuple(values[label] for label in labels) if values else ()
        splits: dict[str, Any] = {split: tuple(moved(item) for item in getattr(self, split)) for split in SPLITS}
        return replace(
            self,
            class_names=take(self.class_names),
            category_ids=take(self.category_ids),
            caption_prompts=take(self.caption_prompts),
            frequencies=take(self.frequencies),
            **splits,
        )

    def boxes_per_class(self, split: str = "train") -> np.ndarray:
        """(C,) numbers of boxes, crowds left out."""
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        for item in getattr(self, split):
            counts += np.bincount(item.labels[~item.iscrowd], minlength=len(counts))
        return counts

    def __str__(self) -> str:
        rows = [f"{self.name}: {len(self.class_names)} classes"]
        for split in SPLITS:
            items = getattr(self, split)
            rows.append(f"{split:<5}  {len(items):>7} images  {sum(map(len, items)):>8} boxes")
        return "\n".join([*rows, str(self.report)])


def check_class_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Names as they are. Raises ClassNamesError if one is blank or two are the same."""
    if blank := [index for index, name in enumerate(names) if not isinstance(name, str) or not name.strip()]:
        raise ClassNamesError(f"{where}: {len(blank)} of {len(names)} categories have no name (number {blank[0] + 1})")
    if doubled := sorted({name for name in names if list(names).count(name) > 1}):
        raise ClassNamesError(f"{where}: categories must have different names; more than one is {first_few(doubled)}")
    return tuple(names)


def _count_of_splits(parts: dict[str, tuple[DetectionItem, ...]], report: DetectionReport) -> None:
    """Count pictures of training that are also tested on, and the boxes of a split that has crowds alone."""
    trained = {item.key for item in parts["train"]}
    for item in (*parts["val"], *parts["test"]) if trained else ():
        if item.key in trained:
            report.add("shared_pictures", item.key)
    for split, items in parts.items():
        if any(len(item) for item in items) and all(item.iscrowd.all() for item in items):
            for item in items:
                for _ in range(len(item)):
                    report.add("crowds", f"{split}: image {item.image_id}")


def make_detection_data(
    name: str,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    splits: dict[str, Iterable[DetectionItem]],
    report: DetectionReport,
    caption_prompts: Sequence[CaptionPrompt] = (),
    frequencies: Sequence[str] = (),
) -> DetectionData:
    """Put together what a reader found; warn with the report if annotations were changed or left out.

    Raises:
        ClassNamesError: class names blank or doubled, or caption prompts of another number.
        DataError: no picture in any split, or boxes of which none can be used.
    """
    names = check_class_names(class_names, name)
    if caption_prompts and len(caption_prompts) != len(names):
        raise ClassNamesError(f"{name}: {len(names)} classes need as many caption prompts, got {len(caption_prompts)}")
    parts = {split: tuple(splits.get(split, ())) for split in SPLITS}
    if not any(parts.values()):
        raise DataError(f"{name}: no pictures found in any split")
    if report.all_dropped():
        raise DataError(f"{name}: none of its boxes can be used: {'; '.join(report.lines())}; correct them")
    if names:
        _count_of_splits(parts, report)
    read: dict[str, str] = {}
    for one in names:
        if (other := read.setdefault(" ".join(plain_name(one).casefold().split()), one)) != one:
            report.add("like_names", f"{other!r} and {one!r}")
    report.warn(name)
    return DetectionData(
        name,
        names,
        tuple(category_ids),
        **parts,
        caption_prompts=tuple(caption_prompts),
        frequencies=tuple(frequencies),
        report=report,
    )
