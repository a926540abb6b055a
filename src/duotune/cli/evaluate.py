"""Measure an artifact, or the frozen backbone, on the test images of a data set: accuracy, or AP of a detector.

    duotune evaluate runs/mine --data my_pictures
    duotune evaluate runs/base --data oxford_pets --root DATASETS --base-to-new
    duotune evaluate --method zero_shot --backbone openai/clip-vit-base-patch16 --data my_pictures --ensemble
    duotune evaluate runs/boxes --data coco_folder --out runs/boxes/test
    duotune evaluate --method zero_shot --backbone GLIP_FOLDER --data odinw_13 --root DATASETS

The artifact classifies into (or finds) the classes of the data; its own class order is kept if the names are the same.
Of a detector, --out is a folder that keeps boxes as they are found: the same command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import check_files
from ..data.base import images_per_split, in_order_of
from ..errors import ConfigError, DataError
from ..names import differences, first_few
from ..reading import read_json
from ..recipes import CLASSES
from ..recipes.claim import check_writable
from .options import option, quiet
from .output import print_json

if TYPE_CHECKING:
    from ..data import ClassificationData
    from ..data.detection import DetectionData

HELP = "measure accuracy or AP on the test images of a data set"


@dataclass(kw_only=True)
class Options:
    artifact: str | None = option(None, help="folder with prompt.safetensors and prompt.json", positional=True)
    data: str = option(
        help="data set name, image folder, CSV file, saved Hugging Face data set, COCO, YOLO or VOC boxes, odinw_13",
        metavar="NAME|PATH",
    )
    root: str | None = option(None, help="folder that holds the named data sets", metavar="FOLDER")
    classes: str = option("all", help="all classes, the first half (base) or the second (new)", choices=CLASSES)
    base_to_new: bool = option(False, help="of an artifact of the base classes: base, new and their harmonic mean")
    split: str = option("test", help="images to measure on", choices=("train", "val", "test"))
    method: str | None = option(None, help="zero_shot, instead of an artifact", choices=("zero_shot",))
    backbone: str | None = option(None, help="for zero_shot; or where the artifact's backbone is now", metavar="NAME")
    template: str | None = option(None, help="prompt with one {} instead of the data set's own", metavar="TEXT")
    ensemble: bool = option(False, help="zero_shot with all templates of the data set")
    batch_size: int | None = option(
        None,
        help="images per forward pass (default: 64; detectors: 1, as padding images of several sizes moves numbers)",
    )
    workers: int = option(2, help="processes that decode images")
    cache_dir: str | None = option(None, help="folder of the feature cache", metavar="FOLDER")
    device: str | None = option(None, help="cpu, cuda, ...; CUDA if there is one", metavar="NAME")
    per_class: bool = option(False, help="print the accuracy or AP of every class")
    score_threshold: float | None = option(None, help="of a detector's boxes, 0..1; the model's own if left out")
    max_detections: int | None = option(None, help="of a detector's boxes per image; the model's own if left out")
    json: bool = option(False, help="print JSON, every prediction of a classifier included")
    out: str | None = option(
        None, help="also write that JSON to a file; of a detector: folder for boxes and JSON", metavar="FILE"
    )


def faults(options: Options) -> list[str]:
    """What does not fit together."""
    found = []
    if (options.artifact is None) == (options.method is None):
        found.append("give either an artifact folder or --method zero_shot")
    if options.method and not options.backbone:
        found.append("--method zero_shot needs --backbone")
    if options.artifact and (options.template or options.ensemble):
        found.append("--template and --ensemble are of zero_shot; an artifact has its own template")
    if options.template and options.ensemble:
        found.append("--template and --ensemble are alternatives; choose one")
    if options.base_to_new and (options.method or options.classes != "all"):
        found.append(
            "--base-to-new takes an artifact and all classes; without training, give --classes base, then --classes new"
        )
    for name, least in {"batch_size": 1, "workers": 0}.items():
        if getattr(options, name) is not None and getattr(options, name) < least:
            found.append(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(options, name)}")
    return found


def run(options: Options) -> int:
    if found := faults(options):
        raise ConfigError(*found)
    if options.artifact is not None:
        check_files(options.artifact)  # before anything heavy is imported
    quiet()
    from ..data import load_dataset
    from ..data.detection import ODINW, is_detection_data

    if options.data in ODINW or is_detection_data(options.data):
        from .evaluate_boxes import run as run_boxes

        return run_boxes(options)
    if options.score_threshold is not None or options.max_detections is not None:
        raise ConfigError(f"--score-threshold and --max-detections are of detectors; {options.data} has no boxes")
    if options.out:
        check_writable(options.out)
        _refuse_other_files(Path(options.out))
    everything = load_dataset(options.data, options.root)
    from ..evaluation import base_to_new, evaluate
    from ..training import FeatureCache
    from ..writing import write_text

    how = {
        "batch_size": options.batch_size or 64,
        "workers": options.workers,
        "cache": FeatureCache(options.cache_dir) if options.cache_dir else None,
        "progress": sys.stderr.isatty(),
    }
    data = everything.subset("base" if options.base_to_new else options.classes)
    if not options.base_to_new and not getattr(data, options.split):
        raise DataError(f"{data.name} has no {options.split} images; choose --split: it has {images_per_split(data)}")
    model, data = _model(options, data)
    if options.base_to_new:
        both = base_to_new(model, everything, **how)
        text, shown = both.to_json(), str(both)
    else:
        result = evaluate(model, getattr(data, options.split), **how)
        metrics = result.metrics
        text = result.to_json()
        shown = (
            str(result)
            if options.per_class
            else (
                f"{model.method_name} on {data.name}: {metrics.accuracy:.2f} % of {metrics.num_images} images "
                f"(mean over {sum(n > 0 for n in metrics.counts)} classes {metrics.mean_class_accuracy:.2f} %)"
            )
        )
        for reason in result.broken.values():
            print(f"skipped: {reason}", file=sys.stderr)
    if options.out:
        write_text(Path(options.out), text + "\n")
    if options.json:
        print_json(text)
    else:
        print(shown)
    return 0


def _model(options: Options, data):
    """The model to measure, and the data in the order of its classes."""
    if options.method:
        from ..backbones import load_backbone
        from ..model import attach

        if options.ensemble and not data.templates:
            raise ConfigError(
                f"{data.name} has no list of templates (`templates` in its dataset.json); leave out --ensemble"
            )
        template = data.templates if options.ensemble else options.template or data.template
        return attach(
            load_backbone(options.backbone, device=options.device), options.method, data.class_names, template
        ), data
    from ..artifacts import load
    from ..model import PromptedDetector

    model = load(options.artifact, options.backbone, options.device)
    if isinstance(model, PromptedDetector):
        raise ConfigError(f"{options.artifact} is a detector, and {data.name} has no boxes; give it COCO annotations")
    names, data = model.class_names, in_order_of(model.class_names, data)
    if names == data.class_names:
        return model, data
    if options.base_to_new:
        raise ConfigError(
            f"--base-to-new needs an artifact of the {len(data.class_names)} base classes of {data.name}, and "
            f"{options.artifact} was trained on {len(names)} others; train it with --classes base"
        )
    if model.method.config.bound_to_classes:
        raise ConfigError(
            f"{options.artifact} ({model.method_name.replace('_', ' ')}) was trained on other classes than {data.name} "
            f"has: {differences(names, data.class_names)}; it cannot classify into classes it was not trained on"
        )
    tell_new_classes(options.artifact, names, data)
    return model.set_classes(data.class_names), data


def tell_new_classes(artifact: str, learnt: Sequence[str], data: ClassificationData | DetectionData) -> None:
    """Say in a line on standard error that the data have other classes than the artifact was learnt with."""
    new = [name for name in data.class_names if name not in set(learnt)]
    what = f"{len(new)} of them new to it: {first_few(new)}" if new else f"it knows {len(learnt)}"
    print(
        f"classes: the {len(data.class_names)} of {data.name}, not those that {artifact} was trained on ({what})",
        file=sys.stderr,
    )


def _refuse_other_files(path: Path) -> None:
    """Raises ConfigError if there is something else than an earlier result at `path`."""
    if not path.exists():
        return
    try:
        content = read_json(path)
    except DataError:
        raise ConfigError(
            f"--out {path} exists and is no JSON file; name another file to write the result to"
        ) from None
    if not isinstance(content, dict) or not {"accuracy", "harmonic_mean"} & set(content):
        raise ConfigError(f"--out {path} exists and is no result of evaluate; name another file to write the result to")
