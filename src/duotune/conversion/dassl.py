"""Checkpoints of the authors' own code (CoOp, VPT, VLP, DPT on Dassl) -> a PromptedModel.

Dassl's trainers write one folder per registered model:

    OUTPUT/prompt_learner/model.pth.tar-50                              CoOp, VLP, DPT
    OUTPUT/image_encoder.transformer.ctx_learner/model.pth.tar-50       VPT, VLP, DPT
    OUTPUT/image_encoder.transformer.extractor/model.pth.tar-50         DPT
    OUTPUT/log.txt                                                      the run's settings, as text

(facts from `save_model` in KaiyangZhou/Dassl.pytorch and `register_model` in the trainers of
KaiyangZhou/CoOp and fanrena/DPT). Each file is a dict with `state_dict`, `epoch`, `optimizer`,
`scheduler` and `val_result`; the weights alone are read, see `reading`.

    theirs                                       ours
    prompt_learner: ctx (M, d) or (C, M, d)      text.context.tokens
                    token_prefix, token_suffix   nothing: embeddings of the class names, used to check them
    ctx_learner:    ctx (layers, P, d)           visual.prompts.tokens        (1, P, d) or (P, d) where shallow
    extractor:      meta_nets.i                  class_aware.i.meta
                    attns.i.qmlp, kmlp, vmlp     class_aware.i.attention.query, key, value
                    ctx (layers, 10, d)          class_aware.i.extra_tokens
                    lns2.i                       class_aware.i.norm
                    lns.i, classfiers.i          aux.i.norm, aux.i.classifier

Shapes tell M, P, whether the context is class-specific, and b: `ctx_learner` of DPT holds b - 1
layers. Not in the weights are where the class name stands, the template and the number of
candidates; they come from the caller, else from `log.txt` (which names the data set, and that its
template), else from the defaults of the authors' scripts. The extractor is stored in float16
whatever the run's precision was; everything is computed in the backbone's precision here, so a run
of theirs in float16 agrees up to its own rounding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones.base import Backbone, DualEncoder
from ..data import DATASETS
from ..errors import ArtifactError, ConfigError
from ..methods import METHODS
from ..model import PromptedModel, attach
from ..reading import check_file
from .reading import check_settings, read_archive, state_dict_of, understood

TEXT, VISUAL, CLASS_AWARE = (
    "prompt_learner",
    "image_encoder.transformer.ctx_learner",
    "image_encoder.transformer.extractor",
)
_METHOD_OF = {
    frozenset({TEXT}): "coop",
    frozenset({VISUAL}): "vpt",
    frozenset({TEXT, VISUAL}): "vlp",
    frozenset({TEXT, VISUAL, CLASS_AWARE}): "dpt",
}
_FILE = re.compile(r"model\.pth\.tar-(\d+)")
_BEST = "model-best.pth.tar"
NUM_CANDIDATES = 10
DATASET_NAMES = {
    "Caltech101": "caltech101",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "FGVCAircraft": "fgvc_aircraft",
    "Food101": "food101",
    "ImageNet": "imagenet",
    "ImageNetA": "imagenet_a",
    "ImageNetR": "imagenet_r",
    "ImageNetSketch": "imagenet_sketch",
    "ImageNetV2": "imagenet_v2",
    "OxfordFlowers": "oxford_flowers",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "SUN397": "sun397",
    "UCF101": "ucf101",
}
"""The authors' names of data sets -> ours."""


@dataclass
class DasslCheckpoint:
    """What a checkpoint folder holds.

    Attributes:
        folder: where it was read from.
        method: "coop", "vpt", "vlp" or "dpt".
        epoch: number of finished epochs, or "best".
        text, visual, class_aware: the state dict of each registered model, float32; empty if there is none.
        log: settings found in log.txt: "position", "num_candidates", "dataset".
    """

    folder: Path
    method: str
    epoch: int | str
    text: dict[str, Tensor]
    visual: dict[str, Tensor]
    class_aware: dict[str, Tensor]
    log: dict[str, str]

    @property
    def num_classes(self) -> int | None:
        """C of the training run, None where no tensor knows it (VPT)."""
        known = [len(self.text[k]) for k in ("token_prefix", "token_suffix") if k in self.text and self.text[k].ndim]
        if self.text and self.text["ctx"].ndim == 3:
            known.append(len(self.text["ctx"]))
        known += [len(t) for k, t in self.class_aware.items() if k.startswith("classfiers.")]
        if len(set(known)) > 1:
            raise ArtifactError(f"{self.folder}: its files are of different runs, for {sorted(set(known))} classes")
        return known[0] if known else None


