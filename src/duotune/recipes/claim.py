"""A folder to write into, for one process at a time; found out before any work is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .. import artifacts
from ..endings import current
from ..errors import ArtifactError, ConfigError
from ..training import last_checkpoint
from ..writing import refuse_links, sweep

LOCK, CHECKPOINTS, WRITTEN = ".lock", "checkpoints", "recipe.yaml"


def check_folder(folder: str | Path, resume: bool = False, overwrite: bool = False) -> None:
    """Whether a run may go into a folder; nothing is imported, made or written for it.

    Raises:
        ArtifactError: it holds a run, and neither `resume` nor `overwrite` is wanted. ConfigError: both are.
    """
    folder = Path(folder)
    finished, begun = (folder / artifacts.DESCRIPTION).exists(), last_checkpoint(folder / CHECKPOINTS)
    if resume and overwrite:
        raise ConfigError("resume goes on with a run, overwrite starts anew; choose one")
    if (finished or begun) and not resume and not overwrite:
        what = "an artifact" if finished else f"an unfinished run (last checkpoint: {Path(begun).name})"
        raise ArtifactError(f"{folder} holds {what} already; choose another folder, or --resume, or --overwrite")


@contextlib.contextmanager
def claimed(folder: str | Path) -> Iterator[Path]:
    """The folder, made if absent, while no other process writes into it.

    The lock is the operating system's, so that of a process that has died is free. What was made here and is empty
    at the end is removed: a run that never began leaves nothing.

    The folder may be a symbolic link to one; what lies in it may not lead out of it.

    Raises:
        ArtifactError: the folder cannot be made or written into, another process holds it, or its lock or folder of
            checkpoints is a symbolic link.
    """
    folder = Path(folder)
    with _made(folder), _held():
        refuse_links(folder, LOCK, CHECKPOINTS, f"{CHECKPOINTS}/runs")
        path = folder / LOCK
        lock = FileLock(path, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ArtifactError(
                f"another run{_holder(path)} is writing into {folder}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            path.write_text(f"{os.getpid()}\n")
            sweep(folder)
            yield folder
        finally:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # still held: whoever opens it from now on makes a new one
            lock.release()


def check_writable(file: str | Path) -> None:
    """Raises ArtifactError, before any work, if a file cannot be written at this path. Leaves nothing."""
    file = Path(file)
    if file.is_dir():
        raise ArtifactError(f"{file} is a folder; expected a file to write")
    with _made(file.parent):
        probe = file.with_name(f".{file.name}.{os.getpid()}.probe")
        try:
            probe.touch()
        except OSError as error:
            raise _unwritable(file.parent, error) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


_claims = 0


@contextlib.contextmanager
def _held() -> Iterator[None]:
    """A signal may not end the process before the lock, and what was made for nothing, are gone."""
    global _claims
    current().holds = lambda: _claims > 0
    _claims += 1
    try:
        yield
    finally:
        _claims -= 1


def check_inputs(folder: str | Path, **inputs: str | None) -> None:
    """Whether a folder to write into keeps clear of what is read: it may not be, or hold, one of `inputs`.

    Args:
        inputs: name of an option -> path; names of data sets and models, which are no paths, are passed over.

    Raises:
        ArtifactError: the folder holds an input, which writing or `overwrite` could damage.
    """
    out = Path(folder).expanduser().resolve()
    for name, path in inputs.items():
        if not path or not (read := Path(path).expanduser()).exists():
            continue
        read = read.resolve()
        if out == read or out in read.parents:
            raise ArtifactError(
                f"{folder} {'is' if out == read else 'holds'} the {name} {path}, which a run must not write into; "
                "choose another folder"
            )


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; expected a folder to write into")
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield
    finally:
        for path in absent:  # the innermost first
            try:
                path.rmdir()
            except OSError:  # it holds something now, or was never made
                break


def _unwritable(folder: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot write into {folder}: {error.strerror or error}; choose another folder")


def _holder(path: Path) -> str:
    try:
        return f" (process {int(path.read_text())})"
    except (OSError, ValueError):
        return ""


__all__ = ["CHECKPOINTS", "LOCK", "WRITTEN", "check_folder", "check_inputs", "check_writable", "claimed"]
