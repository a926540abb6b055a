"""Settings of every method in the tables: numbers out of their ranges are refused, all of them at once."""

from __future__ import annotations

import dataclasses
import math

import pytest

from duotune.errors import ConfigError
from duotune.methods import DETECTION_METHODS, METHODS

CONFIGS = {f"classify {name}": METHODS.get(name).Config for name in METHODS}
CONFIGS |= {f"detect {name}": DETECTION_METHODS.get(name).Config for name in DETECTION_METHODS}


def numbers(config, kind: type) -> list[str]:
    """Names of the settings whose default is of this type."""
    return [f.name for f in dataclasses.fields(config) if type(f.default) is kind]


def test_the_tables_have_learning_rates():
    assert sum(bool(numbers(config, float)) for config in CONFIGS.values()) >= 9


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_method_takes_its_own_defaults(config):
    assert config.from_dict(config().to_dict()) == config()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_rates_and_weights_are_finite_and_not_negative_and_every_fault_is_told(config, value):
    names = numbers(config, float)
    found = list(config.faults_of(dict.fromkeys(names, value)))
    assert [fault.split()[0] for fault in sorted(found)] == sorted(names)
    assert all(fault.endswith(f"not {value}") for fault in found)
    for name in names:
        with pytest.raises(ConfigError, match=f"^{name} must "):
            config.from_dict({name: value})


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_a_learning_rate_of_zero_is_refused(config):
    rates = [name for name in numbers(config, float) if name.endswith("lr")]
    assert list(config.faults_of(dict.fromkeys(rates, 0))) == [f"{name} must be positive, not 0" for name in rates]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_numbers_of_tokens_and_epochs_are_not_negative(config):
    names = numbers(config, int)
    found = list(config.faults_of(dict.fromkeys(names, -1)))
    assert sorted(fault.split()[0] for fault in found) == sorted(names)


FAULTS = {
    "classify coop": ({"num_context_tokens": 0, "position": "last", "text_lr": 0.0}, 3),
    "classify vpt": ({"num_visual_tokens": 0, "visual_lr": -1.0}, 2),
    "classify vlp": ({"num_context_tokens": 0, "num_visual_tokens": 0}, 2),
    "classify dpt": ({"deep": False, "num_candidates": 0, "class_aware_from": -1, "aux_loss_weight": -0.1}, 4),
    "classify linear_probe": ({"init": "ones", "lr": 0.0}, 2),
    "detect sdpt": ({"num_prototype_tokens": 0, "layers": [1, 1], "visible": "all", "init": "ones", "lr": 0.0}, 5),
    "detect vpt": ({"num_visual_tokens": 0, "visual_lr": 0.0}, 2),
    "detect text_prompt": ({"lr": 0.0}, 1),
    "detect linear_probe": ({"lr": -1.0}, 1),
    "detect full": ({"lr": 0.0, "text_lr": 0.0}, 2),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_config_names_all_its_faults_at_once(name):
    settings, count = FAULTS[name]
    with pytest.raises(ConfigError) as caught:
        CONFIGS[name].from_dict(settings)
    assert len(caught.value.faults) == count


def test_the_faults_are_those_of_every_method_with_settings():
    assert set(FAULTS) == {name for name, config in CONFIGS.items() if dataclasses.fields(config)}


def test_settings_of_another_type_are_told_with_all_other_faults():
    wrong = {"num_context_tokens": "four", "text_lr": None, "class_specific": 1, "position": "up", "colour": "red"}
    with pytest.raises(ConfigError) as caught:
        CONFIGS["classify coop"].from_dict(wrong)
    told = "; ".join(caught.value.faults)
    assert len(caught.value.faults) == 5 and "unknown setting of CoOpConfig 'colour'" in told
    for piece in ("num_context_tokens must be int, not 'four'", "text_lr must be float, not None", "not 'up'"):
        assert piece in told
    assert "class_specific must be bool, not 1" in told
    with pytest.raises(ConfigError, match="layers must be .*, not .1, 'two'."):
        CONFIGS["detect sdpt"].from_dict({"layers": [1, "two"]})
