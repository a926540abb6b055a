"""What readers met in annotation files that was not as it should be, counted, with examples."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field

# kind -> what happened to such annotations. What is no fault is listed behind the empty line.
KINDS = {
    "clipped": "boxes reached outside their picture and were cut at its edge",
    "outside": "boxes lay outside their picture and were dropped",
    "empty": "boxes had no width or no height, or were inverted, and were dropped",
    "not_finite": "boxes held NaN or infinity and were dropped",
    "malformed": "boxes were not four numbers and were dropped",
    "outlines": "boxes could not be used and were taken from the polygons or masks of their objects",
    "corners": "boxes reach out of their picture, yet all would fit as corners [x1, y1, x2, y2]: COCO's boxes are "
    "[x, y, width, height]",
    "doubled_boxes": "boxes stand twice at one place with one class; all were kept",
    "two_classes": "boxes stand at one place with different classes; all were kept",
    "crowds": "boxes, all of a split, are crowds: nothing is learnt from them or measured on them; where they are "
    "single objects, set iscrowd to 0",
    "orphaned": "annotations named a picture that the file does not list and were dropped",
    "doubled_ids": "annotations had an id that another one has; all were kept",
    "missing_images": "pictures were listed but absent and were left out, with their boxes",
    "like_names": "class names differ from another one in capitals or blanks alone; many models read them as the same",
    "doubled_pictures": "pictures are listed under more than one id; each id was kept, with its own boxes",
    "shared_pictures": "pictures of the training split are also in another split; they were kept",
    "sizes": "pictures had no width and height that can be used; those of the files were taken",
    "no_labels": "pictures have no label file; they are kept, as pictures of nothing",
    "unpaired": "label files have no picture of their name and were left out",
    "unlabelled": "pictures had no annotation file and were left out",
    "unseen_phrases": "phrases had no box in the picture and are no class of its caption",
    "dummy_categories": "categories were only the heading of the others and were left out",
    "empty_images": "pictures have no boxes; they are kept, as pictures of nothing",
}
DROPPED = frozenset({"outside", "empty", "not_finite", "malformed"})
HARMLESS = frozenset({"unseen_phrases", "dummy_categories", "empty_images"})


@dataclass
class DetectionReport:
    """Counts of what readers met.

    Attributes:
        images, boxes: that were kept.
        counts: kind (a key of `KINDS`) -> number.
        examples: kind -> where the first few are.
        notes: sentences about the data as a whole, such as how they were divided.
    """

    MAX_EXAMPLES = 3

    images: int = 0
    boxes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, where: str) -> None:
        """Count one more of a kind."""
        if kind not in KINDS:
            raise KeyError(kind)
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < self.MAX_EXAMPLES:
            examples.append(where)

    @property
    def faults(self) -> dict[str, int]:
        """The counts of what should not have been in the files."""
        return {kind: count for kind, count in self.counts.items() if kind not in HARMLESS}

    def all_dropped(self) -> bool:
        """Whether there were boxes, and none could be used."""
        return not self.boxes and not DROPPED.isdisjoint(self.counts)

    def warn(self, name: str) -> None:
        """One warning for all faults of a data set; none if there are none."""
        if self.faults:
            warnings.warn(f"{name}: " + "; ".join(self._lines(self.faults)), stacklevel=3)

    def lines(self) -> list[str]:
        """One line per kind of fault, and the notes."""
        return [*self._lines(self.faults), *self.notes]

    def _lines(self, counts: dict[str, int]) -> list[str]:
        return [
            f"{counts[kind]} {what} ({', '.join(self.examples[kind])}{', ...' if counts[kind] > 3 else ''})"
            for kind, what in KINDS.items()
            if kind in counts
        ]

    def to_json(self) -> str:
        values = {"images": self.images, "boxes": self.boxes, "counts": self.counts, "examples": self.examples}
        return json.dumps(values, indent=2)

    def __str__(self) -> str:
        return "\n".join([f"{self.images} images, {self.boxes} boxes", *self._lines(self.counts), *self.notes])
