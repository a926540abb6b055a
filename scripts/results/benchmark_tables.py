"""The tables of docs/benchmarks.md, from the lines that `python -m benchmarks.run` prints."""

from __future__ import annotations

import re

from rows import markdown

PLACE = re.compile(r"(?P<begin><!-- table: (?P<names>[\w, ]+) -->\n).*?(?P<end><!-- end of table -->)", re.S)

KERNELS = re.compile(r"(?P<begin><!-- table of kernels -->\n).*?(?P<end><!-- end of table -->)", re.S)
PARTS = ("step", "step_with_torchvision", "prediction", "prediction_with_torchvision")
COUNTED = ("kernels", "syncs", "copies", "blocking")


def filled(page: str, lines: list[dict]) -> str:
    """The page with every `<!-- table: NAME, NAME -->` ... `<!-- end of table -->` filled from the last line of each name.

    Raises:
        ValueError: no such place, or a line that no place names.
    """
    latest = {line["name"]: line for line in lines}
    shown = [name for match in PLACE.finditer(page) for name in names_of(match)]
    if not shown or set(latest) - set(shown):
        raise ValueError(f"benchmarks.md has places for {shown}, the data lines are {sorted(latest)}")
    return PLACE.sub(lambda m: f"{m['begin']}\n{tables(names_of(m), latest)}\n\n{m['end']}", page)


def kernels_filled(page: str, lines: list[dict]) -> str:
    """The page with `<!-- table of kernels -->` ... `<!-- end of table -->` filled from what `benchmarks.kernels` printed.

    Raises:
        ValueError: no such place.
    """
    if not KERNELS.search(page):
        raise ValueError("benchmarks.md has no place for the table of kernels")
    header = ["name", "what", "kernels", "waits", "copies", "blocking", "commit"]
    rows = [
        [f"`{line['name']}`", part.replace("_", " "), *(f"{line[part][key]:,}" for key in COUNTED), line["commit"]]
        for line in {line["name"]: line for line in lines}.values()
        for part in PARTS
        if part in line
    ]
    return KERNELS.sub(lambda m: f"{m['begin']}\n{markdown(header, rows)}\n\n{m['end']}", page)


def names_of(match: re.Match) -> list[str]:
    return [name.strip() for name in match["names"].split(",")]


def tables(names: list[str], latest: dict[str, dict]) -> str:
    """Times and memory, then what they were measured on; a name without a line is said to be missing."""
    header = ["name", "ours", "plain", "plain / ours", "floor", "ours / floor", "ours, peak", "plain, peak", "commit"]
    where: dict[str, list[str]] = {}
    rows = []
    for name in names:
        line = latest.get(name)
        rows.append([f"`{name}`", *(numbers(line) if line else ["not measured", *[""] * 7])])
        if line:
            where.setdefault(circumstances(line), []).append(f"`{name}` {line['load_at_start']:.1f}")
    said = [f"{text[0].upper()}{text[1:]}. Load at the start: {', '.join(loads)}." for text, loads in where.items()]
    return "\n\n".join([markdown(header, rows), *said])


def numbers(line: dict) -> list[str]:
    if line["plain_s"] is None:
        plain, ratio, peak = "left out: does not fit", "", ""
    else:
        plain, ratio = seconds(line["plain_s"]), f"{line['ratio']:.1f}"
        peak = f"{line['plain_peak_gb']:.2f} GB"
        for key, what in (("plain_same_dtype_s", "same dtype"), ("plain_frozen_s", "frozen")):
            if line.get(key):
                plain += f" ({what}: {seconds(line[key])})"
                ratio += f" ({line[key] / line['ours_s']:.1f})"
    floor = [seconds(line["floor_s"]), f"{line['ours_s'] / line['floor_s']:.1f}"]
    return [seconds(line["ours_s"]), plain, ratio, *floor, f"{line['ours_peak_gb']:.2f} GB", peak, line["commit"]]


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g} s"


def circumstances(line: dict) -> str:
    return (
        f"{line['machine']}, {line['threads']} threads, torch {line['torch']}, transformers {line['transformers']}, "
        f"`--repeats {line['repeats']}`"
    )