def import_dassl(
    path: str | Path,
    backbone: str | Backbone,
    class_names: Sequence[str],
    template: str | Sequence[str] | None = None,
    epoch: int | str | None = None,
    position: str | None = None,
    num_candidates: int | None = None,
    check_names: bool = True,
    device: str | None = None,
    **settings: Any,
) -> PromptedModel:
    """Read a checkpoint folder of the authors' code of CoOp, VPT, VLP or DPT.

    Args:
        path: the output folder of a run.
        backbone: the CLIP it was trained on: a Hub id, a local folder, an embedded name, or a loaded backbone.
        class_names: names of the training run, in its order (`set_classes` goes to others afterwards).
        template: prompt with one `{}`. VPT and DPT classify with it, so they need the one of the run's data set
            ("a photo of a {}, a type of pet."); CoOp and VLP do not read it. None: that of the data set in `log.txt`.
        epoch: number of epochs after which the file was written; "best" for `model-best.pth.tar`; None for the last.
        position: where the class name stands: "end", "middle" or "front"; None: as `log.txt` says, else "end".
        num_candidates: DPT's Q; None: as `log.txt` says, else 10.
        check_names: compare the names with the token embeddings that the file holds.
        device: of a backbone given by its name.
        settings: further fields of the method's config, such as DPT's guidance_epochs and aux_loss_weight, which matter
            if training goes on and are not in the files.

    Returns:
        A PromptedModel in eval mode, ready for `save`.

    Raises:
        ArtifactError: there is no checkpoint, a file is damaged, tensors are missing, or they do not fit the backbone
            or the class names.
        ConfigError, PortError, ClassNamesError: as `attach` raises them.
    """
    found = read_dassl(path, epoch)
    if num_candidates is not None and found.method != "dpt":
        raise ConfigError(f"num_candidates is of dpt, and {found.folder} holds {found.method}; leave it out")
    if position is not None and not found.text:
        raise ConfigError(f"position is of a text context, and {found.folder} ({found.method}) has none; leave it out")
    if isinstance(backbone, str):
        from ..backbones import load_backbone

        backbone = load_backbone(backbone, device=device)
    METHODS.get(found.method).check_ports(found.method, backbone)
    with understood(found.folder):
        known = _settings(found, backbone)
    check_settings(settings, known, found.folder)
    settings = {**settings, **known}
    if found.text:
        settings["position"] = position or found.log.get("position", "end")
    if found.method == "dpt":
        settings["num_candidates"] = num_candidates or int(found.log.get("num_candidates", NUM_CANDIDATES))
    template = template or _template(found)
    if found.num_classes not in (None, len(class_names)):
        raise ArtifactError(
            f"{found.folder} was trained on {found.num_classes} classes, got {len(class_names)} names; "
            "give the names of the run in its order, and call set_classes for others afterwards"
        )
    if found.text and check_names:
        with understood(found.folder):
            _check_names(found, backbone, class_names)

    model = attach(backbone, found.method, class_names, template, config=settings)
    state, own = _translate(found), model.method.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            wanted = tuple(own[name].shape) if name in own else "nothing"
            raise ArtifactError(f"{found.folder}: {name} has shape {tuple(tensor.shape)}, expected {wanted}")
    # classifiers that serve training alone may have been left out
    lacking = [n for n in own if n not in state and not n.startswith(model.method.training_only or ("\0",))]
    if lacking:
        raise ArtifactError(f"{found.folder} lacks what becomes {lacking[0]}; is the folder complete?")
    model.method.load_state_dict({**own, **state})
    return model.eval()


