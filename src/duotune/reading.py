"""One guarded way to read what others wrote: files, text, JSON, YAML, zip archives.

    check_file(path, what)             a regular file: no pipe, device, socket or folder, whose reading may never end
    read_bytes(path, what)             its content, up to a limit
    read_text(path, what)              its text: UTF-8, with or without a byte order mark, or UTF-16 with one
    decode_text(content, where)        the same of bytes that are already here
    read_json(path, what)              its JSON: standard, not too deep, numbers that 64 bits hold, no key twice
    parse_json(content, where)         the same of text or bytes that are already here
    read_yaml(path, what)              its YAML: plain values alone, aliases that do not multiply, the rest as of JSON
    parse_yaml(content, where)         the same of text or bytes that are already here
    parse_xml(content, where)          the tree of an XML document without entities or a document type
    Archive(path)                      a zip archive: `names`, `read(name)`, `size(name)`; nothing is unpacked to disk

`what` says in a few words what was expected there ("a recipe (YAML)"), `where` names the source of a content; both go
into messages. Every function takes `error`, the kind of `DuotuneError` to raise (default `DataError`): one line that
names the file, what is wrong and what to do. The limits are the constants of this module; `docs/limits.md` lists them.
"""

from __future__ import annotations

import codecs
import json
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MAX_SHOWN, DataError, DuotuneError, because, one_line, shown

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_TEXT_BYTES = 2 * 2**30  # LVIS, the largest published annotations, has 1.1 GB
MAX_DESCRIPTION_BYTES = 64 * 2**20  # of the small files that describe others: prompt.json, config.json, ...
MAX_WEIGHT_BYTES = 32 * 2**30  # of one file of weights
MAX_YAML_BYTES = 2**20
MAX_YAML_VALUES = 100_000  # once aliases are written out
MAX_NESTING = 64  # lists and objects in each other
MAX_INTEGER = 2**63 - 1  # what 64 bits hold, and what NumPy and torch calculate with
MAX_XML_BYTES = 64 * 2**20
MAX_CLASSES = 100_000  # ImageNet-21k has 21,841
MAX_MEMBERS = 5_000_000  # files in an archive; ImageNet has 1.3 million
MAX_MEMBER_BYTES = 512 * 2**20  # one file of an archive, unpacked
MAX_RATIO, RATIO_FREE_BYTES = 200, 16 * 2**20  # unpacked to packed size of what is larger than the second

_BLOCK = 2**20
_SMALL_BLOCK = 2**12  # one byte of bz2 and lzma may stand for many thousands
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


# ---------------------------------------------------------------------------------------------------- files


