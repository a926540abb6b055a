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
    "orphaned": "annotations named a picture that the file does not list and were dropped",
    "doubled_ids": "annotations had an id that another one has; all were kept",
    "missing_images": "pictures were listed but absent and were left out, with their boxes",
    "unseen_phrases": "phrases had no box in the picture and are no class of its caption",
    "dummy_categories": "categories were only the heading of the others and were left out",
    "empty_images": "pictures have no boxes; they are kept, as pictures of nothing",
}
HARMLESS = frozenset({"unseen_phrases", "dummy_categories", "empty_images"})


@dataclass
class DetectionReport:
    """Counts of what readers met.

    Attributes:
        images, boxes: that were kept.
        counts: kind (a key of `KINDS`) -> number.
        examples: kind -> where the first few are.
    """

    MAX_EXAMPLES = 3

    images: int = 0
    boxes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

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

    def warn(self, name: str) -> None:
        """One warning for all faults of a data set; none if there are none."""
        if self.faults:
            warnings.warn(f"{name}: " + "; ".join(self.lines()), stacklevel=3)

    def lines(self) -> list[str]:
        """One line per kind of fault; none if there are none."""
        return self._lines(self.faults)

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
        return "\n".join([f"{self.images} images, {self.boxes} boxes", *self._lines(self.counts)])
