"""Values against the fields of a dataclass: names that it does not have, types that do not fit."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any

from .errors import ConfigError, shown


def misfits(kind: type, values: Mapping[str, Any], what: str) -> Iterator[str]:
    """One sentence per entry of `values` that is no field of the dataclass `kind`, or of another type than it says.

    Args:
        what: what an entry is called ("recipe key").
    """
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            listing = f" (known: {', '.join(sorted(known)) or 'none'})" if len(known) < 40 else ""
            yield f"unknown {what} {shown(name, 60)}{hint}{listing}"
        elif not fits(value, hints[name]):
            plain = isinstance(hints[name], type) and not typing.get_args(hints[name])
            yield f"{name} must be {hints[name].__name__ if plain else hints[name]}, not {shown(value, 60)}"


def fits(value: Any, kind: Any) -> bool:
    """Is `value` of the annotated type `kind`? An int is a float too, a tuple is a list too, a bool is no number."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(fits(v, a) for a in arguments for v in value)
    if origin is dict:
        return isinstance(value, dict)
    if arguments:
        return any(fits(value, a) for a in arguments)  # "str | None"
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return kind is Any or isinstance(value, kind)


def check_whole(least: int, **values: Any) -> None:
    """Raises ConfigError if one of the values is no whole number, or below `least`; names them all."""
    found = []
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            found.append(f"{name} must be a whole number, not {shown(value, 60)}")
        elif value < least:
            found.append(f"{name} must be at least {least}, not {value}")
    if found:
        raise ConfigError(*found)


__all__ = ["check_whole", "fits", "misfits"]