def check_file(path: str | os.PathLike[str], what: str = "a file", error: type[DuotuneError] = DataError) -> Path:
    """The path, if it is a regular file, or a link to one. Raises `error` otherwise."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise error(f"no such file: {os.fspath(path)}; expected {what}") from None
    except (OSError, ValueError) as fault:  # ValueError: a NUL in the name, or characters no file name can have
        raise error(f"cannot read {shown(os.fspath(path))}: {because(fault)}; expected {what}") from fault
    if not stat.S_ISREG(mode):
        kind = next((word for test, word in _KINDS if test(mode)), "no regular file")
        raise error(f"{os.fspath(path)} is {kind}; expected {what}")
    return Path(path)


def read_bytes(
    path: str | os.PathLike[str],
    what: str = "a file",
    error: type[DuotuneError] = DataError,
    limit: int = MAX_TEXT_BYTES,
) -> bytes:
    """The content of a regular file. Raises `error` if it cannot be read, or has more than `limit` bytes."""
    path = check_file(path, what, error)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(size + 1) if size <= limit else None  # no more is asked for: memory is taken for all
    except OSError as fault:
        raise error(f"cannot read {path}: {because(fault)}; expected {what}") from fault
    if content is None or len(content) > limit:
        raise error(f"{path} is larger than the limit of {limit:,} bytes; expected {what}")
    return content


# ---------------------------------------------------------------------------------------------------- text

# the longer mark first: that of UTF-32 begins with that of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(content: bytes, where: str, error: type[DuotuneError] = DataError) -> str:
    """The text of a file's bytes: UTF-8, or what its byte order mark says. The mark is no part of the text.

    Raises:
        DuotuneError: of the kind `error`: another encoding, by the first byte that does not fit.
    """
    mark, encoding = next((pair for pair in _MARKS if content.startswith(pair[0])), (b"", "utf-8"))
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as fault:
        place = len(mark) + fault.start
        line = content[:place].count(b"\n") + 1
        raise error(
            f"{where} is no {encoding.upper()} text: byte {content[place]:#04x} at position {place} (line {line}); "
            "save it as UTF-8"
        ) from fault


def read_text(
    path: str | os.PathLike[str],
    what: str = "a text file",
    error: type[DuotuneError] = DataError,
    limit: int = MAX_TEXT_BYTES,
) -> str:
    """The text of a regular file, see `decode_text`. Raises `error` if it cannot be read or is too large."""
    return decode_text(read_bytes(path, what, error, limit), os.fspath(path), error)


# ---------------------------------------------------------------------------------------------------- JSON


def _integer(text: str) -> int:
    if len(text) > 18 and not (len(text) < 21 and abs(int(text)) <= MAX_INTEGER):
        raise ValueError(f"the whole number {one_line(text, 40)} is beyond 64 bits")
    return int(text)


def _wide_integer(text: str) -> int:
    if len(text) > 100:
        raise ValueError(f"the whole number {one_line(text, 40)} has {len(text):,} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError(f"the number {one_line(text, 40)} is beyond double precision")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen and seen[key] != value:
                raise ValueError(f"one object has the key {shown(key, 60)} twice, with different values")
            seen[key] = value
    return made


def _depth_fits(value: Any, limit: int) -> bool:
    """Without recursion. Level by level, because that is one comprehension a level: files have millions of lists."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        level = [v for c in level for v in (c.values() if type(c) is dict else c) if type(v) in (dict, list)]
    return not level


def parse_json(
    content: str | bytes,
    where: str,
    error: type[DuotuneError] = DataError,
    nonfinite: bool = False,
    wide: bool = False,
) -> Any:
    """The value of a JSON text.

    Args:
        content: text, or bytes as `decode_text` reads them.
        where: names the source in messages.
        nonfinite: allow NaN and Infinity, which Python writes though JSON has none, and numbers that overflow.
        wide: allow whole numbers of more than 64 bits, such as the `model_max_length` of tokenizers.

    Raises:
        DuotuneError: of the kind `error`: no JSON; lists and objects nested more than `MAX_NESTING` deep; a whole
            number beyond 64 bits; a number that is not finite; an object with two values of one key.
    """
    text = decode_text(content, where, error) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    hooks: dict[str, Any] = {"object_pairs_hook": _object, "parse_int": _wide_integer if wide else _integer}
    if not nonfinite:
        hooks |= {"parse_float": _real, "parse_constant": _constant}
    try:
        value = json.loads(text, **hooks)
        deep = not _depth_fits(value, MAX_NESTING)
    except RecursionError:
        deep = True
    except ValueError as fault:  # JSONDecodeError, and what the hooks find
        raise error(f"{where} is not valid JSON: {because(fault)}; export, write or copy it again") from fault
    if deep:
        raise error(f"{where} nests lists and objects more than {MAX_NESTING} deep; write it flatter")
    return value


def read_json(
    path: str | os.PathLike[str],
    what: str = "a JSON file",
    error: type[DuotuneError] = DataError,
    limit: int = MAX_TEXT_BYTES,
    nonfinite: bool = False,
    wide: bool = False,
) -> Any:
    """The value of a JSON file, see `parse_json`. Raises `error` if it cannot be read or is too large."""
    return parse_json(read_text(path, what, error, limit), os.fspath(path), error, nonfinite, wide)


# ---------------------------------------------------------------------------------------------------- YAML


