"""Classify images with an artifact, or find boxes in them.

    duotune predict runs/mine photo.jpg more_photos/ archive.zip
    duotune predict runs/mine more_photos/ --json > classes.json
    duotune predict runs/boxes more_photos/ --out found --score-threshold 0.5
    duotune predict runs/boxes more_photos/ --format yolo --out labels

--out is for detectors: a folder for images with boxes drawn in, and detections.json. With --format it holds, instead of
these, coco.json, or classes.txt and a text file per image, each line "class cx cy w h score".
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import check_files
from ..data.base import first_few
from ..errors import ConfigError, DataError
from .options import option, quiet
from .output import print_json, table, tell_broken

HELP = "classify images with an artifact, or find boxes in them"


@dataclass(kw_only=True)
class Options:
    artifact: str = option(help="folder with prompt.safetensors and prompt.json", positional=True)
    images: list[str] = option(help="image files, folders or zip archives of them", positional=True)
    top_k: int | None = option(None, help="classes to name per image (default: 3)")
    score_threshold: float | None = option(None, help="least score of a detector's boxes, 0..1 (default: 0.3)")
    batch_size: int | None = option(None, help="images per forward pass (default: 64; detectors: 1)")
    backbone: str | None = option(None, help="where the backbone is now, if not where it was", metavar="NAME")
    device: str | None = option(None, help="cpu, cuda, ...; CUDA if there is one", metavar="NAME")
    json: bool = option(False, help="print JSON instead of a table")
    format: str | None = option(None, help="of a detector's boxes, for other tools", choices=("coco", "yolo"))
    out: str | None = option(None, help="folder for a detector's drawn images and JSON", metavar="FOLDER")


def run(options: Options) -> int:
    check_files(options.artifact)  # before anything heavy is imported
    if absent := [image for image in options.images if not os.path.lexists(Path(image).expanduser())]:
        raise DataError(f"no such file or folder: {first_few(absent, 3)}; expected images to look at")
    quiet()
    from ..model import PromptedDetector
    from ..predictor import Predictor

    predictor = Predictor(options.artifact, options.backbone, options.device)
    if isinstance(predictor.model, PromptedDetector):
        from .predict_boxes import run as run_boxes

        return run_boxes(options, predictor)
    if any(value is not None for value in (options.out, options.score_threshold, options.format)):
        raise ConfigError(f"--out, --format and --score-threshold are of detectors; {options.artifact} is a classifier")
    top_k = 3 if options.top_k is None else options.top_k
    batch_size = 64 if options.batch_size is None else options.batch_size
    rows = predictor.classify(options.images, top_k=top_k, batch_size=batch_size, keep_going=True)
    good = [row for row in rows if row.error is None]
    if options.json:
        print_json(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
    elif good:
        cells = [
            [row.source, *(cell for name, p in zip(row.names, row.probabilities) for cell in (name, f"{100 * p:.1f}"))]
            for row in good
        ]
        count = len(good[0].names)
        header = ["image", "class", "%"] + [cell for i in range(2, count + 1) for cell in (f"{i}.", "%")]
        print(table(cells, header))
    sys.stdout.flush()
    tell_broken([row.error for row in rows], "classified")
    return 0
