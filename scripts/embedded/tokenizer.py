"""Train the embedded model's own BPE (about 6,000 entries) and save it as a CLIPTokenizer.

python tokenizer.py --glyphs work/glyphs --out work/tokenizer
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rendering import Captioner
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

ENTRIES = 6144
MAX_LENGTH = 32
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's own split


def main(glyphs: Path, out: Path) -> None:
    corpus, seen = [], set()
    for record in json.loads((glyphs / "glyphs.json").read_text()):
        if record["concept"] not in seen:
            seen.add(record["concept"])
            corpus += [record["name"], record["name"], ", ".join(record["tags"]).lower()]
    corpus += Captioner.vocabulary() * 50
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=ENTRIES - 2 - 256, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False
        ),
    )
    model = json.loads(bpe.to_str())["model"]
    tokens = [t for t, _ in sorted(model["vocab"].items(), key=lambda x: x[1]) if not t.startswith("<|")]
    tokens += [c + "</w>" for c in letters if c + "</w>" not in model["vocab"]] + ["<|startoftext|>", "<|endoftext|>"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    CLIPTokenizer(str(out / "vocab.json"), str(out / "merges.txt"), model_max_length=MAX_LENGTH).save_pretrained(out)
    loaded = CLIPTokenizer.from_pretrained(out)
    print(len(loaded), loaded.tokenize("a pixelated drawing of a red apple on a striped background"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    main(args.glyphs, args.out)
