"""Train a method from a recipe, from options, or from both (an option beats the recipe, the recipe beats the default).

    duotune train --method dpt --backbone openai/clip-vit-base-patch16 --data my_pictures --out runs/mine
    duotune train dpt --data oxford_pets --root DATASETS --seed 2 --set num_candidates=5 --out runs/pets
    duotune train --method sdpt --backbone GLIP_FOLDER --data coco_folder --out runs/boxes
    duotune train --out runs/mine --resume
    torchrun --nproc_per_node 2 -m duotune train tiny_coop --out runs/two

Writes into --out: the artifact (prompt.safetensors, prompt.json), metrics.json, recipe.yaml (all values that were
used) and checkpoints/.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..endings import current
from ..errors import ConfigError, DataError
from ..processes import finish, start
from ..recipes import Recipe, load_recipe, parse_assignments, read_values
from ..recipes.claim import CHECKPOINTS, WRITTEN, check_folder
from ..training import last_checkpoint
from .options import add_options, given, option, quiet
from .output import size, table

HELP = "train a method and write its artifact"


@dataclass(kw_only=True)
class Options:
    recipe_file: str | None = option(
        None, help="shipped recipe (see `duotune list recipes`) or YAML file", positional=True, metavar="RECIPE"
    )
    out: str = option(help="folder to write into", metavar="FOLDER")
    resume: bool = option(False, help="go on from the last checkpoint in --out")
    overwrite: bool = option(False, help="start anew in an --out that holds a run already")
    report: bool = option(False, help="also write report.html: curves, some predictions, every class")
    device: str | None = option(None, help="cpu, cuda, ...; CUDA if there is one", metavar="NAME")
    set: list[str] = option([], help="a setting of the method, may be repeated", metavar="NAME=VALUE")
    training: list[str] = option(
        [],
        help="a further field of PromptTrainingArguments (detectors: DetectionTrainingArguments), may be repeated",
        metavar="NAME=VALUE",
    )
    changes: dict = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, Options)
    add_options(parser.add_argument_group("experiment"), Recipe)


def read(namespace: argparse.Namespace) -> Options:
    return Options(**given(namespace, Options), changes=given(namespace, Recipe))


def run(options: Options) -> int:
    processes = start(parse_assignments(options.training, "--training")[0])
    with processes.together():
        if processes.first and options.out.strip():  # before anything heavy; an empty one is told with other faults
            check_folder(options.out, options.resume, options.overwrite)
        recipe = merge(options)
    before = _checkpoint(options) if options.overwrite else None
    current().hint = lambda: _how_to_go_on(options, before)
    quiet(warn=processes.first)
    from ..artifacts import describe
    from ..recipes.running import report_run, run_recipe
    from ..report import DetectionRun

    out = Path(options.out)
    outcome = run_recipe(
        recipe,
        out,
        resume=options.resume,
        overwrite=options.overwrite,
        device=options.device,
        progress=sys.stderr.isatty(),
        say=lambda line: print(line, flush=True),
    )
    finish()
    if not processes.first:
        return 0
    row = outcome.summary()
    if options.report:
        report_run(out / "report.html", outcome)
    if isinstance(row, DetectionRun):
        scores = {"AP (%)": row.ap, "AP50 (%)": row.ap50}
    else:
        scores = {"accuracy (%)": row.accuracy if outcome.result else None}
    shown = ["-" if value is None else f"{value:.2f}" for value in scores.values()]
    cells = [row.method, *shown, f"{row.trainable_parameters:,}", size(row.artifact_bytes)]
    print()
    print(table([cells], ["method", *scores, "trainable parameters", "artifact"]))
    if note := describe(out).training_only:
        print(f"\n{row.method} trained {note}")
    print(f"\nwrote {options.out}; use it: duotune predict {options.out} IMAGES")
    return 0


def _checkpoint(options: Options) -> tuple[str, float] | None:
    """The last checkpoint in --out and when it was made."""
    last = last_checkpoint(Path(options.out) / CHECKPOINTS)
    return (last, Path(last).stat().st_mtime) if last else None


def _how_to_go_on(options: Options, before: tuple[str, float] | None) -> str:
    last = _checkpoint(options)
    if last is None:
        return "there is no checkpoint yet, run the command again"
    if last == before:
        return f"the run that {options.out} holds is untouched, run the command again to replace it"
    return f"`duotune train --resume --out {shlex.quote(options.out)}` goes on"


def _said(source: str) -> Sequence[str]:
    """The keys of a recipe that cannot be used; of one that cannot be read those that it has to have."""
    try:
        return list(read_values(source))
    except ConfigError:
        return "backbone", "data"


def merge(options: Options) -> Recipe:
    """The recipe to run: option > recipe file > default. Raises ConfigError with every fault at once."""
    source = options.recipe_file
    written = Path(options.out) / WRITTEN
    if options.resume and source is None:
        if not written.is_file():
            raise DataError(f"nothing to resume: {written} does not exist; leave out --resume to start a run there")
        source = str(written)
    faults: list[str] = [] if options.out.strip() else ["--out is empty; give a folder to write into"]
    recipe = Recipe()
    said: Sequence[str] = ()
    try:
        recipe = load_recipe(source) if source else recipe
    except ConfigError as error:
        faults += error.faults
        said = _said(source)
    changes = dict(options.changes)
    for name, assignments in {"settings": options.set, "training": options.training}.items():
        changes[name], wrong = parse_assignments(assignments, "--set" if name == "settings" else "--training")
        faults += wrong
    recipe = recipe.replace(**changes)
    faults += recipe.faults(said)
    if faults:
        raise ConfigError(*faults)
    return recipe
