"""Backbones of the contract, loaded once, and the trained model of each case."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from subjects import CASES, FOLDERS, NAMES, OUTSIDE, Case, digest, hooks, inputs, labels, plain_outputs
from torch.optim import SGD, AdamW

from duotune import attach, load_backbone
from duotune.backbones.base import Backbone, Detector
from duotune.methods import METHODS
from duotune.methods.base import Progress
from duotune.model import PromptedModel


@pytest.fixture(autouse=True, scope="module")
def outside_is_registered():
    for name, kind in OUTSIDE.items():
        METHODS.register(name, kind)
    yield
    for name in OUTSIDE:
        del METHODS._table[name]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, make_tiny_clip):
    """name in `FOLDERS` -> a folder with config, weights and tokenizer."""
    place = tmp_path_factory.mktemp("contract")
    return {name: subject.write(place / name, make_tiny_clip) or place / name for name, subject in FOLDERS.items()}


@pytest.fixture(scope="session")
def backbones(folders):
    """name in `FOLDERS` -> a backbone; tests must not change it."""
    return {name: load_backbone(str(folder), device="cpu") for name, folder in folders.items()}


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request) -> Case:
    return request.param


@pytest.fixture
def backbone(backbones, case) -> Backbone:
    return backbones[case.folder]


@dataclass
class Run:
    """Three steps of training, and what was there before."""

    model: PromptedModel
    digest: str
    plain: list[torch.Tensor]
    hooks: int
    start: dict[str, torch.Tensor]
    losses: list[float] = field(default_factory=list)


@pytest.fixture(scope="module")
def run(backbones, case) -> Run:
    """The case's model after three steps at its own rates, on a backbone of its own."""
    backbone = copy.deepcopy(backbones[case.folder])
    before = digest(backbone.model), plain_outputs(backbone), hooks(backbone.model)
    model = attach(backbone, case.method, NAMES).train()
    made = Run(model, *before, {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad})
    adam = isinstance(backbone, Detector)  # the optimiser that rates are meant for; SGD's for more pictures than here
    groups = [{"params": g.params, "lr": g.lr * (1 if adam else 0.1)} for g in model.method.param_groups()]
    optimiser = (AdamW(groups) if adam else SGD(groups, momentum=0.9)) if groups else None
    given, wanted = inputs(backbone), labels(backbone)
    torch.manual_seed(0)  # of the dropout that full fine-tuning has
    for epoch in (0, 30, 30):  # both sides of what a loss may do for the first half of the epochs
        loss = model(**given, labels=wanted, progress=Progress(epoch, 60))["loss"]
        made.losses.append(loss.item())
        if optimiser is not None:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return made
