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
    archives.Archive(path)             a zip archive: `names`, `read(name)`, `size(name)`; nothing is unpacked to disk

`what` says in a few words what was expected there ("a recipe (YAML)"), `where` names the source of a content; both go
into messages. Every function takes `error`, the kind of `DuotuneError` to raise (default `DataError`): one line that
names the file, what is wrong and what to do. The limits are the constants of this module; `docs/limits.md` lists them.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MAX_SHOWN, DataError, DuotuneError, because, one_line, shown

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
    except DuotuneError:
        raise
    except (expat.ExpatError, ValueError, LookupError) as fault:  # an encoding that is unknown, or has no table
        raise error(f"{where} is not valid XML: {because(fault)}; export, write or copy it again") from fault
    return builder.close()
