"""A table of labelled pictures: the rows of a CSV file, or of Hugging Face's `metadata.csv` and `metadata.jsonl`.

Columns are found by name, whatever their case: `path`, `label` and, if there is one, `split`; else one of the other
usual names below. CSV may be separated by comma, semicolon, tab or "|", whichever makes a header with these columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import DataError
from ..reading import decode_text, parse_json, shown
from .base import ImageItem, clean_class_name, clean_class_names, first_few
from .layout import plain_name, split_of

T = TypeVar("T")

COLUMNS = {
    "path": "path file_name filename file filepath file_path filepaths image_path image_file image_file_name "
    "image_name image img img_path img_name".split(),
    "label": "label class class_name classname label_name category target labels".split(),
    "split": "split subset set partition phase data_set dataset".split(),
}
"""What a column says -> its usual names; the first one goes before all others."""
SPLIT_MARKS = frozenset("is_train is_val is_valid is_validation is_test".split())
"""Columns that tell a split in a way that is not read."""
DELIMITERS = (",", ";", "\t", "|")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Row:
    """One picture as a table tells it: line (from 1), file name, label, and split ("" if the table has none)."""

    line: int
    path: str
    label: str
    split: str


def _plain(column: str) -> str:
    return column.strip().casefold().replace(" ", "_").replace("-", "_")


def _find_columns(columns: Sequence[str], where: str) -> dict[str, int]:
    """What it says -> number of the column; without those that are absent. Raises DataError if several would do."""
    found: dict[str, int] = {}
    plain = [_plain(column) for column in columns]
    for kind, names in COLUMNS.items():
        places = [i for i, column in enumerate(plain) if column in names]
        exact = [i for i in places if plain[i] == names[0]]
        if len(exact or places) > 1:
            several = [columns[i] for i in (exact or places)]
            raise DataError(f"{where} has several columns that may be the {kind}: {several}; call one {names[0]!r}")
        if places:
            found[kind] = (exact or places)[0]
    return found


def _columns_needed(columns: Sequence[str], where: str) -> dict[str, int]:
    found = _find_columns(columns, where)
    if "split" not in found and (marks := [column for column in columns if _plain(column) in SPLIT_MARKS]):
        raise DataError(f"{where} has the columns {marks}, but no column split; write train, val or test in one")
    if missing := [kind for kind in ("path", "label") if kind not in found]:
        raise DataError(f"{where} lacks the columns {missing}; expected path,label[,split], found {list(columns)}")
    return found


def _row(line: int, cells: Sequence[str], columns: Sequence[str], found: dict[str, int], where: str) -> Row:
    path, label, split = (cells[found[kind]].strip() if kind in found else "" for kind in COLUMNS)
    if broken := next((cell for cell in (path, label) if "\n" in cell or "\r" in cell), None):
        raise DataError(
            f"{where}, line {line}: a line ends within {shown(broken, 80)}; close its quotes, and write path and label "
            "in one line each"
        )
    if not path or not label:
        raise DataError(f"{where}, line {line}: path and label must not be empty")
    if "split" in found and not split_of(split):
        column = columns[found["split"]]
        raise DataError(
            f"{where}, line {line}: split must be train, val or test, not {split!r}; call the column {column!r} "
            "otherwise if it tells something else"
        )
    return Row(line, path, plain_name(label), split_of(split) or "")


def _csv_rows(text: str, delimiter: str, strict: bool = True) -> list[tuple[int, list[str]]]:
    """(line, cells) of each row that is not empty. Raises csv.Error, if `strict`, for quotes that do not close."""
    blanks = delimiter != "\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=blanks, strict=strict)
    return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]


def _delimiter(text: str, where: str) -> str:
    """What separates the header's columns: the first that shows a path and a label, else the one that shows most."""
    head = "\n".join(text.lstrip("\r\n").splitlines()[:1])
    columns = {sign: next(iter(_csv_rows(head, sign, strict=False)), (1, []))[1] for sign in DELIMITERS}
    for sign, names in columns.items():
        known = {_plain(name) for name in names}
        if known & set(COLUMNS["path"]) and known & set(COLUMNS["label"]):
            return sign
    return max(columns, key=lambda sign: len(columns[sign]))


def parse_csv(content: bytes, where: str, needs_label: bool = True) -> list[Row] | None:
    """Rows of a CSV file with a header.

    Args:
        content: UTF-8, or UTF-16 with its mark.
        needs_label: whether a table without labels is an error, or None.

    Raises:
        DataError: another encoding, columns absent or not clear, a row with more or fewer cells than the header, or
            with an empty path or label, or another split than train, val and test; says the line.
    """
    text = decode_text(content, where)
    if "\0" in text[:1000].partition("\n")[0]:
        raise DataError(f"{where} is no text, or UTF-16 without its mark; save it as UTF-8")
    shift = 0
    if text[:4].casefold() == "sep=":  # how Excel says what separates the columns
        text, shift = text.partition("\n")[2], 1
    try:
        rows = _csv_rows(text, _delimiter(text, where))
    except csv.Error as error:
        raise DataError(f"{where} is no CSV file: {error}; check its quotes and separators") from error
    columns = [cell.strip() for cell in rows[0][1]] if rows else []
    if not needs_label and "label" not in _find_columns(columns, where):
        return None
    found = _columns_needed(columns, where)
    told = []
    for line, cells in rows[1:]:
        if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
            raise DataError(
                f"{where}, line {line + shift}: {len(cells)} columns, but the header has {len(columns)}; write a text "
                f"with a separator in it in quotes: {shown(cells[len(columns) - 1 :], 80)}"
            )
        told.append(_row(line + shift, [*cells, *[""] * (len(columns) - len(cells))], columns, found, where))
    if not told:
        raise DataError(f"{where} has a header but no rows")
    return told


