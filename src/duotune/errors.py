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
        └── ProcessLostError      another process of the run has ended

A message says what was expected, what came, and what to do. It is one printable line of at most `MAX_MESSAGE`
characters (each fault, where there are several), whatever it quotes. The command line prints it
and exits with a non-zero status. What came is quoted by `shown(value)`, another library's words by
`because(error)`: short, printable, in one line.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

MAX_MESSAGE = 1_000  # characters; what is longer loses its middle
MAX_SHOWN = 200  # characters of a quoted value
MAX_WORD = 300  # characters without a blank between them; the path of a file is one


def one_line(text: str, limit: int) -> str:
    """`text` in one line that every terminal prints: white space is one blank, control characters and halves of
    characters are written as escapes, and of more than `limit` characters the middle is left out."""
    half = limit // 2
    if len(text) > 8 * limit:
        text = f"{text[: 4 * limit]} … {text[-4 * limit :]}"  # what follows need not read gigabytes
    text = " ".join(word if len(word) <= MAX_WORD else f"{word[:200]}…{word[-60:]}" for word in text.split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
    return text if len(text) <= limit else f"{text[: limit - half].rstrip()} … {text[-half:].lstrip()}"


class _Short(reprlib.Repr):
    """repr() of the beginning alone: the whole may be gigabytes, or a whole number that Python refuses to print."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = MAX_SHOWN
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 8
        self.maxlevel = 4

    def repr_str(self, x: str, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else repr(x[: self.maxstring]) + "…"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= self.maxstring else repr(x[: self.maxstring]) + "…"

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() < 256 else f"a whole number of about {int(x.bit_length() * 0.30103)} digits"


def shown(value: Any, limit: int = MAX_SHOWN) -> str:
    """`value` as an error quotes it: its repr, cut to about `limit` characters, in one printable line."""
    return one_line(_Short().repr(value), limit)


def because(error: BaseException, limit: int = MAX_SHOWN) -> str:
    """What another library says of a failure, cut to about `limit` characters, in one printable line."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return one_line(error.strerror, limit)
    if isinstance(error, KeyError) and error.args:
        return one_line(f"{name}: {shown(error.args[0])}", limit)
    return one_line(next((line for line in str(error).splitlines() if line.strip()), name), limit)


class DuotuneError(Exception):
    """Base of all errors raised on purpose. `str()` of it is one printable line."""

    def __str__(self) -> str:
        text = super().__str__()
        if text.startswith("Caught ") and " in DataLoader worker process" in text[:200]:
            # torch raises a worker's error again with its traceback as the text: the last line is what it said
            text = text.rstrip().rpartition("\n")[2].partition(": ")[2] or text
        return one_line(text, MAX_MESSAGE)


class UnknownNameError(DuotuneError, KeyError):
    """A name is in no table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = difflib.get_close_matches(str(name)[:MAX_SHOWN], self.known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = self.known
        if sum(map(len, listed)) > MAX_SHOWN:  # the nearest, in the order of the table
            nearest = difflib.get_close_matches(str(name)[:MAX_SHOWN], self.known, n=8, cutoff=0.0)
            listed = [*(known for known in self.known if known in nearest), f"{len(self.known) - len(nearest)} more"]
        super().__init__(f"unknown {kind} {shown(name, 80)}{hint} (known: {', '.join(listed)})")

    def __str__(self) -> str:  # KeyError would print the repr
        return one_line(self.args[0], MAX_MESSAGE)

    def __reduce__(self):
        return type(self), (self.kind, self.name, self.known)


class ConfigError(DuotuneError, ValueError):
    """One or more settings do not fit; `faults` lists them all."""

    def __init__(self, *faults: str):
        self.faults = faults
        super().__init__("; ".join(one_line(fault, MAX_MESSAGE) for fault in faults))

    def __str__(self) -> str:  # all faults at once are longer
        return one_line(self.args[0], 4 * MAX_MESSAGE)

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


class ProcessLostError(TrainingError):
    """Another process of the run has ended, so that this one cannot go on."""
