"""Show an artifact: method, sizes, classes, and the vocabulary words nearest to each learnt context token.

duotune show runs/mine
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from ..artifacts import describe
from ..errors import ConfigError
from .options import option, quiet
from .output import print_json

HELP = "show an artifact and the words nearest to its context tokens"


@dataclass(kw_only=True)
class Options:
    artifact: str = option(help="folder with prompt.safetensors and prompt.json", positional=True)
    backbone: str | None = option(None, help="where its backbone is now, if not where it was", metavar="NAME")
    words: int = option(3, help="nearest words per context token; 0 shows none and loads no backbone")
    class_name: str | None = option(
        None, help="whose context to read, if each class has its own; the first class's if left out", metavar="NAME"
    )
    json: bool = option(False, help="print JSON")


def run(options: Options) -> int:
    if options.words < 0:
        raise ConfigError(f"--words must be at least 0, not {options.words}")
    info = describe(options.artifact)
    quiet()
    near = []
    if options.words and any(name.startswith("text.context") for name in info.tensors):
        from ..artifacts import load
        from ..inspection import nearest_words

        model = load(options.artifact, options.backbone, device="cpu")
        near = nearest_words(model, options.words, options.class_name)
    if options.json:
        rows = [[dataclasses.asdict(word) for word in words] for words in near]
        print_json(json.dumps({**json.loads(info.to_json()), "nearest_words": rows}, indent=2, ensure_ascii=False))
        return 0
    print(info)
    if near:
        print("\nnearest words of each context token (Euclidean distance)")
        for number, words in enumerate(near, start=1):
            print(f"  {number:>2}  " + "   ".join(str(word) for word in words))
    return 0
