"""Which drawings pre-training may see. Everything else is kept for the tasks.

Kept back: (1) every drawing of the unseen styles; (2) every drawing of the held-out concepts;
(3) for each object concept drawn in at least six seen styles, two of those drawings.
"""

from __future__ import annotations

import collections

import numpy as np
from packages import BY_STYLE
from rendering import OBJECTS

HELD_CONCEPTS, HELD_DRAWINGS, SEED = 60, 2, 7
COLOUR_STYLES = ("noto", "notov1", "twemoji", "fluent", "fluentflat", "emojione")


def split(records) -> tuple[list[int], set[str], list[int]]:
    """(indices pre-training may see, held-out concepts, indices kept back)"""
    rs = np.random.RandomState(SEED)
    concepts = sorted({r["concept"] for r in records if r["subgroup"] in OBJECTS and not r["concept"].startswith("n:")})
    held = set(rs.choice(concepts, HELD_CONCEPTS, replace=False).tolist())
    drawings = collections.defaultdict(list)
    for i, r in enumerate(records):
        if r["subgroup"] in OBJECTS and r["style"] in COLOUR_STYLES and r["concept"] not in held:
            drawings[r["concept"]].append(i)
    kept = {
        i
        for c in concepts
        if len(drawings[c]) >= 6
        for i in rs.choice(drawings[c], HELD_DRAWINGS, replace=False).tolist()
    }
    back = [i for i, r in enumerate(records) if BY_STYLE[r["style"]].unseen or r["concept"] in held or i in kept]
    seen = sorted(set(range(len(records))) - set(back))
    return seen, held, back
