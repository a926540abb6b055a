"""Convert model weights of others into a Hugging Face folder that duotune loads.

duotune convert openai-clip ViT-B-16.pt clip-b16 --bpe bpe_simple_vocab_16e6.txt.gz
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .options import option, quiet

HELP = "convert OpenAI's CLIP files into a Hugging Face folder"


@dataclass(kw_only=True)
class Options:
    kind: str = option(help="what the file is", positional=True, choices=("openai-clip",), metavar="KIND")
    file: str = option(help="OpenAI's .pt file", positional=True)
    out: str = option(help="folder to write; must not exist, or be empty", positional=True)
    bpe: str | None = option(None, help="OpenAI's bpe_simple_vocab_16e6.txt.gz", metavar="FILE")
    tokenizer: str | None = option(
        None, help="instead of --bpe: a Hugging Face folder of a CLIP with the same vocabulary", metavar="FOLDER"
    )
    dtype: str = option("float32", help="precision to write", choices=("float32", "float16", "bfloat16"))


def run(options: Options) -> int:
    quiet()
    from ..conversion import convert_openai_clip
    from ..recipes.claim import check_writable

    if not Path(options.out).exists():
        check_writable(options.out)
    out = convert_openai_clip(options.file, options.out, options.bpe, options.tokenizer, options.dtype)
    print(f"wrote {out}; use it as --backbone {out}")
    return 0
