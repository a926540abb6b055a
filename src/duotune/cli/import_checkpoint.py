"""Import a checkpoint folder that the authors' code of CoOp, VPT, VLP or DPT wrote (Dassl) as an artifact.

    duotune import output/pets/seed1 --backbone openai/clip-vit-base-patch16 --classes names.txt --out pets-dpt \\
        --template "a photo of a {}, a type of pet."
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError, DataError
from .options import option, quiet
from .output import size

HELP = "import a checkpoint of the authors' code as an artifact"


@dataclass(kw_only=True)
class Options:
    folder: str = option(help="output folder of the run, with .../model.pth.tar-N in it", positional=True)
    backbone: str = option(help="the CLIP it was trained on: local folder, Hub id or embedded name", metavar="NAME")
    classes: str = option(help="text file with one class name per line, in the run's order", metavar="FILE")
    out: str = option(help="folder of the artifact to write", metavar="FOLDER")
    template: str | None = option(None, help="the run's template with one {}; VPT and DPT need it", metavar="TEXT")
    epoch: str | None = option(None, help='epochs after which it was saved, or "best"; the last if left out')
    position: str | None = option(
        None, help="where the class name stands; as log.txt says if left out", choices=("end", "middle", "front")
    )
    num_candidates: int | None = option(None, help="DPT's candidates per image; as log.txt says if left out")


def run(options: Options) -> int:
    quiet()
    names = read_names(Path(options.classes))
    if (Path(options.out) / "prompt.json").exists():
        raise ArtifactError(f"{options.out} holds an artifact already; choose another --out")
    from ..conversion import import_dassl
    from ..recipes.claim import claimed

    epoch = int(options.epoch) if options.epoch and options.epoch.isdecimal() else options.epoch
    with claimed(options.out) as out:
        model = import_dassl(
            options.folder,
            options.backbone,
            names,
            template=options.template,
            epoch=epoch,
            position=options.position,
            num_candidates=options.num_candidates,
        )
        model.save(out)
    written = sum((out / name).stat().st_size for name in ("prompt.safetensors", "prompt.json"))
    print(f"wrote {out}: {model.method_name}, {len(names)} classes, {size(written)}")
    return 0


def read_names(path: Path) -> list[str]:
    """Class names of a text file, one a line; empty lines are skipped. Raises DataError."""
    if not path.is_file():
        raise DataError(f"no file {path}; expected a text file with one class name per line")
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} is empty; expected one class name per line")
    return names
