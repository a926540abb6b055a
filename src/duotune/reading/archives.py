"""Zip archives of others, read member by member within limits; nothing is unpacked to disk.

The limits are the constants of this module; `docs/limits.md` lists them.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import zipfile
import zlib
from pathlib import Path

from ..errors import MAX_SHOWN, DataError, DuotuneError, because, one_line, shown
from . import MAX_WEIGHT_BYTES, check_file

MAX_MEMBERS = 5_000_000  # files in an archive; ImageNet has 1.3 million
MAX_MEMBER_BYTES = 512 * 2**20  # one file of an archive, unpacked
MAX_RATIO, RATIO_FREE_BYTES = 200, 16 * 2**20  # unpacked to packed size of what is larger than the second
_BLOCK = 2**20
_SMALL_BLOCK = 2**12  # one byte of bz2 and lzma may stand for many thousands


def member_name(info: zipfile.ZipInfo) -> str:
    """The name of a member as its maker meant it: "/" between folders; UTF-8 even where the maker did not say so.

    Without its flag a name is in the code page of old DOS; yet many packers write UTF-8. A text that is valid UTF-8 and
    not ASCII is hardly ever anything else.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass
    name = name.replace("\\", "/")
    return re.sub(r"(?<=/)(\./|/)+|^(\./+)+", "", name)  # "./a//b" is "a/b"


def has_unknown_letters(info: zipfile.ZipInfo) -> bool:
    """Whether the name of a member has letters in a code page that the archive does not tell."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return False
    try:
        stored = info.filename.encode("cp437")  # undoes what zipfile takes for granted
    except UnicodeEncodeError:
        return False  # from a second, Unicode field
    try:
        stored.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


class Archive:
    """A zip archive open for reading. Nothing is unpacked to disk.

    Attributes:
        path: of the archive.
        names: of its files, in the archive's order, with "/" between folders; see `member_name`.
        folders: of its own entries for folders, which end with "/"; few archives have one for each folder.
        unclear: those names whose letters are not known; see `has_unknown_letters`.

    Args:
        path: of a regular file.
        what: what was expected there.
        error: what to raise, on opening and in `read`.

    Raises:
        DuotuneError: of the kind `error`: no zip archive, more than `MAX_MEMBERS` files, a name that leaves the archive
            (absolute, or through ".."), or one name with two contents.
    """

    def __init__(
        self, path: str | os.PathLike[str], what: str = "a zip archive", error: type[DuotuneError] = DataError
    ):
        self.path = check_file(path, what, error)
        self._error = error
        try:
            self._zip = zipfile.ZipFile(self.path)
        except Exception as fault:  # a broken directory fails with whatever the broken field leads to
            raise error(f"cannot read the zip archive {self.path}: {because(fault)}; expected {what}") from fault
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.folders: list[str] = []
        self.unclear: set[str] = set()
        try:
            self._list()
        except BaseException:
            self.close()
            raise
        self.names: tuple[str, ...] = tuple(self._members)

    def _list(self) -> None:
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise self._error(f"{self.path} holds {len(members):,} files; the limit is {MAX_MEMBERS:,}")
        for info in members:
            name = member_name(info)
            if has_unknown_letters(info):
                self.unclear.add(name)
            if name.startswith("/") or name[1:3] == ":/" or ".." in name.split("/"):
                raise self._error(
                    f"{self.path} holds {shown(name)}, a name that leaves the archive; pack the folder again"
                )
            if name.endswith("/"):
                self.folders.append(name)
                continue
            same = self._members.setdefault(name, info)
            if (same.CRC, same.file_size) != (info.CRC, info.file_size):
                raise self._error(f"{self.path} holds {shown(name)} twice, with different contents; pack it again")

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked, as the archive says. Raises KeyError if there is none."""
        return self._members[name].file_size

    def check_size(self, name: str, limit: int | None = None) -> int:
        """The largest number of bytes that a file may have. Raises `DuotuneError` if it cannot be read, or says that it
        has more; see `read`."""
        info = self._member(name)
        where = f"{self.path}::{one_line(name, MAX_SHOWN)}"
        if info.create_system == 3 and stat.S_ISLNK(info.external_attr >> 16):  # 3: written on Unix
            raise self._error(f"{where} is a symbolic link; pack the file itself")
        if info.flag_bits & 1:
            raise self._error(f"{where} is encrypted; unpack the archive with its password, and pack it without")
        packed = min(info.compress_size, self.path.stat().st_size)
        most = min(MAX_MEMBER_BYTES if limit is None else limit, max(RATIO_FREE_BYTES, packed * MAX_RATIO))
        if info.file_size > most:
            raise self._error(f"{where} has {info.file_size:,} bytes unpacked; the limit is {most:,}")
        return most

    def _member(self, name: str) -> zipfile.ZipInfo:
        info = self._members.get(name) or self._zip.NameToInfo.get(name)
        if info is None:
            raise self._error(f"no file {shown(name)} in {self.path}")
        return info

    def read(self, name: str, limit: int | None = None) -> bytes:
        """The content of one file, by its name in `names` or as stored.

        What is unpacked is counted, whatever the archive says of its size; `limit` None is `MAX_MEMBER_BYTES`.

        Raises:
            DuotuneError: no such file, a symbolic link, encrypted, packed in a way that Python does not read, broken,
                more than `limit` bytes, or packed more than `MAX_RATIO` times as small.
        """
        most, info = self.check_size(name, limit), self._member(name)
        where = f"{self.path}::{one_line(name, MAX_SHOWN)}"
        small = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        parts, count = [], 0
        try:
            with self._zip.open(info) as file:
                while block := file.read(_SMALL_BLOCK if small else _BLOCK):
                    parts.append(block)
                    count += len(block)
                    if count > most:
                        break
        except (
            *(OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError),
            *(ValueError, IndexError, KeyError, AttributeError, TypeError),  # of a broken header
        ) as fault:
            raise self._error(f"cannot unpack {where}: {because(fault)}; pack or download it again") from fault
        if count > most:
            raise self._error(f"{where} has more bytes unpacked than the limit of {most:,}")
        if count != info.file_size:
            raise self._error(f"{where} has {count:,} bytes, not {info.file_size:,}; pack or download it again")
        return b"".join(parts)


def check_packed(path: Path, error: type[DuotuneError] = DataError) -> None:
    """Of a file that a library unpacks by itself, such as a checkpoint. Raises `error` if it is a zip archive and
    `Archive.read` would refuse one of its files for its size."""
    if not zipfile.is_zipfile(path):
        return
    with Archive(path, "a checkpoint", error) as archive:
        for name in archive.names:
            archive.check_size(name, MAX_WEIGHT_BYTES)


__all__ = ["Archive", "check_packed", "has_unknown_letters", "member_name"]
