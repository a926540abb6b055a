"""Few-shot curves as SVG: one panel per task, accuracy over shots, a line per method; text alone, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, log2

COLOURS = {
    "zero_shot": "#868e96",
    "linear_probe": "#c92a2a",
    "coop": "#e8590c",
    "vpt": "#2b8a3e",
    "vlp": "#ae3ec9",
    "dpt": "#1c4fd6",
}
WIDTH, HEIGHT = 250, 190  # of a panel, with its margins
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 24, 30
ENTRY, ENTRY_HEIGHT = 80, 14  # of the legend


@dataclass
class Panel:
    """Curves of one task.

    Attributes:
        title: above it.
        zero_shot: accuracy in percent, drawn as a dashed line; None if it was not measured.
        curves: method -> [(shots, mean, standard deviation)], by shots; a method may lack some.
    """

    title: str
    zero_shot: float | None = None
    curves: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)


def draw(panels: Sequence[Panel], shots: Sequence[int], columns: int = 3, scale: float = 1.0) -> str:
    """The picture as an SVG file's text. `scale`: size of a panel."""
    columns = min(columns, len(panels))
    methods = [m for m in COLOURS if any(m in p.curves or (m == "zero_shot" and p.zero_shot) for p in panels)]
    width = columns * WIDTH
    in_row = width // ENTRY
    begin = 10 + ENTRY_HEIGHT * ceil(len(methods) / in_row)  # the panels' top
    height = begin + ceil(len(panels) / columns) * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width * scale:g}" '
        f'height="{height * scale:g}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, method in enumerate(methods):
        x, y = 8 + i % in_row * ENTRY, 14 + i // in_row * ENTRY_HEIGHT
        dash = ' stroke-dasharray="4 3"' * (method == "zero_shot")
        parts.append(f'<path d="M{x} {y}h14" stroke="{COLOURS[method]}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{x + 17}" y="{y + 3.5}">{method}</text>')
    for i, panel in enumerate(panels):
        x, y = i % columns * WIDTH, begin + i // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, shots), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, shots: Sequence[int]) -> list[str]:
    points = [(mean - spread, mean + spread) for curve in panel.curves.values() for _, mean, spread in curve]
    points += [(panel.zero_shot, panel.zero_shot)] if panel.zero_shot is not None else []
    low = max(0, 10 * floor(min((a for a, _ in points), default=0) / 10))
    high = min(100, max(low + 10, 10 * ceil(max((b for _, b in points), default=100) / 10)))
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = lambda n: LEFT + 8 + (right - LEFT - 16) * log2(n / shots[0]) / log2(shots[-1] / shots[0])
    down = lambda value: bottom - (bottom - TOP) * (value - low) / (high - low)
    parts = [
        f'<text x="{(LEFT + right) / 2}" y="14" text-anchor="middle" font-weight="bold">{escape(panel.title)}</text>'
    ]
    for value in range(low, high + 1, 10 if high - low <= 50 else 20):
        parts.append(f'<path d="M{LEFT} {down(value):.1f}H{right}" stroke="#dee2e6"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{down(value) + 3.5:.1f}" text-anchor="end">{value}</text>')
    for count in shots:
        parts.append(f'<text x="{across(count):.1f}" y="{bottom + 12}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{bottom + 24}" text-anchor="middle">shots</text>')
    if panel.zero_shot is not None:
        y = down(panel.zero_shot)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}H{right}" stroke="{COLOURS["zero_shot"]}" stroke-width="1.6" '
            'stroke-dasharray="4 3"/>'
        )
    for method, curve in panel.curves.items():
        colour = COLOURS[method]
        line = " ".join(f"{across(n):.1f},{down(mean):.1f}" for n, mean, _ in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        for n, mean, spread in curve:
            x = across(n)
            if spread:
                parts.append(
                    f'<path d="M{x:.1f} {down(mean + spread):.1f}V{down(mean - spread):.1f}" stroke="{colour}"/>'
                )
            parts.append(f'<circle cx="{x:.1f}" cy="{down(mean):.1f}" r="2.2" fill="{colour}"/>')
    return parts
