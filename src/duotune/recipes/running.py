"""Run a recipe: data, model, training, test, artifact. What `duotune train` and the demo do, as one function."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from transformers import PrinterCallback, TrainerCallback

from .. import artifacts
from ..backbones import Backbone, adapter_of, check_device, load_backbone
from ..data import ClassificationData, load_dataset
from ..data.detection import DetectionData, load_detection
from ..data.detection.torch_dataset import check_detection_images
from ..data.images import open_image
from ..data.sampling import spread
from ..data.torch_dataset import check_images
from ..errors import ConfigError, DataError
from ..model import PromptedDetector, PromptedModel, attach, choose_method
from ..processes import Processes, default_device, of_this_run
from ..report import DetectionPart, DetectionRun, Example, MethodRun, write_metrics, write_report
from ..settings import misfits
from ..training import DetectionTrainingArguments, PromptTrainer, PromptTrainingArguments, last_checkpoint
from ..training.fields import why_refused
from ..writing import write_text
from . import Recipe
from .claim import CHECKPOINTS, WRITTEN, check_folder, check_inputs, claimed

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..detection_evaluation import DetectionResult
    from ..evaluation import ClassificationResult

FIXED = {
    "output_dir": "is set by --out",
    "disable_tqdm": "follows the terminal",
    "resume_from_checkpoint": "is set by --resume",
}
"""Training arguments that a recipe cannot set -> why; besides those that do not serve at all, see `training.fields`."""


@dataclass
class Outcome:
    """What a run of a recipe left.

    Attributes:
        recipe: what was run. name: of the method in tables.
        folder: with the artifact, metrics.json, recipe.yaml and checkpoints/.
        model: trained, in eval mode.
        data: shots and test images that were used.
        result: on the test images; None if the data has none.
        seconds: wall time of training and testing.
        curve: logged points of training, see `MethodRun.curve`.
        broken: name of each training image that was skipped -> why.
    """

    recipe: Recipe
    name: str
    folder: Path
    model: PromptedModel
    data: ClassificationData | DetectionData
    result: ClassificationResult | DetectionResult | None
    seconds: float
    curve: list[dict[str, float]] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)

    def summary(self) -> MethodRun | DetectionRun:
        """The run as a row of tables and reports."""
        if isinstance(self.model, PromptedDetector):
            return DetectionRun(
                self.name,
                self.result.ap if self.result is not None else None,
                self.result.ap50 if self.result is not None else None,
                self.model.num_trainable_parameters(),
                artifacts.artifact_bytes(self.folder),
                self.seconds,
                self.curve,
            )
        per_class = {}
        accuracy = float("nan")
        if self.result is not None:
            accuracy = self.result.accuracy
            per_class = {n: a for n, a in zip(self.data.class_names, self.result.per_class) if a is not None}
        return MethodRun(
            self.name,
            accuracy,
            self.model.num_trainable_parameters(),
            artifacts.artifact_bytes(self.folder),
            self.seconds,
            per_class,
            self.curve,
        )


def load_data(recipe: Recipe) -> ClassificationData | DetectionData:
    """The recipe's data set, its classes and shots."""
    if recipe.kind == "detection":
        boxes = load_detection(recipe.data, recipe.root, seed=0).named_as_read()
        return boxes.few_shot(recipe.shots, recipe.seed) if recipe.shots else boxes
    data = load_dataset(recipe.data, recipe.root).subset(recipe.classes)
    if recipe.shots:
        data = data.few_shot(recipe.shots, recipe.seed)
    return dataclasses.replace(data, template=recipe.template) if recipe.template else data


