"""The rows of learnt context and class names against a loop over the classes, and what a step of theirs costs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from duotune import attach
from duotune.methods import METHODS
from duotune.methods.base import Progress

NAMES = ["cat", "red square", "dog", "grey house boat", "flower"]  # one, two and three tokens and more
POSITIONS = ["end", "middle", "front"]


def plain_texts(text, backbone, names) -> list[Tensor]:
    """One class at a time: [SOS], context, name and "." [EOS], each (rows, d), nothing behind the end."""
    tokens, rows = text.context.tokens, []
    half = {"end": tokens.shape[-2], "middle": tokens.shape[-2] // 2, "front": 0}[text.config.position]
    for c, name in enumerate(names):
        context = tokens[c] if tokens.ndim == 3 else tokens
        ids = backbone.tokenize([f"{name}."]).ids
        start, embedded = backbone.embed_tokens(ids)[0].split([1, ids.shape[1] - 1])
        length = backbone.tokenize([name]).ids.shape[1] - 2
        rows.append(torch.cat([start, context[:half], embedded[:length], context[half:], embedded[length:]]))
    return rows


@pytest.mark.parametrize("specific", [False, True], ids=["shared", "class-specific"])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_rows_equal_a_loop_over_the_classes(tiny_clip, position, specific):
    model = attach(tiny_clip, "coop", NAMES, num_context_tokens=5, position=position, class_specific=specific)
    text = model.method.text
    sequence = text.sequence()
    ours = [torch.cat([sequence.shared, own[: end + 1]]) for own, end in zip(sequence.own, sequence.eos.positions)]
    plain = plain_texts(text, tiny_clip, NAMES)
    assert len(ours) == len(plain) and len({len(rows) for rows in plain}) > 2
    for a, b in zip(ours, plain):
        assert torch.equal(a, b)
    gradients = []
    for rows in (ours, plain):
        loss = sum((r * torch.linspace(-1, 1, r.numel()).view_as(r).cos()).sum() * (c + 1) for c, r in enumerate(rows))
        gradients.append(torch.autograd.grad(loss, text.context.tokens)[0])
    assert gradients[1].abs().min() > 0
    # 1e-6: the classes' gradients of a shared context are summed in another order
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("position", POSITIONS)
def test_more_classes_take_no_more_operations(tiny_clip, position):
    counts = []
    for count in (3, 30):
        names = [f"{first} {second}" for first in ("cat", "red square", "dog") for second in range(count // 3)]
        model = attach(tiny_clip, "coop", names, num_context_tokens=4, position=position)
        with Operations() as operations:
            sequence = model.method.text.sequence()
            (sequence.own.sum() + sequence.shared.sum()).backward()
        counts.append(operations.counts)
    assert counts[0] == counts[1] and counts[0].total() > 0


WAITS = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::unique")


@pytest.mark.parametrize("settings", [{}, {"class_specific": True, "position": "middle"}], ids=["shared", "specific"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_asks_no_tensor_for_its_numbers(tiny_clip, monkeypatch, method, settings):
    """What an accelerator would have to be waited for; set up anew classes may ask, a step may not."""
    known = {k: v for k, v in settings.items() if hasattr(METHODS.get(method).Config(), k)}
    model = attach(tiny_clip, method, NAMES, **known).train()
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        asked = lambda *_, name=name: pytest.fail(f"the step calls {name} of a tensor")
        monkeypatch.setattr(Tensor, name, asked)
    with Operations() as operations:
        loss = model(torch.randn(3, 3, 32, 32), labels=torch.tensor([4, 0, 1]), progress=Progress(1, 2))["loss"]
        if loss.requires_grad:
            loss.backward()
    monkeypatch.undo()
    assert operations.counts.total() > 10
    assert not [name for name in operations.counts if name.startswith(WAITS)]
