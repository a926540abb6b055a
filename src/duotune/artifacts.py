"""The artifact: what was learnt and what is needed to predict with it, in two small files.

    prompt.safetensors    the method's tensors (`Method.artifact_state`), float16 where that changes nothing
    prompt.json           format, method and settings, backbone and a fingerprint of its weights, class
                          names, template, versions, and the SHA-256 of prompt.safetensors

Precision. Learnt tensors are float32. With `dtype="auto"` a tensor is stored in float16

- always if float16 holds its values exactly (an artifact that was loaded is saved again as it was);
- if `probe` images are given (`PromptTrainer.save_artifact` gives its training and validation images) and
  every one of them is put into the same class as before. First all tensors are rounded together; if an image
  changes its class, tensors are rounded one by one, largest first, and those that change one stay float32.

Without a probe there is no evidence, so nothing is rounded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import ArtifactError, ConfigError, DataError, DuotuneError, one_line
from .names import first_few
from .reading import (
    MAX_CLASSES,
    MAX_DESCRIPTION_BYTES,
    MAX_SHOWN,
    MAX_WEIGHT_BYTES,
    because,
    parse_json,
    read_bytes,
    shown,
)
from .writing import write_together

if TYPE_CHECKING:
    from torch import Tensor

    from .backbones.base import Backbone
    from .model import PromptedModel

FORMAT = 1
WEIGHTS, DESCRIPTION = "prompt.safetensors", "prompt.json"
OWNERS = "class_names"  # in the metadata of WEIGHTS, where numbers belong to classes one by one


@dataclass(frozen=True)
class ArtifactInfo:
    """What `prompt.json` says.

    Attributes:
        format: version of this layout.
        method, config: name in the method table and its settings.
        backbone: the name the backbone was loaded by. fingerprint: 16 hex digits of its weights.
        class_names: C names in label order. template: one prompt with `{}`, or several.
        tensors: name -> (dtype, shape).
        num_parameters: number of stored values. num_bytes: size of prompt.safetensors. sha256: of that file.
        num_trained: number of values that training changed; more than are stored if some serve training alone.
        versions: of duotune, torch and transformers when it was written.
    """

    format: int
    method: str
    config: dict[str, Any]
    backbone: str
    fingerprint: str
    class_names: tuple[str, ...]
    template: str | tuple[str, ...]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    num_parameters: int
    num_bytes: int
    sha256: str
    versions: dict[str, str] = field(default_factory=dict)
    num_trained: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArtifactInfo:
        """Raises KeyError, TypeError or ValueError if `values` is something else."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        values = {k: v for k, v in values.items() if k in known}
        if missing := sorted(set(known) - {"versions", "num_trained"} - set(values)):
            raise KeyError(f"no {', '.join(missing)}")
        whole = ("num_parameters", "num_bytes") + (("num_trained",) if values.get("num_trained") is not None else ())
        kinds: dict[str, tuple[Any, str]] = {}
        kinds |= dict.fromkeys(("method", "backbone", "fingerprint", "sha256"), (str, "text"))
        kinds |= dict.fromkeys(whole, (int, "whole number")) | {"class_names": (list | tuple, "list")}
        kinds |= dict.fromkeys(("config", "tensors", "versions"), (Mapping, "object"))
        for name, (kind, word) in kinds.items():
            if name in values and not isinstance(values[name], kind):
                raise TypeError(f"{name!r} is no {word}: {shown(values[name], 60)}")
        if len(values["class_names"]) > MAX_CLASSES:
            raise ValueError(f"{len(values['class_names']):,} classes; the limit is {MAX_CLASSES:,}")
        values["class_names"] = tuple(str(n) for n in values["class_names"])
        if not isinstance(values["template"], str):
            values["template"] = tuple(str(t) for t in values["template"])
        values["tensors"] = {k: (str(d), tuple(int(n) for n in s)) for k, (d, s) in values["tensors"].items()}
        values["config"] = dict(values["config"])
        return cls(**values)

    @property
    def training_only(self) -> str:
        """Both numbers in a sentence, where training changed more values than are stored; "" where it did not."""
        more = (self.num_trained or 0) - self.num_parameters
        if more <= 0:
            return ""
        return (
            f"{self.num_trained:,} values; {more:,} of them serve training alone (auxiliary heads) and are not stored"
        )

    def __str__(self) -> str:
        classes = ", ".join(self.class_names[:5]) + (", …" if len(self.class_names) > 5 else "")
        rows = {
            "method": self.method,
            "settings": ", ".join(f"{k}={v if v != '' else repr(v)}" for k, v in self.config.items()) or "none",
            "backbone": f"{self.backbone} (fingerprint {self.fingerprint})",
            "classes": f"{len(self.class_names)}: {classes}",
            "template": self.template if isinstance(self.template, str) else f"{len(self.template)} templates",
            "size": f"{self.num_parameters:,} values, {self.num_bytes:,} bytes",
            "trained": self.training_only,
            "written by": ", ".join(f"{k} {v}" for k, v in self.versions.items()) or "unknown",
        }
        lines = [f"{name:<11} {value}" for name, value in rows.items() if value]
        return "\n".join(lines + [f"  {k:<40} {d:<8} {list(s)}" for k, (d, s) in self.tensors.items()])


