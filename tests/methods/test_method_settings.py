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
