"""The comparisons that other tests trust: what counts as the same, and what does not."""

from __future__ import annotations

import pytest
import torch

from closeness import all_close, close, same_boxes

BOXES = {
    "boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 20, 20], [1, 1, 4, 4]]),
    "scores": torch.tensor([0.9, 0.5, 0.5]),
    "labels": torch.tensor([1, 0, 2]),
}


def changed(order=(0, 1, 2), **tensors):
    return {name: tensors.get(name, value)[list(order)] for name, value in BOXES.items()}


def test_rounding_is_close_and_half_precision_is_not():
    x = torch.linspace(-3, 3, 500)
    assert close(x + 1e-6, x) and not close(x.half().float(), x)
    assert not close(x, x.double()) and not close(x[None], x) and not close(x[1:], x[:-1])


def test_what_is_not_finite_stands_in_the_same_places():
    x = torch.tensor([1.0, float("-inf"), 2.0])
    assert close(x, x.clone()) and not close(x, torch.tensor([1.0, 3.0, 2.0]))
    assert not close(torch.tensor([1.0, float("nan"), 2.0]), torch.tensor([1.0, 2.0, 2.0]))


def test_whole_numbers_are_equal_or_not():
    assert close(torch.arange(3), torch.arange(3)) and not close(torch.arange(3), torch.tensor([0, 1, 3]))


def test_names_and_number_count():
    x = torch.ones(2)
    assert all_close({"a": x}, {"a": x}) and not all_close({"a": x}, {"b": x}) and not all_close([x], [x, x])


def test_ties_may_stand_in_either_order():
    assert same_boxes(changed((0, 2, 1)), BOXES) and same_boxes(BOXES, BOXES)


@pytest.mark.parametrize(
    "other",
    [
        changed(labels=torch.tensor([0, 0, 2])),
        changed(scores=torch.tensor([0.9, 0.6, 0.5])),
        changed(boxes=BOXES["boxes"] + torch.tensor([[0.1], [0], [0]])),
        changed((0, 1)),
    ],
    ids=["label", "score", "box", "number"],
)
def test_other_detections_are_not_the_same(other):
    assert not same_boxes(other, BOXES) and not same_boxes(BOXES, other)


def test_only_the_last_score_may_be_cut_off_differently():
    other = {**BOXES, "boxes": torch.cat([BOXES["boxes"][:2], torch.tensor([[7.0, 7, 9, 9]])])}
    assert same_boxes(other, BOXES)
    assert not same_boxes({**BOXES, "boxes": torch.cat([torch.tensor([[7.0, 7, 9, 9]]), BOXES["boxes"][1:]])}, BOXES)
