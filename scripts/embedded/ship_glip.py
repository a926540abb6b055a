"""Put a pre-trained GLIP into the package: fp16 weights, tokenizer, processor.

    python ship_glip.py --glip work/glip --out ../../src/duotune/assets/tiny-glip

The model card (README.md) beside them is written by `card_detection.py` from the log of pre-training and the measured
results.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from duotune.models.glip import GlipForObjectDetection, GlipProcessor


def main(glip: Path, out: Path, logs: list[Path]) -> None:
    model = GlipForObjectDetection.from_pretrained(glip, dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    GlipProcessor.from_pretrained(glip).save_pretrained(out)
    rows = [dict(run=n, **json.loads(line)) for n, log in enumerate(logs, 1) for line in log.read_text().splitlines()]
    (out / "pretraining.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for path in sorted(out.iterdir()):
        print(f"{path.name:28s} {path.stat().st_size:9d} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glip", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], help="logs of runs that it was started from")
    args = parser.parse_args()
    main(args.glip, args.out, [*args.earlier, args.glip / "log.jsonl"])
