"""Ports decide which methods go with which backbones; the others are refused before a weight is read."""

from __future__ import annotations

import re

import pytest
import torch
from subjects import CASES, FOLDERS, ILLEGAL, KINDS, OUTSIDE

from duotune import attach, list_methods
from duotune.backbones import BACKBONES
from duotune.backbones.base import Backbone, Port
from duotune.errors import PortError, UnknownNameError
from duotune.methods import DETECTION_METHODS, METHODS, methods_named


def test_every_registered_method_and_backbone_is_held_to_the_contract():
    assert len(CASES) > 20 and len(ILLEGAL) > 5
    kinds = {table.get(name) for table in (METHODS, DETECTION_METHODS) for name in table}
    assert len(kinds) >= 12 and {case.kind for case in CASES} == kinds | set(OUTSIDE.values())
    assert {FOLDERS[case.folder].backbone for case in CASES} == set(BACKBONES)
    assert len({str(case) for case in CASES}) == len(CASES), "two classes of one name fit the same backbone"
    assert {case.method for case in CASES} == set(list_methods())
    assert list(OUTSIDE) == ["task_residual"] and any(case.method in OUTSIDE for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_ports_choose_the_class(backbones, case):
    assert type(attach(backbones[case.folder], case.method, ["cat", "dog"]).method) is case.kind


@pytest.mark.parametrize("folder, method", ILLEGAL, ids=[f"{folder}-{method}" for folder, method in ILLEGAL])
def test_missing_ports_are_told_before_weights_load(folders, backbones, tmp_path, folder, method):
    (tmp_path / "config.json").write_bytes((folders[folder] / "config.json").read_bytes())
    ports = FOLDERS[folder].adapter.ports
    for backbone in (str(tmp_path), backbones[folder]):  # there are no weights in tmp_path
        with pytest.raises(PortError) as caught:
            attach(backbone, method, ["cat", "dog"])
        told = re.fullmatch(rf"{method} needs (.+); .+ offers (.+); try (.+)", str(caught.value))
        needs, offers, able = told.groups()
        missing = [sorted(str(p) for p in kind.requires - ports) for kind in methods_named(method)]
        assert needs.split(", ") in missing
        assert offers.split(", ") == sorted(str(p) for p in ports)
        fitting = {FOLDERS[case.folder].backbone for case in CASES if case.method == method}
        assert set(able.partition(", such as ")[0].split(" or ")) == fitting


@pytest.mark.parametrize("name, kind", KINDS, ids=[f"{name}-{kind.__name__}" for name, kind in KINDS])
def test_a_backbone_without_ports_fits_no_method(name, kind):
    class Mute(Backbone):
        ports = frozenset({Port.TEXT_TOWER} - kind.requires)

    with pytest.raises(PortError, match=f"^{name} needs .*; mute offers .*; try "):
        attach(Mute("mute", torch.nn.Linear(1, 1)), name, ["cat"])


def test_a_misspelt_method_is_told_before_anything_else(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'sdpt'"):
        attach(str(tmp_path), "sdptt", ["cat"])
    with pytest.raises(UnknownNameError, match="did you mean 'coop'"):
        METHODS.get("coopp")
