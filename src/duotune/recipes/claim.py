"""A folder to write into, for one process at a time; found out before any work is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .. import artifacts
from ..errors import ArtifactError, ConfigError
from ..training import last_checkpoint

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

    Raises:
        ArtifactError: the folder cannot be made or written into, or another process holds it.
    """
    folder = Path(folder)
    with _made(folder):
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


__all__ = ["CHECKPOINTS", "LOCK", "WRITTEN", "check_folder", "check_writable", "claimed"]
