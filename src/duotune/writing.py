"""Files that appear whole or not at all: written beside their place under a name of their own, then moved there.

A process that is killed, or a disk that is full, leaves what was there. A symbolic link at the place is replaced by the
file, never followed, so that nothing is written elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import ArtifactError

_PART = re.compile(r"\..+\.[0-9a-f]{12}\.part", re.DOTALL)


def write_bytes(path: str | Path, content: bytes, lasting: bool = True) -> Path:
    """Write a file, made with its folders if absent.

    Args:
        lasting: wait until it is on the disk, where a power cut leaves it.

    Raises:
        OSError: it cannot be written; `filename` is `path`.
    """
    path = Path(path)
    with _named(path), _part(path) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(part, content, lasting)
        os.replace(part, path)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 file, made with its folders if absent. What is no text, as in file names of other encodings, is
    escaped as JSON escapes it."""
    return write_bytes(path, text.encode(errors="backslashreplace"))


def write_together(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together: all are written before the first is moved, and one that cannot be moved puts
    back those before it.

    Raises:
        OSError: as `write_bytes`.
    """
    folder = Path(folder)
    before: dict[Path, bytes | None] = {}
    with contextlib.ExitStack() as stack:
        parts = {}
        for name, content in files.items():
            parts[name] = stack.enter_context(_part(folder / name))
            with _named(folder / name):
                folder.mkdir(parents=True, exist_ok=True)
                _write(parts[name], content, lasting=True)
        try:
            for name, part in parts.items():
                path = folder / name
                with _named(path):
                    before[path] = path.read_bytes() if path.is_file() else None
                    os.replace(part, path)
        except BaseException:  # Ctrl-C between two of them as well
            for path, was in before.items():
                path.unlink(missing_ok=True) if was is None else write_bytes(path, was)
            raise


@contextlib.contextmanager
def folder_beside(folder: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder to write into; it becomes `folder` when the block ends well.

    Args:
        overwrite: what is at `folder` goes, once the new one is whole; without it only an empty one may be there.
    """
    folder = Path(folder)
    with _named(folder), _part(folder) as part:
        part.mkdir(parents=True)
        yield part
        if overwrite:
            remove(folder)
        os.replace(part, folder)


def sweep(folder: str | Path) -> None:
    """Remove what processes that were killed left half-written in a folder; whoever calls it is the only writer."""
    for path in Path(folder).glob(".*.part"):
        if _PART.fullmatch(path.name):
            remove(path)


def remove(path: str | Path) -> None:
    """Remove a folder with all that is in it, or a file; of a symbolic link the link alone. Nothing if absent."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def refuse_links(folder: str | Path, *names: str) -> None:
    """Raises ArtifactError if one of these names in a folder is a symbolic link, which would lead out of it."""
    for name in names:
        if (path := Path(folder) / name).is_symlink():
            raise ArtifactError(
                f"{path} is a symbolic link to {os.readlink(path)}; nothing is written through links inside the "
                "folder; remove it, or choose another folder"
            )


def _write(path: Path, content: bytes, lasting: bool) -> None:
    with open(path, "xb") as file:
        file.write(content)
        if lasting:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def _part(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody else has; nothing is left there."""
    part = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
    finally:
        with contextlib.suppress(OSError):
            remove(part)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors of the operating system name the file that was to be written: a full disk tells none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and (error.filename is None or str(error.filename).endswith(".part")):
            error.filename, error.filename2 = str(path), None
        raise


__all__ = ["folder_beside", "refuse_links", "remove", "sweep", "write_bytes", "write_text", "write_together"]
