"""Hugging Face's `imagefolder` with a table: `metadata.csv` or `metadata.jsonl` beside the pictures.

    NAME/metadata.csv                NAME/train/metadata.jsonl    {"file_name": "1.jpg", "label": "cat"}
    NAME/1.jpg              or       NAME/train/1.jpg
                                     NAME/test/metadata.jsonl, ...

Columns are `file_name`, relative to the table, and `label` (`tables` knows other names of both). The split is what a
column `split`, or the folder at the top, says; without either, pictures are split by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DataError
from .base import ImageItem, first_few
from .layout import plain_name, split_of
from .listing import Listing
from .tables import Row, find_pictures, in_splits, label_texts, parse_csv, parse_jsonl

METADATA = ("metadata.csv", "metadata.jsonl")


def read_metadata(listing: Listing, class_names: Any) -> tuple[list[str], dict[str, list[ImageItem]]] | None:
    """(class names, split -> items) of a listing with tables at its top or in its splits' folders; else None.

    Split "" holds what is not decided. Tables without labels (captions of pictures in class folders) do not count.

    Args:
        class_names: as `tables.label_texts` takes them.

    Raises:
        DataError: a faulty table; pictures that it names and that are absent, or that are there and have no row.
    """
    tables = [file for file in listing.files if file.split("/")[-1].casefold() in METADATA and file.count("/") < 2]
    stored = {plain_name(image): image for image in listing.images}
    rows: list[Row] = []
    images: list[str] = []
    for table in tables:
        where, folder = listing.where(table), table.rpartition("/")[0]
        content = listing.read(table)
        is_jsonl = table.casefold().endswith("l")
        told = parse_jsonl(content, where) if is_jsonl else parse_csv(content, where, needs_label=False)
        if told is None:
            continue
        found = find_pictures(told, _finder(stored, f"{folder}/" if folder else "", told), where)
        if twice := sorted(set(found) & set(images)):
            raise DataError(f"{where}: {first_few(twice, 3)} have a row in another table too; keep one of the tables")
        rows += [Row(row.line, row.path, row.label, _split(row, image)) for row, image in zip(told, found)]
        images += found
    if not rows:
        return None
    if len({row.split == "" for row in rows}) > 1:
        raise DataError(
            f"{listing.where(tables[0])}: some pictures lie in folders of splits, and others do not; sort them"
        )
    if untold := sorted(set(listing.images) - set(images)):
        raise DataError(
            f"{listing.where(tables[0])}: {len(untold)} pictures have no row in it: {first_few(untold, 3)}; add or "
            "remove them"
        )
    labels, names = label_texts(sorted({row.label for row in rows}), class_names, listing.where(tables[0]))
    return names, in_splits(rows, [listing.item(im, labels[row.label]) for row, im in zip(rows, images)])


def _finder(stored: dict[str, str], folder: str, rows: Sequence[Row]) -> Callable[[str], str | None]:
    """Finds a table's pictures in `folder` ("" or "name/"); if none is there, in the first folder inside with all."""
    plain = lambda name: plain_name(name.replace("\\", "/").removeprefix("./"))
    inside = {name.removeprefix(folder).split("/")[0] for name in stored if name.startswith(folder)}
    for start in (folder, *(f"{folder}{name}/" for name in sorted(inside))):
        found = sum(start + plain(row.path) in stored for row in rows)
        if found == len(rows) or (found and start == folder):
            return lambda name: stored.get(start + plain(name))
    return lambda name: None


def _split(row: Row, image: str) -> str:
    return row.split or (split_of(image.split("/")[0]) or "" if "/" in image else "")