def read_dassl(path: str | Path, epoch: int | str | None = None) -> DasslCheckpoint:
    """What a checkpoint folder holds, without any backbone.

    Raises:
        ArtifactError: as `import_dassl`.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ArtifactError(f"no folder {folder}; expected the output folder of a Dassl run")
    parts = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and _epochs(p)}
    if not parts:
        if _epochs(folder):
            raise ArtifactError(
                f"{folder} holds one part of a run; give the folder above it, {folder.resolve().parent}"
            )
        raise ArtifactError(
            f"{folder} holds no checkpoint; expected {TEXT}/model.pth.tar-N or {VISUAL}/model.pth.tar-N in it"
        )
    method = _METHOD_OF.get(frozenset(parts))
    if method is None:
        known = "; ".join(f"{m}: {', '.join(sorted(names))}" for names, m in _METHOD_OF.items())
        raise ArtifactError(f"{folder} holds {', '.join(parts)}, which is no known method ({known})")
    epoch = _choose_epoch(folder, parts, epoch)
    states = {}
    for name, part in parts.items():
        file = part / (_BEST if epoch == "best" else f"model.pth.tar-{epoch}")
        state = state_dict_of(read_archive(file))
        if state is None:
            raise ArtifactError(f"{file} holds no state_dict; expected a checkpoint that Dassl wrote")
        with understood(file):
            states[name] = {k: t.float() for k, t in state.items()}
            _check_part(file, name, states[name])
    text, visual, aware = (states.get(name, {}) for name in (TEXT, VISUAL, CLASS_AWARE))
    return DasslCheckpoint(folder, method, epoch, text, visual, aware, _read_log(folder))


def _epochs(part: Path) -> set[int | str]:
    names = [f.name for f in part.iterdir() if f.is_file()]
    found: set[int | str] = {int(m[1]) for n in names if (m := _FILE.fullmatch(n))}
    return found | ({"best"} if _BEST in names else set())


def _choose_epoch(folder: Path, parts: dict[str, Path], epoch: int | str | None) -> int | str:
    common = set.intersection(*(_epochs(p) for p in parts.values()))
    numbers = sorted(e for e in common if e != "best")
    listed = ", ".join(map(str, [*numbers, *(["best"] if "best" in common else [])])) or "none"
    if epoch is None and common:
        return numbers[-1] if numbers else "best"
    if epoch in common:
        return epoch
    raise ArtifactError(
        f"{folder} holds no checkpoint of epoch {epoch if epoch is not None else 'N'} in all of {', '.join(parts)}; "
        f"epochs there: {listed}"
    )


def _check_part(file: Path, name: str, state: dict[str, Tensor]) -> None:
    if any(k.startswith("meta_net.") for k in state):
        raise ArtifactError(f"{file} is of CoCoOp (it holds meta_net); CoOp, VPT, VLP and DPT can be imported")
    wanted = ["ctx"]
    if name == CLASS_AWARE and "ctx" in state:
        for i in range(len(state["ctx"])):
            wanted += [f"meta_nets.{i}.weight", f"meta_nets.{i}.bias"]
            wanted += [f"attns.{i}.{m}.weight" for m in ("qmlp", "kmlp", "vmlp")]
            wanted += [f"{n}.{i}.{e}" for n in ("lns", "lns2") for e in ("weight", "bias")]
    if missing := [k for k in wanted if k not in state]:
        raise ArtifactError(f"{file} lacks {', '.join(missing[:5])}; it holds {', '.join(sorted(state)[:5])}")
    ndim = {TEXT: (2, 3), VISUAL: (2, 3), CLASS_AWARE: (3,)}[name]
    shape = tuple(state["ctx"].shape)
    if len(shape) not in ndim or (name == CLASS_AWARE and shape[0] == 0):
        raise ArtifactError(f"{file}: ctx has shape {shape}, expected {' or '.join(map(str, ndim))} dimensions")
    if broken := [k for k, t in state.items() if not torch.isfinite(t).all()]:
        raise ArtifactError(f"{file}: {broken[0]} holds NaN or infinity; the run diverged, import an earlier epoch")


def _settings(found: DasslCheckpoint, backbone: DualEncoder) -> dict:
    """The method's config as far as shapes tell it. Raises ArtifactError naming every width that does not fit."""
    settings: dict = {}
    faults = []

    def compare(what: str, theirs: int, ours: int) -> None:
        if theirs != ours:
            faults.append(f"{what} {theirs} against {ours}")

    if found.text:
        context = found.text["ctx"]
        settings["num_context_tokens"] = context.shape[-2]
        settings["class_specific"] = context.ndim == 3
        compare("text width", context.shape[-1], backbone.text_width)
    if found.visual:
        tokens = _layered(found.visual["ctx"])
        settings["num_visual_tokens"] = tokens.shape[1]
        layers = len(tokens) + (len(found.class_aware["ctx"]) if found.class_aware else 0)
        settings["deep"] = found.method == "dpt" or layers > 1 or backbone.vision_layers == 1
        compare("vision width", tokens.shape[-1], backbone.vision_width)
        if settings["deep"]:
            compare("vision layers", layers, backbone.vision_layers)
    if found.class_aware:
        settings["class_aware_from"] = len(_layered(found.visual["ctx"])) + 1
        settings["num_extra_tokens"] = found.class_aware["ctx"].shape[1]
        compare("width of the joint space", found.class_aware["meta_nets.0.weight"].shape[1], backbone.embed_dim)
    if faults:
        raise ArtifactError(
            f"{found.folder} was trained on another backbone than {backbone.name}: {'; '.join(faults)}; "
            "import it with the CLIP of its run"
        )
    return settings


