"""Checkpoints: what lies in one, what it is known by, and which is the last.

    checkpoint-STEP/
      model.safetensors     the method's state alone
      checkpoint.json       what must be the same for a run to go on as if it had never stopped
      trainer_state.json    where training stands, written by transformers
      optimizer.pt, scheduler.pt, rng_state.pth, ...    likewise
      manifest.json         the step, and the SHA-256 of every other file; written last, in one piece

A folder without a manifest is no checkpoint. One whose files are not those of its manifest (altered, missing, added, of
another step) is refused before anything of it is loaded. Anybody can write a manifest anew, so what is loaded is held
against the run as well (`resuming`); no file can make code run. Nothing heavy is imported to find the last checkpoint.
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
from ..errors import ArtifactError, one_line
from ..reading import MAX_DESCRIPTION_BYTES, because, read_json, shown
from ..writing import remove, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from ..model import PromptedModel

MANIFEST, STATE, IDENTITY, TRAINER_STATE = "manifest.json", "model.safetensors", "checkpoint.json", "trainer_state.json"
OPTIMIZER, SCHEDULE = "optimizer.pt", "scheduler.pt"
BEFORE = "remove it to resume from the checkpoint before it, or train anew"
NEARLY_FULL = 1 << 20  # bytes
_ABSENT = object()


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return (folder / MANIFEST).is_file()


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The complete checkpoint with the most steps in a folder; unfinished ones are passed over."""
    found = [(_step(path), path) for path in folders(output_dir) if is_complete(path)]
    return str(max(found)[1]) if found else None


def folders(output_dir: str | os.PathLike) -> list[Path]:
    """All checkpoints of a folder, finished or not, those of fewest steps first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=_step)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


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
    """Our part of a checkpoint but for its manifest; see the module's docstring."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), folder / STATE, metadata={"format": "pt"})
    write_text(folder / IDENTITY, json.dumps(identity, indent=2))


def seal(folder: Path, step: int) -> None:
    """Write the manifest of a checkpoint whose other files are there: from now on it is complete."""
    files = {name: _digest(folder / name) for name in _files(folder)}
    write_text(folder / MANIFEST, json.dumps({"step": step, "files": files}, indent=2))


def discard(folder: Path) -> None:
    """Remove a checkpoint, its manifest first: what is left of it if that is cut short is no checkpoint."""
    if folder.is_dir() and not folder.is_symlink():
        remove(folder / MANIFEST)
    remove(folder)


def keep_newest(output_dir: str | os.PathLike, limit: int | None, newest: Path, best: Path | None) -> None:
    """Discard those of fewest steps until `limit` are left (None: keep all); never the newest, or the best."""
    kept = {newest, best} - {None}
    others = [folder for folder in folders(output_dir) if folder not in kept]
    for folder in others[: max(0, len(others) + len(kept) - limit)] if limit else []:
        discard(folder)


def _files(folder: Path) -> list[str]:
    """Names of a checkpoint's files but the manifest; what systems leave in every folder (.DS_Store) is none."""
    paths = (path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [name for name in names if name != MANIFEST and not name.rpartition("/")[2].startswith(".")]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        raise ArtifactError(f"cannot read {folder / STATE} ({because(error)}); {BEFORE}") from error
    method = model.method
    check_tensors(str(folder / STATE), tensors, each_once(method.state_dict()), model.method_name)
    method.load_state_dict(tensors, strict=False)  # names of shared tensors are complete with one of them


def check_resumable(folder: Path, identity: Mapping[str, Any]) -> int:
    """The step of a checkpoint that is whole and of the run that is known by `identity`; tensors are not loaded.

    Raises:
        ArtifactError: it is not complete, one of its files is not what was written, or it is of another run.
    """
    if not is_complete(folder):
        raise ArtifactError(f"{folder} is no complete checkpoint: it has no {MANIFEST}; {BEFORE}")
    step = check_files(folder)
    saved = read_json(folder / IDENTITY, "what the run is known by", ArtifactError, MAX_DESCRIPTION_BYTES)
    if not isinstance(saved, dict):
        raise ArtifactError(f"{folder / IDENTITY} holds no table of settings; {BEFORE}")
    if changed := differences(saved, json.loads(json.dumps(identity))):
        raise ArtifactError(
            f"{folder} is of another run: {'; '.join(changed)}; resume with the settings it was trained with, or "
            "train anew"
        )
    return step


def check_files(folder: Path) -> int:
    """The step of a checkpoint whose files are those that its manifest names.

    Raises:
        ArtifactError: by name, the first file that is missing, altered, added, or the manifest itself.
    """
    manifest = read_json(folder / MANIFEST, "a checkpoint's manifest", ArtifactError, MAX_DESCRIPTION_BYTES)
    step, files = (manifest.get(key) if isinstance(manifest, dict) else None for key in ("step", "files"))
    if not isinstance(step, int) or step < 0 or not isinstance(files, dict):
        raise ArtifactError(f"{folder / MANIFEST} is no checkpoint's manifest; {BEFORE}")
    if folder.name.startswith("checkpoint-") and folder.name != f"checkpoint-{step}":
        raise ArtifactError(f"{folder} holds the checkpoint of step {step}; {BEFORE}")
    there = set(_files(folder))
    told = "cannot read the checkpoint {}: {} {}; {}"
    generators = next((name for name in files if name.startswith("rng_state")), "rng_state.pth")  # one per process
    for name in dict.fromkeys((STATE, IDENTITY, TRAINER_STATE, OPTIMIZER, SCHEDULE, generators, *files)):
        if name not in files or name not in there:
            raise ArtifactError(told.format(folder, shown(name), "is missing", BEFORE))
    for name in sorted(there):
        if name not in files:
            raise ArtifactError(told.format(folder, shown(name), "is no part of it", "remove that file"))
        try:
            same = _digest(folder / name) == files[name]
        except OSError as error:
            raise ArtifactError(told.format(folder, name, because(error), BEFORE)) from error
        if not same:
            raise ArtifactError(told.format(folder, name, "is not the file that was written with it", BEFORE))
    return step


def items_identity(items: Sequence[Any], labels_of: Callable[[Any], bytes]) -> dict[str, Any]:
    """How many images, and a digest of names, contents and labels in order; the same wherever the data set lies."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.short_key}\0{content_stamp(item)}\0".encode(errors="surrogatepass"))
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
            told.append(f"{one_line(str(key), 60)} was {_short(was)}, now {_short(now)}")
    return told


def _short(value: Any) -> str:
    return "not set" if value is _ABSENT else shown(value, 60)
