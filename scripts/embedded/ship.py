"""Put a pre-trained CLIP into the package: fp16 weights, tokenizer, image processor.

    python ship.py --clip work/clip --out ../../src/duotune/assets/tiny-clip

The model card (README.md) beside them is written by `card.py` from the log of pre-training and the
measured results.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import CLIPModel

FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


def main(clip: Path, out: Path) -> None:
    model = CLIPModel.from_pretrained(clip, dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    for name in FILES:
        shutil.copy(clip / name, out / name)
    shutil.copy(clip / "log.jsonl", out / "pretraining.jsonl")
    for path in sorted(out.iterdir()):
        print(f"{path.name:28s} {path.stat().st_size:9d} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    main(args.clip, args.out)
