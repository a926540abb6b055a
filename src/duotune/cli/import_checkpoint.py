"""Import what the authors' code wrote as an artifact: a folder of CoOp, VPT, VLP or DPT (Dassl), or a file of SDPT.

    duotune import output/pets/seed1 --backbone openai/clip-vit-base-patch16 --classes names.txt --out pets-dpt \\
        --template "a photo of a {}, a type of pet."
    duotune import sdpt model_final.pth --backbone GLIP_FOLDER --classes names.txt --out cells-sdpt

Files are read without executing code from them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from ..artifacts import DESCRIPTION, artifact_bytes
from ..data.layout import plain_name
from ..errors import ArtifactError, ConfigError, DataError
from ..reading import MAX_DESCRIPTION_BYTES, read_text
from ..recipes import parse_assignments
from .options import option, quiet
from .output import size

HELP = "import a checkpoint of the authors' code as an artifact"
KINDS = ("dassl", "sdpt")


@dataclass(kw_only=True)
class Options:
    source: list[str] = option(
        help="dassl and the output folder of the run, with .../model.pth.tar-N in it; or sdpt and a .pth file",
        positional=True,
        metavar="KIND",
    )
    backbone: str = option(help="what it was trained on: local folder, Hub id or embedded name", metavar="NAME")
    classes: str = option(help="text file with one class name per line, in the run's order", metavar="FILE")
    out: str = option(help="folder of the artifact to write", metavar="FOLDER")
    device: str | None = option(None, help="cpu, cuda, ...; CUDA if there is one", metavar="NAME")
    template: str | None = option(
        None,
        help="the run's template with one {}; VPT and DPT need it; sdpt: how a class reads in the caption",
        metavar="TEXT",
    )
    epoch: str | None = option(None, help='epochs after which it was saved, or "best"; the last if left out')
    position: str | None = option(
        None, help="where the class name stands; as log.txt says if left out", choices=("end", "middle", "front")
    )
    num_candidates: int | None = option(None, help="DPT's candidates per image; as log.txt says if left out")
    set: list[str] = option(
        [], help="a setting of the method that the files do not hold, may be repeated", metavar="NAME=VALUE"
    )
    check_backbone: bool = option(True, help="sdpt: the file's other weights must be those of the backbone")


def kind_and_path(options: Options) -> tuple[str, str]:
    """("dassl" or "sdpt", path). Raises ConfigError for other words, or options that do not belong to the kind."""
    kind, path = options.source if len(options.source) == 2 else (None, options.source[0])
    if len(options.source) > 2 or (kind is not None and kind not in KINDS):
        raise ConfigError(f"expected a path, or one of {', '.join(KINDS)} and a path; got {' '.join(options.source)}")
    kind = kind or ("sdpt" if Path(path).is_file() else "dassl")
    of_dassl = [name for name in ("epoch", "position", "num_candidates") if getattr(options, name)]
    if kind == "sdpt" and of_dassl:
        raise ConfigError(f"--{of_dassl[0].replace('_', '-')} is of dassl; {path} is imported as sdpt")
    if kind == "dassl" and not options.check_backbone:
        raise ConfigError(f"--no-check-backbone is of sdpt; {path} is imported as dassl")
    return kind, path


def run(options: Options) -> int:
    kind, path = kind_and_path(options)
    names = read_names(Path(options.classes))
    if (Path(options.out) / DESCRIPTION).exists():
        raise ArtifactError(f"{options.out} holds an artifact already; choose another --out")
    quiet()
    from ..backbones import check_device
    from ..conversion import import_dassl, import_sdpt
    from ..recipes.claim import claimed

    if options.device:
        check_device(options.device)
    settings, wrong = parse_assignments(options.set, "--set")
    own = inspect.signature(import_sdpt if kind == "sdpt" else import_dassl).parameters
    wrong += [f"--set {name}: this is no setting that the files leave open" for name in settings if name in own]
    if wrong:
        raise ConfigError(*wrong)
    epoch = int(options.epoch) if options.epoch and options.epoch.isdecimal() else options.epoch
    with claimed(options.out) as out:
        if kind == "sdpt":
            model = import_sdpt(
                path, options.backbone, names, options.check_backbone, options.device, options.template, **settings
            )
        else:
            model = import_dassl(
                path,
                options.backbone,
                names,
                template=options.template,
                epoch=epoch,
                position=options.position,
                num_candidates=options.num_candidates,
                device=options.device,
                **settings,
            )
        model.save(out)
    print(f"wrote {out}: {model.method_name}, {len(names)} classes, {size(artifact_bytes(out))}")
    return 0


def read_names(path: Path) -> list[str]:
    """Class names of a text file (UTF-8, or UTF-16 with its mark), one a line; empty lines are skipped.

    Raises DataError.
    """
    if not path.is_file():
        raise DataError(f"no file {path}; expected a text file with one class name per line")
    text = read_text(path, "a text file with one class name per line", limit=MAX_DESCRIPTION_BYTES)
    names = [plain_name(line.strip()) for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} is empty; expected one class name per line")
    return names
