"""What commands print: aligned tables, numbers with units, JSON; on terminals and pipes of any encoding."""

from __future__ import annotations

import codecs
import re
import sys
from collections.abc import Mapping, Sequence

from ..errors import DataError


def _escaped(text: str) -> str:
    """Every character as JSON escapes it: "\\u732b", two halves beyond 16 bits."""
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _escape_unprintable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _escaped(error.object[error.start : error.end]), error.end


codecs.register_error("duotune.escape", _escape_unprintable)


def print_anything() -> None:
    """From now on standard output and error show what their encoding lacks (other scripts in a console of Latin-1, a
    file name that is no UTF-8) by its number, as JSON has it, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="duotune.escape")


def print_json(text: str) -> None:
    """Print JSON. Where standard output is not UTF-8 it is ASCII alone, which every reader of JSON understands."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        utf8 = codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        utf8 = False
    print(text if utf8 else re.sub(r"[^\x00-\x7f]+", lambda found: _escaped(found[0]), text))


def tell_broken(errors: Sequence[str | None], done: str) -> None:
    """Raises DataError if any image has an error: how many, the first one's, and that the others are `done`."""
    broken = [error for error in errors if error is not None]
    if not broken:
        return
    good = len(errors) - len(broken)
    count = f"{len(broken)} of {len(errors)} images cannot be read: " if len(errors) > 1 else ""
    more = f" ({len(broken) - 1} more cannot be read)" if len(broken) > 1 else ""
    raise DataError(f"{count}{broken[0]}{more}" + (f"; the other {good} images are {done} above" if good else ""))


def table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None, indent: int = 0) -> str:
    """Rows as aligned columns; columns whose every cell is a number are flushed right."""
    cells = [[_one_line(str(cell)) for cell in row] for row in rows]
    lines = ([list(header)] if header else []) + cells
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(widths))]
    text = []
    for number, line in enumerate(lines):
        parts = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right)]
        text.append((" " * indent + "  ".join(parts)).rstrip())
        if header and number == 0:
            text.append(" " * indent + "  ".join("-" * w for w in widths))
    return "\n".join(text)


def _one_line(cell: str) -> str:
    """The cell without what would move the cursor: control characters in file names are shown by their numbers."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: _escaped(found[0]), cell)


def aligned(about: Mapping[str, object]) -> str:
    """Lines "key:      value" with the values below each other."""
    return "\n".join(f"{key + ':':<10}{value}" for key, value in about.items())


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell[0] in "+-.0123456789"


def size(num_bytes: int) -> str:
    """12345 -> "12.3 kB"."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    value, unit = num_bytes / 1000, "kB"
    if value >= 1000:
        value, unit = value / 1000, "MB"
    return f"{value:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """ "1 shot", "4 shots"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
