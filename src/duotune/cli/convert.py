"""Convert model weights of others into a Hugging Face folder that duotune loads.

    duotune convert openai-clip ViT-B-16.pt clip-b16 --bpe bpe_simple_vocab_16e6.txt.gz
    duotune convert glip glip_tiny_model_o365_goldg.pth glip-t --tokenizer bert-base-uncased

Files are read without executing code from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError, ConfigError
from ..recipes.claim import check_writable
from .options import option, quiet

HELP = "convert files of OpenAI's CLIP or of GLIP into a Hugging Face folder"


@dataclass(kw_only=True)
class Options:
    kind: str = option(help="what the file is", positional=True, choices=("openai-clip", "glip"), metavar="KIND")
    file: str = option(help="OpenAI's .pt file, or GLIP's .pth file", positional=True)
    out: str = option(help="folder to write; must not exist, or be empty", positional=True)
    bpe: str | None = option(None, help="OpenAI's bpe_simple_vocab_16e6.txt.gz", metavar="FILE")
    tokenizer: str | None = option(
        None,
        help="instead of --bpe: a Hugging Face folder of a CLIP with the same vocabulary; of GLIP: folder or Hub id of "
        "the BERT tokenizer (default: google-bert/bert-base-uncased)",
        metavar="FOLDER",
    )
    dtype: str | None = option(
        None,
        help="precision to write (default: float32; glip: the file's)",
        choices=("float32", "float16", "bfloat16"),
    )


def run(options: Options) -> int:
    if options.kind == "glip" and options.bpe:
        raise ConfigError("--bpe is of openai-clip; GLIP reads BERT's tokens, see --tokenizer")
    if not Path(options.file).expanduser().is_file():
        raise ArtifactError(f"no file {options.file}; expected the checkpoint to convert")
    if not Path(options.out).exists():
        check_writable(options.out)
    quiet()
    if options.kind == "glip":
        from ..models.glip import convert_glip_checkpoint

        more = {"tokenizer": options.tokenizer} if options.tokenizer else {}
        if options.dtype:
            import torch

            more["dtype"] = getattr(torch, options.dtype)
        out = convert_glip_checkpoint(options.file, options.out, say=print, **more)
    else:
        from ..conversion import convert_openai_clip

        dtype = options.dtype or "float32"
        out = convert_openai_clip(options.file, options.out, options.bpe, options.tokenizer, dtype)
    print(f"wrote {out}; use it as --backbone {out}")
    return 0