def training_arguments(
    recipe: Recipe, folder: str | Path, progress: bool = True, use_cpu: bool = False
) -> PromptTrainingArguments:
    """The recipe's training arguments. Raises ConfigError with every unknown or unfit one."""
    arguments = DetectionTrainingArguments if recipe.kind == "detection" else PromptTrainingArguments
    values: dict[str, Any] = {
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "views": recipe.views,
        "bf16": recipe.bf16,
        "tf32": recipe.tf32 or None,
        "cache_dir": recipe.cache_dir,
        "output_dir": str(Path(folder) / CHECKPOINTS),
        "disable_tqdm": not progress,
    }
    ours = {"num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size", "num_shots": "shots"}
    ours |= {"shots_seed": "seed"} | {name: name for name in values if name not in (*ours, *FIXED)}
    faults = [f"training argument {n} is set by the recipe key {ours[n]!r}" for n in recipe.training if n in ours]
    refused = {n: why for n in recipe.training if n not in ours and (why := FIXED.get(n) or why_refused(n))}
    faults += [f"training argument {n} {why}" for n, why in refused.items()]
    others = {n: value for n, value in recipe.training.items() if n not in refused}
    if faults := [*faults, *misfits(arguments, others, "training argument")]:
        raise ConfigError(*faults)
    return arguments(**{**values, **({"use_cpu": True} if use_cpu else {}), **recipe.training})


