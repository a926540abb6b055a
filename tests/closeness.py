"""When outputs computed from tensors at other addresses count as the same.

Products of matrices choose their kernel by where their operands lie: on an AMD EPYC, MKL's product with a transposed
matrix, its product with a vector, and attention differ by up to 2e-7 of the largest value when an operand starts at
another place within 64 bytes, and so do models that hold the same weights, one made and one read from a file. Weights,
files and states are therefore compared bit for bit, outputs by these functions: a few layers turn 2e-7 into less than
1e-5 of the largest value, while a weight that was rounded to half precision moves it by 1e-4 and more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ROUNDING = 1e-5
"""Of the largest value of a tensor."""


def close(a: Tensor, b: Tensor, allowed: float = ROUNDING) -> bool:
    """Whether two tensors are of one type and shape and differ by at most `allowed` of the largest value."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point() or not a.numel():
        return torch.equal(a, b)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    finite = b.isfinite()
    a, b = a[finite], b[finite]
    return not a.numel() or ((a - b).abs().max() <= allowed * b.abs().max()).item()


def all_close(a: Sequence[Tensor] | Mapping[str, Tensor], b: Sequence[Tensor] | Mapping[str, Tensor]) -> bool:
    """`close` of every pair; the same names and as many of them."""
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all_close(list(a.values()), [b[name] for name in a])
    return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b))


def same_boxes(found: Mapping, expected: Mapping, scores: float = ROUNDING, pixels: float = 1e-3) -> bool:
    """Whether {"boxes", "scores", "labels"} are the same detections in any order of those whose scores tie.

    Args:
        scores: by how much two scores may differ (0..1); boxes this near each other may stand in either order, and at
            the end of the list either of them may have been cut off.
        pixels: by how much a side of a box may differ.
    """
    as_tensors = lambda row: [torch.as_tensor(row[name]) for name in ("boxes", "scores", "labels")]
    (boxes, ours, labels), (other_boxes, theirs, other_labels) = as_tensors(found), as_tensors(expected)
    if len(ours) != len(theirs):
        return False
    if not len(ours):
        return True
    if ((ours - theirs).abs() > scores).any():  # both are sorted by score
        return False
    same = (
        (labels[:, None] == other_labels)
        & ((ours[:, None] - theirs).abs() <= scores)
        & ((boxes[:, None] - other_boxes).abs().amax(-1) <= pixels)
    )
    cut = theirs.min() + scores
    return bool((same.any(1) | (ours <= cut)).all() and (same.any(0) | (theirs <= cut)).all())
