"""Train the embedded detector's own WordPiece vocabulary (about 4,000 entries) and save it as a BertTokenizer.

python wordpiece.py --glyphs work/glyphs --out work/wordpiece
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rendering import COLOURS, KINDS
from scenes import is_object
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertTokenizer

ENTRIES = 4096


def main(glyphs: Path, out: Path) -> None:
    corpus, seen = [], set()
    for record in json.loads((glyphs / "glyphs.json").read_text()):
        if record["concept"] not in seen:
            seen.add(record["concept"])
            weight = 20 if is_object(record) else 1  # their words stay whole
            corpus += [record["name"]] * 2 * weight + [", ".join(record["tags"]).lower()] * weight
    corpus += [*KINDS.values(), *COLOURS, ", . a drawing of an object photo picture on in the with and"] * 50
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(corpus, vocab_size=ENTRIES, min_frequency=1, show_progress=False)
    out.mkdir(parents=True, exist_ok=True)
    BertTokenizer(vocab=trained.get_vocab(), do_lower_case=True).save_pretrained(out)
    loaded = AutoTokenizer.from_pretrained(out)
    print(type(loaded).__name__, len(loaded), loaded.tokenize("horizontal traffic light. racing car. erythrocyte. dog"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    main(args.glyphs, args.out)
