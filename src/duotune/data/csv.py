"""A CSV file of pictures: columns `path`, `label` and, if wanted, `split`.

    path,label,split
    images/1.jpg,red fox,train
    images/2.jpg,cat,val
    images/3.jpg,cat,test

Paths are relative to the file, or to the one folder beside it where all of them are. `label` is the class name; or its
number, with the names given as `class_names`. `split` is train, val or test in any usual spelling. Without the column
the folders in the paths may tell it ("train/1.jpg", "test/1.jpg"); else pictures are split by seed. Other usual names
of columns, and other separators, are understood: see `tables`. Further columns are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..reading import read_bytes
from .base import ClassificationData, ImageItem, make_data
from .layout import FileFinder, is_junk
from .listing import is_folder
from .sampling import split
from .tables import Row, find_pictures, in_splits, label_texts, parse_csv, splits_by_folder


def read_csv(
    path: str | Path,
    *,
    seed: int = 0,
    val_share: float = 0.2,
    test_share: float = 0.3,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    template: str = "a photo of a {}.",
    templates: Sequence[str] = (),
) -> ClassificationData:
    """Read a CSV file of pictures; see the module's docstring.

    Args:
        path: the file, UTF-8 or UTF-16 with its mark, with a header.
        seed, val_share, test_share: the split, if the file has no column `split`.
        class_names: label order; without it, the labels in sorted order.

    Raises:
        DataError: missing columns, unknown labels or splits (with the line), absent pictures, one with two labels.
        ClassNamesError: two labels read the same.
    """
    path = Path(path)
    rows = parse_csv(read_bytes(path, "a CSV file with the columns path,label[,split]"), str(path))
    if not rows[0].split:
        rows = splits_by_folder(rows, str(path))
    labels, names = label_texts(sorted({row.label for row in rows}), class_names, str(path))
    files = find_pictures(rows, _finder(path.parent, rows), str(path))
    parts = in_splits(rows, [ImageItem(file, labels[row.label]) for row, file in zip(rows, files)])
    if undecided := parts.pop(""):
        parts = dict(zip(parts, split(undecided, names, val_share, test_share, seed)))
    return make_data(name or path.stem, names, **parts, template=template, templates=templates)


def _finder(folder: Path, rows: Sequence[Row]) -> Callable[[str], Path | None]:
    """Finds the rows' files: in `folder`; if none is there, in the one folder inside that has them all."""
    find = FileFinder(folder)
    if any(find(row.path) is not None for row in rows):
        return find
    inside = sorted(entry.name for entry in os.scandir(folder) if is_folder(entry) and not is_junk(entry.name))
    whole = [other for other in map(FileFinder, (folder / name for name in inside)) if _has_all(other, rows)]
    return whole[0] if len(whole) == 1 else find


def _has_all(find: FileFinder, rows: Sequence[Row]) -> bool:
    return all(find(row.path) is not None for row in rows)
