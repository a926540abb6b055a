"""`duotune evaluate` where the data are pictures with boxes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.base import in_order_of
from ..errors import ConfigError, DuotuneError
from .evaluate import tell_new_classes
from .output import print_json

if TYPE_CHECKING:
    from ..backbones.base import Backbone
    from ..data.detection import DetectionData
    from ..model import PromptedModel
    from .evaluate import Options

CLASSIFIERS_ALONE = ("base_to_new", "ensemble", "cache_dir")


def faults(options: Options) -> list[str]:
    """What does not fit detectors."""
    found = [
        f"--{name.replace('_', '-')} is of classifiers; {options.data} has boxes"
        for name in CLASSIFIERS_ALONE
        if getattr(options, name)
    ]
    if options.classes != "all":
        found.append(f"detectors find all classes; leave out --classes {options.classes}")
    if options.score_threshold is not None and not 0 <= options.score_threshold <= 1:
        found.append(f"--score-threshold must be in 0..1, not {options.score_threshold}")
    if options.max_detections is not None and options.max_detections < 1:
        found.append(f"--max-detections must be at least 1, not {options.max_detections}")
    if options.out and Path(options.out).is_file():
        found.append(
            f"--out {options.out} is a file; of a detector it is a folder, which keeps boxes as they are found"
        )
    return found


def run(options: Options) -> int:
    """Measure AP, of one data set or of each of ODinW's; or the recall of phrases."""
    if found := faults(options):
        raise ConfigError(*found)
    from ..data.detection import ODINW, load_detection
    from ..metrics import OdinwAverage
    from ..recipes.claim import claimed
    from ..writing import write_text

    tasks = ODINW.get(options.data, (options.data,))
    seed = 0 if trained_on(options.artifact, options.data) else None  # what training left for testing
    data = [load_detection(task, options.root, seed).named_as_read() for task in tasks]
    for task in data:
        for fault in task.report.lines():  # the reader's own warning is silenced with those of the libraries
            print(f"data: {task.name}: {fault}" if len(data) > 1 else f"data: {fault}", file=sys.stderr)
    model, results = None, {}
    for task in data:
        model, ordered = _model(options, task, model)
        folder = None
        if options.out:
            folder = Path(options.out) / task.name if len(data) > 1 else Path(options.out)
        if folder is None:
            result = _measure(options, model, ordered, None)
        else:
            with claimed(folder):
                result = _measure(options, model, ordered, folder)
        results[task.name] = result
        for reason in result.broken.values():
            print(f"skipped: {reason}", file=sys.stderr)
        if result.note:
            print(f"note: {result.note}", file=sys.stderr)
        if not options.json:
            print(_shown(options, model, ordered, result), flush=True)
    if len(data) == 1:
        text = result.to_json()
    else:
        average = OdinwAverage.of({name: result.metrics for name, result in results.items()})
        each = {name: json.loads(result.to_json()) for name, result in results.items()}
        text = json.dumps({**json.loads(average.to_json()), "results": each}, indent=2, ensure_ascii=False)
        if options.out:
            write_text(Path(options.out) / "odinw.json", text + "\n")
        if not options.json:
            print(f"\n{average}")
    if options.json:
        print_json(text)
    return 0


def trained_on(artifact: str | None, data: str) -> bool:
    """Whether the run that left an artifact was on these data, as the recipe beside the artifact says."""
    if artifact is None:
        return False
    from ..recipes import load_recipe
    from ..recipes.claim import WRITTEN

    try:
        said, here = Path(load_recipe(Path(artifact) / WRITTEN).data).expanduser(), Path(data).expanduser()
        moved = not said.exists() and said.name == here.name
        return moved or said.resolve() == here.resolve()
    except (DuotuneError, OSError):
        return False


def _measure(options: Options, model: PromptedModel, data: DetectionData, folder: Path | None) -> Any:
    from ..detection_evaluation import evaluate_detector, evaluate_phrases

    measure = evaluate_detector if data.class_names else evaluate_phrases
    wanted = {"score_threshold": options.score_threshold, "max_detections": options.max_detections}
    return measure(
        model,
        data,
        options.split,
        options.batch_size or 1,
        options.workers,
        folder,
        progress=sys.stderr.isatty(),
        **{name: value for name, value in wanted.items() if value is not None},
    )


def _shown(options: Options, model: PromptedModel, data: DetectionData, result: Any) -> str:
    if options.per_class:
        return str(result)
    text = lambda value: "-" if value is None else f"{value:.2f}"
    resumed = f" ({result.resumed} of them found before)" if result.resumed else ""
    if not data.class_names:
        recall = result.metrics
        return (
            f"{model.method_name} on {data.name}: recall@1 {recall.recall_1:.2f}, @5 {recall.recall_5:.2f}, @10 "
            f"{recall.recall_10:.2f} of {recall.num_phrases} phrases in {recall.num_sentences} sentences{resumed}"
        )
    return (
        f"{model.method_name} on {data.name}: AP {text(result.ap)}, AP50 {text(result.ap50)} of "
        f"{result.metrics.num_boxes} boxes in {result.metrics.num_images} images{resumed}"
    )


def _model(options: Options, data: DetectionData, before: PromptedModel | None) -> tuple[PromptedModel, DetectionData]:
    """The model to measure, and the data in the order of its classes; `before` is that of another task."""
    from ..model import PromptedDetector, attach

    template = options.template or data.templates
    if options.method:
        backbone: Backbone | str = before.backbone if before is not None else _backbone(options)
        names = data.class_names or ("object",)  # sentences bring their own phrases
        return attach(backbone, options.method, names, template), data
    from ..artifacts import load

    model = before if before is not None else load(options.artifact, options.backbone, options.device)
    if not isinstance(model, PromptedDetector):
        raise ConfigError(f"{options.artifact} is a classifier, and {data.name} has boxes; give it labelled images")
    if not data.class_names:
        return model, data
    data = in_order_of(model.class_names, data)
    if model.class_names == data.class_names:
        return model, data
    if before is None:  # of several tasks, the first
        tell_new_classes(options.artifact, model.class_names, data)
    return model.set_classes(data.class_names, template), data


def _backbone(options: Options) -> Backbone:
    from ..backbones import load_backbone
    from ..backbones.base import Detector

    backbone = load_backbone(options.backbone, device=options.device)
    if not isinstance(backbone, Detector):
        raise ConfigError(f"{options.backbone} is no detector, and {options.data} has boxes; give it labelled images")
    return backbone