def save(
    model: PromptedModel,
    folder: str | Path,
    dtype: Literal["auto", "float32", "float16"] = "auto",
    probe: Iterable[Mapping[str, Tensor]] | None = None,
) -> Path:
    """Write the artifact of `model`; the model itself is left as it is.

    Both files are written beside their places and then renamed: a save that fails leaves the folder as it was.

    Args:
        folder: made if absent; an artifact in it is replaced.
        dtype: "auto": see the module's docstring; "float32": as learnt; "float16": rounded, come what may.
        probe: batches of `PromptedModel.forward` inputs (pixel_values, frozen_features) to compare predictions on.

    Returns:
        the folder.

    Raises:
        ArtifactError: a value is not finite, or the files cannot be written.
    """
    import torch
    import transformers
    from safetensors.torch import save as to_bytes

    from . import __version__

    folder = _folder(folder)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; expected a folder to write the artifact into")
    if dtype not in ("auto", "float32", "float16"):
        raise ConfigError(f"dtype must be 'auto', 'float32' or 'float16', not {dtype!r}")
    state = {k: v.detach().cpu().contiguous() for k, v in model.method.artifact_state().items()}
    if broken := sorted(k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()):
        raise ArtifactError(f"{broken[0]} holds NaN or infinity, so there is nothing worth saving; train again")
    stored = _stored_state(model, state, dtype, probe)
    method = model.method
    metadata = {"format": "pt"}
    if method.config.bound_to_classes:
        metadata[OWNERS] = json.dumps(list(method.class_names))
    payload = to_bytes(stored, metadata=metadata)
    info = ArtifactInfo(
        format=FORMAT,
        method=model.method_name,
        config=method.config.to_dict(),
        backbone=model.backbone.name,
        fingerprint=model.backbone.fingerprint(),
        class_names=tuple(method.class_names),
        template=method.template,
        tensors={k: (str(v.dtype).removeprefix("torch."), tuple(v.shape)) for k, v in stored.items()},
        num_parameters=sum(v.numel() for v in stored.values()),
        num_bytes=len(payload),
        sha256=hashlib.sha256(payload).hexdigest(),
        versions={"duotune": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        num_trained=model.num_trainable_parameters(),
    )
    description = info.to_json() + "\n"
    _replace_files(folder, {WEIGHTS: payload, DESCRIPTION: description.encode()})
    return folder


def _stored_state(model, state: dict[str, Tensor], dtype: str, probe) -> dict[str, Tensor]:
    import torch

    floats = [k for k, v in state.items() if v.is_floating_point()]
    rounded = {k: state[k].half() for k in floats}
    if dtype == "float16":
        return {**state, **rounded}
    exact = {k: v for k, v in rounded.items() if torch.equal(v.to(state[k].dtype), state[k])}
    if dtype == "float32" or probe is None or len(exact) == len(floats):
        return {**state, **(exact if dtype == "auto" else {})}
    probe = list(probe)
    before = predicted_labels(model, probe)

    def changes_nothing(names: Iterable[str]) -> bool:
        with _loaded(model, {k: rounded[k] for k in names}):
            return torch.equal(predicted_labels(model, probe), before)

    chosen = [k for k in floats if rounded[k].isfinite().all()]
    if not changes_nothing(chosen):
        candidates = sorted((k for k in chosen if k not in exact), key=lambda k: -state[k].numel())
        chosen = list(exact)
        for name in candidates:
            if changes_nothing([*chosen, name]):
                chosen.append(name)
    return {**state, **{k: rounded[k] for k in chosen}}


def predicted_labels(model: PromptedModel, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """(N,) int64, the class of every image of `batches`, in eval mode; the model's mode is restored."""
    import torch

    was_training, device = model.training, model.backbone.device
    model.eval()
    try:
        with torch.no_grad():
            rows = [
                model(**{k: v.to(device) for k, v in batch.items() if k != "labels"})["logits"].argmax(1).cpu()
                for batch in batches
            ]
    finally:
        model.train(was_training)
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)


class _loaded:
    """The model with some tensors replaced, until the block ends."""

    def __init__(self, model: PromptedModel, tensors: Mapping[str, Tensor]):
        self.method, self.tensors = model.method, tensors

    def __enter__(self):
        own = self.method.state_dict()
        self.kept = {k: own[k].detach().clone() for k in self.tensors}
        self.method.load_state_dict(self.tensors, strict=False)

    def __exit__(self, *_):
        self.method.load_state_dict(self.kept, strict=False)


def _replace_files(folder: Path, files: dict[str, bytes]) -> None:
    try:
        write_together(folder, files)
    except OSError as error:
        raise ArtifactError(
            f"cannot write the artifact to {folder}: {error.strerror or error}; what was there is untouched; "
            "free some space or choose another folder"
        ) from error


def _folder(folder: Any) -> Path:
    if not isinstance(folder, (str, os.PathLike)):
        raise ArtifactError(f"expected the folder of an artifact, a text or a path; got {shown(folder, 80)}")
    return Path(folder)


def check_files(folder: str | Path) -> Path:
    """The folder, if the files of an artifact are there; they are not read. Raises ArtifactError."""
    folder = _folder(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not os.path.isfile(folder / name):
            raise ArtifactError(f"{folder} has no {name}; expected an artifact folder with {DESCRIPTION} and {WEIGHTS}")
    return folder


def artifact_bytes(folder: str | Path) -> int:
    """Size of the two files of an artifact together."""
    return sum((Path(folder) / name).stat().st_size for name in (WEIGHTS, DESCRIPTION))


def describe(folder: str | Path) -> ArtifactInfo:
    """What an artifact holds, without loading its backbone; its weights are checked against their SHA-256.

    Raises:
        ArtifactError: a file is missing, truncated or foreign, or of an unknown format version.
    """
    folder = check_files(folder)
    text = read_bytes(folder / DESCRIPTION, "the description of an artifact", ArtifactError, MAX_DESCRIPTION_BYTES)
    try:
        values = parse_json(text, DESCRIPTION, ArtifactError, nonfinite=True)
        version = values["format"]
    except (ArtifactError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder / DESCRIPTION} is not a duotune artifact's description ({because(error)}); copy it again"
        ) from error
    if version != FORMAT or isinstance(version, bool):
        raise ArtifactError(
            f"{folder} has artifact format {shown(version, 40)}, this duotune reads format {FORMAT}; "
            "use the release that wrote it, or a newer one"
        )
    try:
        info = ArtifactInfo.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = one_line(str(error.args[0]) if error.args else type(error).__name__, MAX_SHOWN)
        raise ArtifactError(
            f"{folder / DESCRIPTION} is incomplete or not as expected ({reason}); copy the artifact again"
        ) from error
    payload = read_bytes(folder / WEIGHTS, "the weights of an artifact", ArtifactError, MAX_WEIGHT_BYTES)
    if hashlib.sha256(payload).hexdigest() != info.sha256:
        raise ArtifactError(
            f"{folder / WEIGHTS} is not the file that {DESCRIPTION} describes (expected {info.num_bytes} bytes with "
            f"SHA-256 {one_line(info.sha256[:12], 12)}…, got {len(payload)} bytes): truncated or foreign; copy it again"
        )
    owners = _owners(payload)
    if owners is not None and owners != list(info.class_names):
        raise ArtifactError(
            f"{folder / DESCRIPTION} names other classes, or in another order, than {WEIGHTS} was learnt for "
            f"({first_few(owners)}); copy the artifact again"
        )
    return info


def _owners(payload: bytes) -> list[str] | None:
    """The classes that weights belong to one by one, as their file says; None if it does not."""
    length = int.from_bytes(payload[:8], "little")
    try:
        header = parse_json(payload[8 : 8 + min(length, MAX_DESCRIPTION_BYTES)], WEIGHTS, ArtifactError)
        return parse_json(header["__metadata__"][OWNERS], WEIGHTS, ArtifactError)
    except (ArtifactError, KeyError, TypeError, AttributeError):
        return None  # reading the tensors says what is wrong, if anything is


def load(
    folder: str | Path,
    backbone: str | Backbone | None = None,
    device: str | None = None,
    dtype: str | None = None,
    allow_other_backbone: bool = False,
) -> PromptedModel:
    """The model an artifact was saved from, ready to predict (eval mode).

    Args:
        backbone: None: the one the artifact names; a name or folder; or a loaded Backbone (then `device` and
            `dtype` are not used).
        device, dtype: as in `load_backbone`.
        allow_other_backbone: go on if the backbone's weights are not those the artifact was learnt with.

    Raises:
        ArtifactError: missing, truncated or foreign files, an unknown format, tensors that do not fit, or another
            backbone (its fingerprint differs).
    """
    from .model import attach

    info, folder = describe(folder), Path(folder)
    backbone = _find_backbone(folder, info, backbone, device, dtype)
    actual = backbone.fingerprint()
    if actual != info.fingerprint and not allow_other_backbone:
        raise ArtifactError(
            f"{folder} was learnt on {info.backbone} with fingerprint {info.fingerprint}, but {backbone.name} has "
            f"{actual}; load the original backbone (in Python, allow_other_backbone=True uses this one all the same)"
        )
    try:
        model = attach(backbone, info.method, info.class_names, info.template, info.config)
    except (DuotuneError, TypeError) as error:  # TypeError: a setting of another type
        raise ArtifactError(f"{folder} does not fit {backbone.name}: {because(error)}") from error
    restore(model, folder)
    return model.eval()


def _find_backbone(folder: Path, info: ArtifactInfo, backbone, device, dtype) -> Backbone:
    from .backbones import Backbone, load_backbone

    if isinstance(backbone, Backbone):
        return backbone
    try:
        return load_backbone(backbone or info.backbone, dtype=dtype, device=device)
    except DataError as error:
        if backbone is not None:
            raise
        raise ArtifactError(
            f"cannot load the backbone {info.backbone!r} that {folder} was learnt on ({error}); "
            "pass backbone=<where it is now>"
        ) from error


def restore(model: PromptedModel, folder: str | Path) -> None:
    """Put an artifact's tensors into `model`, which has the same method and settings.

    Raises:
        ArtifactError: the file cannot be read, or its tensors do not fit. ClassNamesError: what was learnt belongs to
            other classes than the model's.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    path = Path(folder) / WEIGHTS
    payload = read_bytes(path, "the weights of an artifact", ArtifactError, MAX_WEIGHT_BYTES)
    try:
        tensors = from_bytes(payload)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:  # KeyError: a type that torch lacks
        reason = because(error)
        raise ArtifactError(f"{path} is not a readable safetensors file ({reason}); copy the artifact again") from error
    check_tensors(str(path), tensors, model.method.artifact_state(), model.method_name)
    if model.method.config.bound_to_classes:
        tensors = dict(model.method.in_own_order(tensors, describe(folder).class_names))
    model.method.load_state_dict(tensors, strict=False)


def check_tensors(source: str, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], method_name: str) -> None:
    """Raises ArtifactError in one line if names or shapes differ or a value is not finite."""
    faults = [f"lacks {one_line(k, 60)}" for k in sorted(set(expected) - set(tensors))]
    faults += [f"holds the unknown {one_line(k, 60)}" for k in sorted(set(tensors) - set(expected))]
    for name in sorted(set(tensors) & set(expected)):
        if (got := tuple(tensors[name].shape)) != (wanted := tuple(expected[name].shape)):
            faults.append(f"{name} has shape {got}, expected {wanted}")
        elif tensors[name].is_floating_point() and not tensors[name].isfinite().all():
            faults.append(f"{name} holds NaN or infinity")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise ArtifactError(f"{source} does not fit {method_name}: {'; '.join(faults[:3])}{more}")