def _measure(node: Any, sizes: dict[int, int], depth: int) -> int:
    """Number of values that a YAML node stands for, its aliases written out. Raises ValueError beyond the limits."""
    if depth > MAX_NESTING:
        raise ValueError(f"lists and mappings are nested more than {MAX_NESTING} deep")
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise ValueError("an alias stands inside of what it names")
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node.value, list):
        pairs = bool(node.value) and isinstance(node.value[0], tuple)
        keys: set[tuple[str, str]] = set()
        for key in [key for key, _ in node.value if isinstance(key.value, str) and key.value != "<<"] if pairs else []:
            if (key.tag, key.value) in keys:
                raise ValueError(f"line {key.start_mark.line + 1} gives the key {shown(key.value, 60)} again")
            keys.add((key.tag, key.value))
        for child in (n for pair in node.value for n in pair) if pairs else node.value:
            size += _measure(child, sizes, depth + 1)
            if size > MAX_YAML_VALUES:
                raise ValueError(f"it holds more than {MAX_YAML_VALUES:,} values")
    sizes[id(node)] = size
    return size


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _numbers(pair)


def parse_yaml(content: str | bytes, where: str, error: type[DuotuneError] = DataError) -> Any:
    """The value of a YAML text: plain values alone, no Python objects; None if it is empty.

    Raises:
        DuotuneError: of the kind `error`: no YAML, or larger than `MAX_YAML_BYTES`; a scalar that has no value
            (`2024-99-99`, `!!int x`); nested more than `MAX_NESTING` deep; more than `MAX_YAML_VALUES` values once its
            aliases are written out; a key twice; a number beyond 64 bits or not finite.
    """
    import yaml

    text = decode_text(content, where, error) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    if len(text) > MAX_YAML_BYTES:
        raise error(f"{where} is larger than the limit of {MAX_YAML_BYTES:,} bytes; expected a short YAML file")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        value = loader.construct_document(node)
        for number in _numbers(value):
            if isinstance(number, int) and abs(number) > MAX_INTEGER:
                raise ValueError(f"the whole number {shown(number, 40)} is beyond 64 bits")
            if number - number != 0:
                raise ValueError(f"{number} is no finite number")
        return value
    except RecursionError as fault:
        raise error(f"{where} nests lists and mappings more than {MAX_NESTING} deep; write it flatter") from fault
    except Exception as fault:  # a scalar that does not fit its tag fails with whatever its conversion raises
        reason = because(fault)
        if isinstance(fault, yaml.MarkedYAMLError) and fault.problem_mark is not None:
            reason = f"{one_line(str(fault.problem), MAX_SHOWN)} (line {fault.problem_mark.line + 1})"
        raise error(f"{where} is not valid YAML: {reason}") from fault
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(
    path: str | os.PathLike[str],
    what: str = "a YAML file",
    error: type[DuotuneError] = DataError,
) -> Any:
    """The value of a YAML file, see `parse_yaml`. Raises `error` if it cannot be read or is too large."""
    return parse_yaml(read_text(path, what, error, MAX_YAML_BYTES), os.fspath(path), error)


# ---------------------------------------------------------------------------------------------------- XML


def parse_xml(content: bytes, where: str, error: type[DuotuneError] = DataError) -> Element:
    """The root of an XML document, in whatever encoding it says.

    Raises:
        DuotuneError: of the kind `error`: no XML, or larger than `MAX_XML_BYTES`; elements nested more than
            `MAX_NESTING` deep; a document type, which may declare entities that multiply or stand for other files.
    """
    from xml.etree.ElementTree import TreeBuilder
    from xml.parsers import expat

    if len(content) > MAX_XML_BYTES:
        raise error(f"{where} is larger than the limit of {MAX_XML_BYTES:,} bytes; expected a short XML file")
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_NESTING:
            raise error(f"{where} nests elements more than {MAX_NESTING} deep; write it flatter")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise error(f"{where} has a document type (<!DOCTYPE ...>), which is not read; remove it")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as fault:  # an encoding that is unknown, or has no table
        raise error(f"{where} is not valid XML: {because(fault)}; export, write or copy it again") from fault
    return builder.close()


# ---------------------------------------------------------------------------------------------------- archives


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


__all__ = [
    "Archive",
    "because",
    "check_file",
    "check_packed",
    "decode_text",
    "member_name",
    "parse_json",
    "parse_xml",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "shown",
]
