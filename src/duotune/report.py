"""One experiment on one page: `report.html`, complete in itself, and `metrics.json` for programs.

The page needs no network and no other file: pictures are embedded, curves are inline SVG, there is no script.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .writing import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ("#4c6ef5", "#e8590c", "#2b8a3e", "#ae3ec9", "#c92a2a", "#1098ad", "#868e96")
THUMBNAIL = 144  # pixels, longest side of an embedded picture
ANNOTATED = 256  # likewise, of one with boxes


@dataclass
class MethodRun:
    """What one method did.

    Attributes:
        method: its name.
        accuracy: of the test images, in percent; NaN if there are none (null in `metrics.json`, which must be JSON).
        trainable_parameters: their number.
        artifact_bytes: size of `prompt.safetensors` and `prompt.json` together.
        seconds: wall time of training and testing.
        per_class: class name -> accuracy in percent.
        curve: one dict per logged point with "epoch" and any of "loss", "eval_accuracy", as the trainer logs them.
    """

    method: str
    accuracy: float
    trainable_parameters: int
    artifact_bytes: int
    seconds: float
    per_class: Mapping[str, float] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()

    def metrics(self) -> dict[str, float | int | None]:
        """The numbers of one row of the table, as `metrics.json` holds them."""
        return {
            "accuracy": round(self.accuracy, 2) if math.isfinite(self.accuracy) else None,
            "trainable_parameters": self.trainable_parameters,
            "artifact_bytes": self.artifact_bytes,
            "seconds": round(self.seconds, 2),
        }


@dataclass
class Example:
    """A test picture and what methods say it shows.

    Attributes:
        image: the picture (PIL).
        truth: its class name.
        predictions: method -> (class name, probability in 0..1).
    """

    image: Image
    truth: str
    predictions: Mapping[str, tuple[str, float]]


@dataclass
class DetectionRun:
    """What one method did on a detector.

    Attributes:
        method: its name.
        ap, ap50: of the test pictures, in percent; None if no class has boxes.
        trainable_parameters, artifact_bytes, seconds: as in `MethodRun`.
        curve: one dict per logged point with "epoch" and "loss".
    """

    method: str
    ap: float | None
    ap50: float | None
    trainable_parameters: int
    artifact_bytes: int
    seconds: float
    curve: Sequence[Mapping[str, float]] = ()

    def metrics(self) -> dict[str, float | int | None]:
        """The numbers of one row of the table, as `metrics.json` holds them."""
        rounded = lambda value: None if value is None else round(value, 2)
        return {
            "AP": rounded(self.ap),
            "AP50": rounded(self.ap50),
            "trainable_parameters": self.trainable_parameters,
            "artifact_bytes": self.artifact_bytes,
            "seconds": round(self.seconds, 2),
        }


@dataclass
class DetectionPart:
    """The part of a page that is about a detector.

    Attributes:
        about: what was run, as in `write_report`.
        runs: one row of the table each; the best AP is marked.
        pictures: per test picture {title: the picture (PIL) with boxes drawn}, such as "truth" and the methods.
    """

    about: Mapping[str, Any]
    runs: Sequence[DetectionRun]
    pictures: Sequence[Mapping[str, Image]] = ()


def write_metrics(path: str | Path, runs: Sequence[MethodRun], detection: Sequence[DetectionRun] = ()) -> Path:
    """Write {"classification": {METHOD: {"accuracy", "trainable_parameters", "artifact_bytes", "seconds"}}}.

    With runs on a detector also {"detection": {METHOD: {"AP", "AP50", "trainable_parameters", ...}}}, or only that
    where there are no others.
    """
    metrics = {"classification": {run.method: run.metrics() for run in runs}} if runs or not detection else {}
    if detection:
        metrics["detection"] = {run.method: run.metrics() for run in detection}
    return write_text(path, json.dumps(metrics, indent=2) + "\n")


def write_report(
    path: str | Path,
    title: str,
    about: Mapping[str, Any],
    runs: Sequence[MethodRun],
    examples: Sequence[Example] = (),
    detection: DetectionPart | None = None,
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file; replaced if it exists.
        title: heading.
        about: what was run ("backbone": "tiny", ...), shown as a list under the heading.
        runs: one row of the table each; the best accuracy is marked.
        examples: pictures to show.
        detection: what methods did on a detector.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(resources.files("duotune").joinpath("report.html.j2").read_text("utf-8"))
    best = max((run.accuracy for run in runs), default=None)
    classes = list(dict.fromkeys(name for run in runs for name in run.per_class))
    page = template.render(
        title=title,
        about=dict(about),
        runs=runs,
        best=best,
        classes=classes,
        curves=curves_svg(runs),
        examples=[(_thumbnail(example.image), example) for example in examples],
        detection=detection,
        detection_curves=curves_svg(detection.runs) if detection else "",
        pictures=[{t: _thumbnail(p, ANNOTATED) for t, p in row.items()} for row in detection.pictures]
        if detection
        else [],
    )
    return write_text(path, page)


def curves_svg(runs: Sequence[MethodRun | DetectionRun]) -> str:
    """Training curves as an `<svg>` element: loss over epochs, and validation accuracy where it was measured.

    Empty if no run has a curve.
    """
    panels = [("loss", "training loss"), ("eval_accuracy", "validation accuracy (%)")]
    drawn = [(key, label) for key, label in panels if any(_points(run, key) for run in runs)]
    if not drawn:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "duotune", "font.size": 9}):
        figure = Figure(figsize=(4.6 * len(drawn), 3.1), layout="constrained")
        axes = figure.subplots(1, len(drawn), squeeze=False)[0]
        for (key, label), axis in zip(drawn, axes):
            for number, run in enumerate(runs):
                if points := _points(run, key):
                    colour = COLOURS[number % len(COLOURS)]
                    axis.plot(
                        *zip(*points), color=colour, linewidth=1.6, label=run.method, marker="." * (len(points) < 2)
                    )
            axis.set(xlabel="epoch", ylabel=label)
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
            axis.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _points(run: MethodRun | DetectionRun, key: str) -> list[tuple[float, float]]:
    return [(point["epoch"], point[key]) for point in run.curve if key in point and "epoch" in point]


def _thumbnail(image: Image, longest: int = THUMBNAIL) -> str:
    """The picture as a data URI; small ones are enlarged without smoothing by the page."""
    image = image.convert("RGB")
    image.thumbnail((longest, longest))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


__all__ = [
    "DetectionPart",
    "DetectionRun",
    "Example",
    "MethodRun",
    "curves_svg",
    "write_metrics",
    "write_report",
]
