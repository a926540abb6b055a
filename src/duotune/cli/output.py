"""What commands print: aligned tables, numbers with units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Sequence[object]], header: Sequence[str] | None = None, indent: int = 0) -> str:
    """Rows as aligned columns; columns whose every cell is a number are flushed right."""
    cells = [[str(cell) for cell in row] for row in rows]
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
