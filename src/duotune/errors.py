"""Every error duotune raises on purpose.

    DuotuneError
    ├── UnknownNameError      a name is in no table (says the nearest known one)
    ├── ConfigError           one or more settings do not fit (all faults at once)
    │   └── PortError         a method needs a port the backbone does not have
    ├── DataError             a folder, file, split or image is not as expected
    ├── ClassNamesError       class names are empty, duplicated, or do not fit the text tower
    │   └── CaptionLengthError    a caption of several classes is longer than the model reads
    ├── ArtifactError         an artifact or checkpoint cannot be read or belongs to another backbone
    └── TrainingError         training cannot go on (NaN loss, no space left)

A message says what was expected, what came, and what to do. The command line prints it as one line
and exits with a non-zero status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DuotuneError(Exception):
    """Base of all errors raised on purpose."""


class UnknownNameError(DuotuneError, KeyError):
    """A name is in no table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(str(name), self.known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}{hint} (known: {', '.join(self.known)})")

    def __str__(self) -> str:  # KeyError would print the repr
        return self.args[0]

    def __reduce__(self):
        return type(self), (self.kind, self.name, self.known)


class ConfigError(DuotuneError, ValueError):
    """One or more settings do not fit; `faults` lists them all."""

    def __init__(self, *faults: str):
        self.faults = faults
        super().__init__("; ".join(faults))

    def __reduce__(self):
        return type(self), self.faults


class PortError(ConfigError):
    """A method needs a port that the backbone does not have."""


class DataError(DuotuneError, ValueError):
    """A folder, file, split or image is not as expected."""


class ClassNamesError(DuotuneError, ValueError):
    """Class names are empty, duplicated, or do not fit the text tower."""


class CaptionLengthError(ClassNamesError):
    """A caption of several classes is longer than the model reads; in several captions they may fit."""


class ArtifactError(DuotuneError, ValueError):
    """An artifact or checkpoint cannot be read, or belongs to another backbone."""


class TrainingError(DuotuneError, RuntimeError):
    """Training cannot go on."""