def _template(found: DasslCheckpoint) -> str:
    name = found.log.get("dataset", "")
    if name in DATASET_NAMES:
        return DATASETS.get(DATASET_NAMES[name]).template
    if found.method in ("coop", "vlp"):
        return "a photo of a {}."
    data = f" (data set {name})" if name else ""
    raise ArtifactError(
        f"{found.folder}: {found.method} needs the template of its run{data}, which the files do not hold; "
        'give template, such as "a photo of a {}."'
    )


def _layered(tokens: Tensor) -> Tensor:
    return tokens if tokens.ndim == 3 else tokens[None]


def _translate(found: DasslCheckpoint) -> dict[str, Tensor]:
    state = {}
    if found.text:
        state["text.context.tokens"] = found.text["ctx"]
    if found.visual:
        state["visual.prompts.tokens"] = _layered(found.visual["ctx"])
    aware = found.class_aware
    for i in range(len(aware["ctx"]) if aware else 0):
        state[f"class_aware.{i}.extra_tokens"] = aware["ctx"][i]
        for ours, theirs in (
            (f"class_aware.{i}.meta", f"meta_nets.{i}"),
            (f"class_aware.{i}.attention.query", f"attns.{i}.qmlp"),
            (f"class_aware.{i}.attention.key", f"attns.{i}.kmlp"),
            (f"class_aware.{i}.attention.value", f"attns.{i}.vmlp"),
            (f"class_aware.{i}.norm", f"lns2.{i}"),
            (f"aux.{i}.norm", f"lns.{i}"),
            (f"aux.{i}.classifier", f"classfiers.{i}"),
        ):
            for end in ("weight", "bias"):
                if f"{theirs}.{end}" in aware:
                    state[f"{ours}.{end}"] = aware[f"{theirs}.{end}"]
    return state


def _check_names(found: DasslCheckpoint, backbone: DualEncoder, class_names: Sequence[str]) -> None:
    """Raises ArtifactError if the embeddings of start token and "name." in the file are not the backbone's."""
    prefix, suffix = found.text.get("token_prefix"), found.text.get("token_suffix")
    if (
        prefix is None
        or suffix is None
        or prefix.ndim != 3
        or suffix.ndim != 3
        or suffix.shape[-1] != backbone.text_width
    ):
        return
    tokens = backbone.tokenize([f"{name.replace('_', ' ')}." for name in class_names])
    with torch.no_grad():
        embedded = backbone.embed_tokens(tokens.ids).float().cpu()
    if not _same(prefix[0], embedded[0, :1]):
        raise ArtifactError(
            f"{found.folder} was trained on another backbone than {backbone.name}: the embedding of the start token "
            "differs; import it with the CLIP of its run"
        )
    ends = tokens.eos.tolist()

    def holds(row: int, name: int) -> bool:
        # the end token is compared too: "cat" must not pass for "cat fish"
        return ends[name] <= suffix.shape[1] and _same(suffix[row, : ends[name]], embedded[name, 1 : ends[name] + 1])

    for i, name in enumerate(class_names):
        if not holds(i, i):
            others = [n for j, n in enumerate(class_names) if holds(i, j)]
            truth = f"it is {others[0]!r}" if others else "nor any other of the names given"
            raise ArtifactError(
                f"class {i} of {found.folder} is not {name!r}, {truth}; give the names of the run in its order "
                "(check_names=False skips this test)"
            )


def _same(theirs: Tensor, ours: Tensor) -> bool:
    """Equal up to a half-precision copy; embeddings of two different tokens are much further apart."""
    return bool(((theirs - ours).norm(dim=-1) <= 0.02 * ours.norm(dim=-1)).all())


def _read_log(folder: Path) -> dict[str, str]:
    """Settings that the weights do not tell, from the newest `log.txt` in which Dassl printed its configuration."""
    patterns = {
        "position": r"^ +CLASS_TOKEN_POSITION: *(end|middle|front) *$",
        "num_candidates": r"^ +CPN: *(\d{1,9}) *$",
        "dataset": r"^DATASET:\n(?: +.*\n)*? +NAME: *(\w+) *$",
    }
    for log in sorted(folder.glob("log.txt*"), key=lambda f: f.stat().st_mtime, reverse=True):
        with check_file(log, "a log of Dassl", ArtifactError).open(errors="replace") as file:
            content = file.read(200_000)
        if found := {k: m[1] for k, p in patterns.items() if (m := re.search(p, content, re.MULTILINE))}:
            return found
    return {}
