"""Classify images with an artifact.

duotune predict runs/mine photo.jpg more_photos/
duotune predict runs/mine more_photos/ --json > classes.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass

from ..errors import DataError
from .options import option, quiet
from .output import table

HELP = "classify images with an artifact"


@dataclass(kw_only=True)
class Options:
    artifact: str = option(help="folder with prompt.safetensors and prompt.json", positional=True)
    images: list[str] = option(help="image files, or folders of them", positional=True)
    top_k: int = option(3, help="classes to name per image")
    batch_size: int = option(64, help="images per forward pass")
    backbone: str | None = option(None, help="where the backbone is now, if not where it was", metavar="NAME")
    device: str | None = option(None, help="cpu, cuda, ...; CUDA if there is one", metavar="NAME")
    json: bool = option(False, help="print JSON instead of a table")


def run(options: Options) -> int:
    quiet()
    from ..predictor import Predictor

    predictor = Predictor(options.artifact, options.backbone, options.device)
    rows = predictor.classify(options.images, top_k=options.top_k, batch_size=options.batch_size)
    good, broken = [row for row in rows if row.error is None], [row for row in rows if row.error is not None]
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, ensure_ascii=False))
    elif good:
        cells = [
            [row.source, *(cell for name, p in zip(row.names, row.probabilities) for cell in (name, f"{100 * p:.1f}"))]
            for row in good
        ]
        count = len(good[0].names)
        header = ["image", "class", "%"] + [cell for i in range(2, count + 1) for cell in (f"{i}.", "%")]
        print(table(cells, header))
    sys.stdout.flush()
    if broken:
        others = f" ({len(broken) - 1} more cannot be read)" if len(broken) > 1 else ""
        raise DataError(f"{broken[0].error}{others}; the other {len(good)} images are classified above")
    return 0
