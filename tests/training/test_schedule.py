"""Rates per epoch against an independent account of the authors' framework, and the optimizer's groups."""

import pytest
import torch
from torch import nn

from duotune import attach
from duotune.errors import ConfigError
from duotune.methods.base import ParamGroup
from duotune.training.schedule import epoch_schedule, learning_rate, optimizer_groups


def rates_by_stepping(lr: float, warmup_epochs: int, warmup_lr: float, num_epochs: int) -> list[float]:
    """What Dassl's constant warm-up with a cosine successor sets, by stepping torch's own cosine.

    Source of the behaviour: github.com/KaiyangZhou/Dassl.pytorch, dassl/optim/lr_scheduler.py: the successor is built
    at the base rate, is not stepped while warming up, and is stepped once after every later epoch.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(num_epochs))
    rates = []
    for epoch in range(num_epochs):
        rates.append(warmup_lr if epoch < warmup_epochs else optimizer.param_groups[0]["lr"])
        optimizer.step()
        if epoch >= warmup_epochs:
            cosine.step()
    return rates


@pytest.mark.parametrize("warmup_epochs", [0, 1, 10])
@pytest.mark.parametrize("num_epochs", [12, 60])
def test_rates_follow_the_authors_framework(warmup_epochs, num_epochs):
    group = ParamGroup("text", [], 0.002, warmup_epochs, 1e-5)
    ours = [learning_rate(group, e, num_epochs) for e in range(num_epochs)]
    assert ours == pytest.approx(rates_by_stepping(0.002, warmup_epochs, 1e-5, num_epochs), rel=1e-9, abs=1e-15)


def test_known_values():
    group = ParamGroup("visual", [], 0.01, 10, 1e-5)
    assert [learning_rate(group, e, 60) for e in (0, 9)] == [1e-5, 1e-5]
    assert learning_rate(group, 10, 60) == 0.01  # the cosine starts at its top when the warm-up ends
    assert learning_rate(group, 40, 60) == pytest.approx(0.005)  # half its period later
    assert learning_rate(group, 59, 60) > 6e-4  # so it does not reach zero


def test_scheduler_changes_rates_between_epochs_alone():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    groups = [ParamGroup("a", [a], 0.1, 1), ParamGroup("b", [b], 0.3, 2)]
    optimizer = torch.optim.SGD([{"params": g.params, "lr": g.lr} for g in groups], lr=1.0)
    schedule = epoch_schedule(optimizer, groups, num_epochs=4, steps_per_epoch=3)
    for step in range(12):
        expected = [learning_rate(g, step // 3, 4) for g in groups]
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        schedule.step()


def test_groups_hold_every_trainable_parameter_once(tiny_clip):
    model = attach(tiny_clip, "dpt", ["cat", "dog"])
    groups = optimizer_groups(model.method.param_groups(), model, weight_decay=5e-4)
    assert [g["name"] for g in groups] == ["text", "visual", "class_aware"]
    assert [g["lr"] for g in groups] == [0.002, 0.01, 0.01]
    assert {g["weight_decay"] for g in groups} == {5e-4}
    assert sum(p.numel() for g in groups for p in g["params"]) == model.num_trainable_parameters()


def test_a_forgotten_doubled_or_foreign_parameter_is_an_error(tiny_clip):
    model = attach(tiny_clip, "vlp", ["cat", "dog"])
    text, visual = model.method.param_groups()
    with pytest.raises(ConfigError, match="leaves out the trainable parameters method.visual"):
        optimizer_groups([text], model, 0.0)
    with pytest.raises(ConfigError, match="twice"):
        optimizer_groups([text, visual, text], model, 0.0)
    with pytest.raises(ConfigError, match="frozen or no part"):
        optimizer_groups([text, visual, ParamGroup("x", [tiny_clip.model.logit_scale], 0.1)], model, 0.0)
