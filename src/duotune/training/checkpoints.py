"""Checkpoints: what lies in one, what it is known by, and which is the last.

    checkpoint-STEP/
      model.safetensors     the method's state alone
      checkpoint.json       what must be the same for a run to go on as if it had never stopped
      trainer_state.json    transformers'; written last, so a folder without it is no checkpoint
      ...                   optimizer, schedule and generators, written by transformers

Nothing heavy is imported to find the last checkpoint of a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.images import content_stamp
from ..errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import PromptedModel

STATE, IDENTITY, TRAINER_STATE = "model.safetensors", "checkpoint.json", "trainer_state.json"
NEARLY_FULL = 1 << 20  # bytes
_ABSENT = object()


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        json.loads((folder / TRAINER_STATE).read_text())
    except (OSError, ValueError):
        return False
    return (folder / STATE).is_file() and (folder / IDENTITY).is_file()


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The complete checkpoint with the most steps in a folder; unfinished ones are passed over."""
    found = [
        (int(path.name.rpartition("-")[2]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if path.name.rpartition("-")[2].isdigit() and is_complete(path)
    ]
    return str(max(found)[1]) if found else None


def each_once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without further names of the same tensor: layers of a fully trained copy may share weights."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    kept = {}
    for name, tensor in state.items():
        place = tensor.data_ptr(), tuple(tensor.shape), tensor.stride()
        if tensor.numel() == 0 or place not in seen:
            seen.add(place)
            kept[name] = tensor
    return kept


def write(folder: Path, state: Mapping[str, Tensor], identity: Mapping[str, Any]) -> None:
    """Our part of a checkpoint; see the module's docstring."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / STATE, metadata={"format": "pt"})
    (folder / IDENTITY).write_text(json.dumps(identity, indent=2))


def why_not_written(error: BaseException, folder: Path) -> str:
    """Why writing below `folder` failed, in words of people: torch and safetensors tell of a full disk in their own."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    full = isinstance(error, OSError) and error.errno in numbers
    full = full or any(f"os error {number}" in str(error) for number in numbers)
    if not full and not isinstance(error, OSError):
        with contextlib.suppress(OSError):
            full = shutil.disk_usage(folder).free < NEARLY_FULL
    if full:
        return "no space left on the disk"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return reason.partition("\n")[0] or type(error).__name__


def restore(model: PromptedModel, folder: Path) -> None:
    """Put a checkpoint's tensors into the model's method.

    Raises:
        ArtifactError: they cannot be read, or do not fit the method.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ..artifacts import check_tensors

    try:
        tensors = load_file(folder / STATE)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"cannot read {folder / STATE} ({error}); resume from an earlier checkpoint") from error
    method = model.method
    check_tensors(str(folder / STATE), tensors, each_once(method.state_dict()), model.method_name)
    method.load_state_dict(tensors, strict=False)  # names of shared tensors are complete with one of them


def check_resumable(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises ArtifactError if `folder` holds no complete checkpoint of a run that is known by `identity`."""
    if not is_complete(folder):
        raise ArtifactError(f"{folder} is no complete checkpoint; expected {STATE}, {IDENTITY}, {TRAINER_STATE}")
    try:
        saved = json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {folder / IDENTITY} ({error}); resume from an earlier checkpoint") from error
    if changed := differences(saved, json.loads(json.dumps(identity))):
        raise ArtifactError(
            f"{folder} is of another run: {'; '.join(changed)}; resume with the settings it was trained with, or "
            "train anew"
        )


def items_identity(items: Sequence[Any], labels_of: Callable[[Any], bytes]) -> dict[str, Any]:
    """How many images, and a digest of names, contents and labels in order; the same wherever the data set lies."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.short_key}\0{content_stamp(item)}\0".encode())
        digest.update(labels_of(item) + b"\0")
    return {"training_images": len(items), "training_data": digest.hexdigest()[:16]}


def differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """ "seed was 1, now 2" for every entry that differs; of the same method, each setting of its `config` too."""
    if saved.get("method") == ours.get("method"):
        saved, ours = ({**table, **(table.get("config") or {})} for table in (saved, ours))
    told = []
    for key in dict.fromkeys([*ours, *saved]):
        was, now = saved.get(key, _ABSENT), ours.get(key, _ABSENT)
        if key != "config" and was != now:
            told.append(f"{key} was {_short(was)}, now {_short(now)}")
    return told


def _short(value: Any) -> str:
    text = "not set" if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