def run_recipe(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    backbone: Backbone | None = None,
    data: ClassificationData | DetectionData | None = None,
    name: str | None = None,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Train, test and write the artifact.

    Nothing is written before data and backbone are known to fit; the artifact appears when training has ended. One
    run at a time writes into a folder. Of several processes (`torchrun`) all train and test, the first writes and
    speaks, and what one of them raises all raise.

    Args:
        folder: to write into.
        resume: go on from the last checkpoint in it. overwrite: start anew in a folder that holds a run.
        backbone, data: already loaded ones, instead of the recipe's; `data` with its shots drawn.
        name: of the method in tables; the method's own if None.
        device: of the recipe's backbone, and so of training, see `load_backbone`.
        progress: show progress bars on standard error.
        say: is told, in a line each, what is about to happen.

    Raises:
        DuotuneError: anything that does not fit. KeyboardInterrupt passes through; checkpoints stay usable.
    """
    on_cpu = device == "cpu" or (backbone is not None and backbone.device.type == "cpu")
    with of_this_run().together():
        recipe.validate()
        arguments = training_arguments(recipe, folder, progress, on_cpu)
    processes, folder = of_this_run(), Path(folder)  # the arguments have made them known to each other
    with contextlib.ExitStack() as held:
        with processes.together():
            if device:
                check_device(device)
            check_inputs(folder, data=recipe.data, root=recipe.root, backbone=recipe.backbone)
            if processes.first:
                held.enter_context(claimed(folder))
                check_folder(folder, resume, overwrite)
        if not processes.first:
            progress, say = False, lambda line: None
        run = recipe, folder, arguments, processes, resume, overwrite
        return _run(*run, backbone, data, name, device, progress, say)


def frozen_dtype(recipe: Recipe, device: str | None) -> str | None:
    """In what precision a recipe's backbone is loaded; None: as stored, float32 on a CPU.

    With bf16 on an accelerator in bfloat16: autocast would cast float32 weights anew in every step. What is learnt is
    float32 all the same; a method that trains a copy of weights has them as stored.
    """
    if not recipe.bf16 or torch.device(device or default_device()).type == "cpu":
        return None
    kind = choose_method(recipe.method, recipe.backbone, adapter_of(recipe.backbone).ports)
    return None if kind.copies_weights else "bfloat16"


def _run(
    recipe: Recipe,
    folder: Path,
    arguments: PromptTrainingArguments,
    processes: Processes,
    resume: bool,
    overwrite: bool,
    backbone: Backbone | None,
    data: ClassificationData | DetectionData | None,
    name: str | None,
    device: str | None,
    progress: bool,
    say: Callable[[str], None],
) -> Outcome:
    curve, broken, trainer = [], {}, None
    with processes.together():
        data, model = _prepared(recipe, arguments, backbone, data, device, say)
        start = time.perf_counter()
        if model.method.param_groups():
            for reason in _check_test_images(data, arguments, processes).values():
                say(f"skipped: {reason}")
        if overwrite and processes.first:  # now that everything fits: a misspelt option does not cost the run before
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        values = _values(recipe) | {"settings": model.method.config.to_dict()}  # its defaults, too
        written = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if model.method.param_groups():
            trainer = PromptTrainer(model, arguments, data)
        elif processes.first:
            artifacts.save(model.eval(), folder)
            write_text(folder / WRITTEN, written)
        last = processes.gather(last_checkpoint(arguments.output_dir) if resume else None)[0]
    if trainer is not None:
        if recipe.shots:
            trainer.drawn = {"num_shots": recipe.shots, "shots_seed": recipe.seed}
        trainer.remove_callback(PrinterCallback)
        trainer.bar.name = name or recipe.method
        for reason in trainer.broken.values():
            say(f"skipped: {reason}")
        for remark in trainer.remarks():
            say(f"note: {remark}")
        trainer.add_callback(_Begin(lambda: write_text(folder / WRITTEN, written)))
        if resume and last is None:
            say(f"note: no complete checkpoint in {arguments.output_dir}; training starts anew")
        trainer.train(resume_from_checkpoint=last)
        trainer.save_artifact(folder)
        curve, broken = list(trainer.state.log_history), dict(trainer.broken)
    with processes.together():
        result = _test(model, data, arguments, progress, processes) if data.test else None
        if note := getattr(result, "note", ""):
            say(f"note: {note}")
        seconds = time.perf_counter() - start
        outcome = Outcome(recipe, name or recipe.method, folder, model, data, result, seconds, curve, broken)
        if processes.first:
            row = outcome.summary()
            write_metrics(folder / "metrics.json", *(([], [row]) if isinstance(row, DetectionRun) else ([row],)))
    return outcome


def _prepared(
    recipe: Recipe,
    arguments: PromptTrainingArguments,
    backbone: Backbone | None,
    data: ClassificationData | DetectionData | None,
    device: str | None,
    say: Callable[[str], None],
) -> tuple[ClassificationData | DetectionData, PromptedModel]:
    """The recipe's data and model, known to fit each other."""
    data = data if data is not None else load_data(recipe)
    if backbone is None:
        own = "cpu" if arguments.use_cpu else None if device == "cuda" else device  # each process its own
        backbone = load_backbone(recipe.backbone, frozen_dtype(recipe, own), own)
    template = data.template if isinstance(data, ClassificationData) else recipe.template or data.templates
    model = attach(backbone, recipe.method, data.class_names, template, config=recipe.settings, seed=recipe.seed)
    if isinstance(data, DetectionData) != isinstance(model, PromptedDetector):
        what = "a detector, which learns from boxes" if isinstance(model, PromptedDetector) else "no detector"
        raise ConfigError(f"{recipe.method} on {backbone.name} is {what}; {data.name} does not fit it")
    if isinstance(data, DetectionData):
        for fault in data.report.lines():
            say(f"data: {fault}")
        if data.train and model.method.param_groups() and not any((~item.iscrowd).any() for item in data.train):
            raise DataError(
                f"{data.name}: no box in any of its {len(data.train)} training pictures; a detector learns from boxes, "
                "so annotate some"
            )
    say(
        f"{recipe.method} on {backbone.name}, {data.name}: {len(data.class_names)} classes, "
        f"{len(data.train)} training, {len(data.val)} validation, {len(data.test)} test images"
    )
    return data, model


def _check_test_images(
    data: ClassificationData | DetectionData, arguments: PromptTrainingArguments, processes: Processes
) -> dict[str, str]:
    """Name of each test image that cannot be read -> why; looked for before training, which would be in vain.

    Raises:
        DataError: more than max_broken_share, or all of them.
    """
    check = check_detection_images if isinstance(data, DetectionData) else check_images
    how = {"workers": arguments.dataloader_num_workers, "max_broken_share": arguments.max_broken_share}
    good, report = check(data.test, **how, processes=processes)
    if data.test and not good:
        raise DataError(f"{data.name}: no test image can be read; first reason: {next(iter(report.broken.values()))}")
    return report.broken


def _test(model, data, arguments, progress, processes) -> ClassificationResult | DetectionResult:
    how = {
        "workers": arguments.dataloader_num_workers,
        "max_broken_share": arguments.max_broken_share,
        "progress": progress,
        "processes": processes,
    }
    if isinstance(model, PromptedDetector):
        from ..detection_evaluation import evaluate_detector

        size = arguments.per_device_eval_batch_size
        return evaluate_detector(model, data, batch_size=size, **how)
    from ..evaluation import evaluate

    return evaluate(model, data.test, **how)


def _values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as YAML holds it: every value that is set."""
    return {key: value for key, value in dataclasses.asdict(recipe).items() if value not in (None, "", {})}


def examples(outcomes: Sequence[Outcome], count: int = 12) -> list[Example]:
    """Up to `count` test pictures spread over the classes, with what every outcome's model says about each."""
    data = outcomes[0].data
    items = spread(data.test, count)
    images = [open_image(item) for item in items]
    said = {outcome.name: outcome.model.classify(images, top_k=1) for outcome in outcomes}
    return [
        Example(
            image,
            data.class_names[item.label],
            {name: (rows[i].names[0], rows[i].probabilities[0]) for name, rows in said.items()},
        )
        for i, (item, image) in enumerate(zip(items, images))
    ]


def scenes(
    outcomes: Sequence[Outcome], count: int = 6, score_threshold: float = 0.3, enlarged: int = 1
) -> list[dict[str, Image]]:
    """Up to `count` test pictures of detectors: title ("truth", then each outcome's name) -> picture with boxes.

    Args:
        score_threshold: 0..1; boxes with a lower score are not drawn.
        enlarged: how many times larger the pictures are drawn than they are.
    """
    from ..data.detection.torch_dataset import open_detection_image
    from ..drawing import draw_boxes
    from ..predictor import Predictor

    data = outcomes[0].data
    items = spread(data.test, count)
    images = [open_detection_image(item) for item in items]

    def drawn(image: Image, boxes: Iterable[Sequence[float]], texts: Sequence[str], labels: Sequence[int]) -> Image:
        large = image.resize((image.width * enlarged, image.height * enlarged))
        return draw_boxes(large, [[side * enlarged for side in box] for box in boxes], texts, labels)

    rows = []
    for image, item in zip(images, items):
        names = [data.class_names[label] for label in item.labels]
        rows.append({"truth": drawn(image, item.boxes.tolist(), names, item.labels.tolist())})
    for outcome in outcomes:
        for row, image, found in zip(rows, images, Predictor(outcome.model).detect(images, score_threshold)):
            row[outcome.name] = drawn(image, found.boxes, found.texts, found.labels)
    return rows


def report_run(path: str | Path, outcome: Outcome) -> Path:
    """Write the page of one run: curves, some predictions, every class."""
    recipe, row = outcome.recipe, outcome.summary()
    about = {"backbone": recipe.backbone, "data": outcome.data.name, "shots": recipe.shots, "seed": recipe.seed}
    title = f"{row.method} on {outcome.data.name}"
    if isinstance(row, DetectionRun):
        pictures = scenes([outcome]) if outcome.data.test else []
        return write_report(path, title, about, [], detection=DetectionPart({}, [row], pictures))
    shown = examples([outcome]) if outcome.data.test else []
    return write_report(path, title, about, [row], shown)


class _Begin(TrainerCallback):
    """Does something before the first step: early enough that a run can be resumed from its folder alone, and after a
    checkpoint to resume from was found to fit, so that a refused one leaves the folder's recipe as it was."""

    def __init__(self, do: Callable[[], Any]):
        self.do = do

    def on_train_begin(self, args, state, control, **_):
        if state.is_world_process_zero:
            self.do()


__all__ = [
    "Outcome",
    "examples",
    "load_data",
    "report_run",
    "run_recipe",
    "scenes",
    "training_arguments",
]
