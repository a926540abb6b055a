"""Put a pre-trained model into the package: fp16 weights, tokenizer, processor, log of pre-training.

    python ship.py --model work/clip --out ../../src/duotune/assets/tiny-clip
    python ship.py --model work/glip --out ../../src/duotune/assets/tiny-glip

The model card (README.md) beside them is written by `card.py` or `card_detection.py` from that log and the measured
results.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPModel

from duotune.models.glip import GlipForObjectDetection

CLASSES = {"clip": CLIPModel, "glip": GlipForObjectDetection}
FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


def main(source: Path, out: Path) -> None:
    kind = json.loads((source / "config.json").read_text())["model_type"]
    out.mkdir(parents=True, exist_ok=True)
    CLASSES[kind].from_pretrained(source, dtype=torch.float32).half().save_pretrained(out)
    for name in FILES:
        shutil.copy(source / name, out / name)
    shutil.copy(source / "log.jsonl", out / "pretraining.jsonl")
    for path in sorted(out.iterdir()):
        print(f"{path.name:28s} {path.stat().st_size:9d} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder that pre-training wrote")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    main(args.model, args.out)
