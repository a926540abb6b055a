"""Few-shot curves as SVG: one panel per task, accuracy over shots, a line per method."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib
from matplotlib.figure import Figure

COLOURS = {
    "zero_shot": "#868e96",
    "linear_probe": "#c92a2a",
    "coop": "#e8590c",
    "vpt": "#2b8a3e",
    "vlp": "#ae3ec9",
    "dpt": "#1c4fd6",
}
PANEL = (3.0, 2.3)  # inches


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
    """The picture as an SVG file's text; `scale`: size of a panel.

    A digest of the values is its description: other versions of matplotlib draw the same values otherwise.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure((columns * PANEL[0] * scale, rows * PANEL[1] * scale + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.remove()
    handles = {}
    for axis, panel in zip(axes, panels):
        axis.set_title(panel.title, fontsize=9)
        axis.set_xscale("log", base=2)
        axis.set_xticks(shots, [str(n) for n in shots])
        axis.set_xlim(shots[0] * 0.85, shots[-1] / 0.85)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=7)
        if panel.zero_shot is not None:
            handles["zero_shot"] = axis.axhline(panel.zero_shot, color=COLOURS["zero_shot"], ls="--", lw=1.2)
        for method, curve in panel.curves.items():
            x, mean, spread = zip(*curve)
            look = dict(color=COLOURS[method], lw=1.2)
            axis.errorbar(x, mean, spread, fmt="none", **look)
            (handles[method],) = axis.plot(x, mean, marker="o", ms=3, gid=f"{panel.title} {method}", **look)
    order = [method for method in COLOURS if method in handles]
    figure.legend([handles[m] for m in order], order, loc="outside upper left", ncols=len(order), fontsize=8)
    figure.supxlabel("shots", fontsize=8)
    figure.supylabel("accuracy, %", fontsize=8)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "duotune", "svg.fonttype": "none"}):
        shown = f"sha256:{hashlib.sha256(repr((list(panels), list(shots))).encode()).hexdigest()[:16]}"
        figure.savefig(text, format="svg", metadata={"Date": None, "Description": shown})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