def parse_jsonl(content: bytes, where: str) -> list[Row] | None:
    """Rows of a file with one JSON object a line; None if they have no label. Raises DataError as `parse_csv` does."""
    told: list[Row] = []
    unlabelled = 0
    for line, text in enumerate(decode_text(content, where).split("\n"), 1):
        if not text.strip():
            continue
        value = parse_json(text, f"{where}, line {line}")
        if not isinstance(value, dict):
            raise DataError(f"{where}, line {line}: expected a JSON object, found {shown(value, 60)}")
        columns = list(value)
        if "label" not in _find_columns(columns, where):
            unlabelled += 1
            continue
        found = _columns_needed(columns, f"{where}, line {line}")
        for kind, place in found.items():
            if not isinstance(cell := value[columns[place]], (str, int, float)):
                raise DataError(f"{where}, line {line}: {kind} must be text, not {shown(cell, 60)}")
        told.append(_row(line, [str(cell) for cell in value.values()], columns, found, where))
    if told and unlabelled:
        raise DataError(f"{where}: {unlabelled} of {unlabelled + len(told)} lines have no label")
    return told or None


def _number(text: str) -> int | None:
    """The whole number that a label is ("3", "3.0"), else None."""
    try:
        return int(float(text)) if float(text).is_integer() else None
    except (ValueError, OverflowError):
        return None


def label_texts(texts: Sequence[str], class_names: Any, where: str) -> tuple[dict[str, int], list[str]]:
    """(text -> label, class names) of the texts in a table's column of labels.

    Args:
        class_names: in label order; or {text: class name}; None: the texts themselves, sorted.

    Raises:
        DataError: a text that is none of `class_names`, by name or by number; or, without
            `class_names`, numbers alone, or texts that differ in capitals alone.
    """
    if isinstance(class_names, dict):
        known, names = {plain_name(text): label for label, text in enumerate(class_names)}, list(class_names.values())
        label_of = {text: known.get(text) for text in texts}
    else:
        if class_names is None:
            if all(_number(text) is not None for text in texts):
                raise DataError(
                    f"{where}: labels are numbers, which name nothing; write names instead (in Python, "
                    "class_names=[...] says them in label order)"
                )
            _refuse_like_labels(texts, where)
            class_names = sorted(texts)
        elif not isinstance(class_names, (list, tuple)):
            raise DataError(f"{where}: class_names must be a list of names or an object label -> name")
        names = list(class_names)
        known = {name: label for label, name in enumerate(clean_class_names(names))}
        by_number = lambda text: n if (n := _number(text)) is not None and 0 <= n < len(names) else None
        label_of = {text: known.get(clean_class_name(text), by_number(text)) for text in texts}
    if unknown := [text for text, label in label_of.items() if label is None]:
        raise DataError(f"{where}: labels {first_few(unknown)} are not among the {len(names)} class_names")
    return {text: label for text, label in label_of.items() if label is not None}, names


def _refuse_like_labels(texts: Sequence[str], where: str) -> None:
    """Raises DataError for labels that differ in capitals alone: one class, by all odds, unless they are letters."""
    first: dict[str, str] = {}
    for text in texts:
        other = first.setdefault(text.casefold(), text)
        if other != text and len(text) > 1:
            raise DataError(
                f"{where}: the labels {shown(other, 60)} and {shown(text, 60)} differ in capitals alone; write one of "
                "them for both (in Python, class_names=[...] keeps them apart)"
            )


def find_pictures(rows: Sequence[Row], find: Callable[[str], T | None], where: str) -> list[T]:
    """What `find` says of each row's file name.

    Raises:
        DataError: absent files, by number and the first few; or one file in two rows.
    """
    found = [find(row.path) for row in rows]
    if absent := [row.path for row, place in zip(rows, found) if place is None]:
        raise DataError(
            f"{where} names {len(absent)} of {len(rows)} pictures that are absent: {first_few(absent, 3)}; "
            "unpack the data set completely, or check its folder"
        )
    first: dict[T, Row] = {}
    for row, place in zip(rows, found):
        if (other := first.setdefault(place, row)) is not row:
            differs = (other.label, other.split) != (row.label, row.split)
            raise DataError(
                f"{where}, line {row.line}: {row.path!r} is in line {other.line} already"
                f"{', with another label or split' if differs else ''}; a picture has one row"
            )
    return found


def splits_by_folder(rows: Sequence[Row], where: str) -> list[Row]:
    """The rows of a table without a column of splits, with those that the folders in their paths tell, if these are
    several: "data/train/1.jpg" and "data/test/1.jpg".

    Raises:
        DataError: some pictures lie in folders of several splits, and others in none.
    """
    told = []
    for row in rows:
        folders = row.path.replace("\\", "/").split("/")[:-1]
        kinds = {kind for name in folders if (kind := split_of(name)) and clean_class_name(name) != row.label}
        told.append(kinds.pop() if len(kinds) == 1 else "")
    if len(set(told) - {""}) < 2:
        return list(rows)
    if untold := [row for row, kind in zip(rows, told) if not kind]:
        raise DataError(
            f"{where}: most pictures lie in folders of splits, but {len(untold)} do not, such as {untold[0].path!r} "
            f"(line {untold[0].line}); add a column split"
        )
    return [replace(row, split=kind) for row, kind in zip(rows, told)]


def in_splits(rows: Sequence[Row], items: Sequence[ImageItem]) -> dict[str, list[ImageItem]]:
    """Split -> its items; "" -> those whose split is not told."""
    parts: dict[str, list[ImageItem]] = {kind: [] for kind in ("", *SPLITS)}
    for row, item in zip(rows, items):
        parts[row.split].append(item)
    return parts
