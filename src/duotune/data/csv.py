"""A CSV file of pictures: columns `path`, `label` and, if wanted, `split`.

    path,label,split
    images/1.jpg,red fox,train
    images/2.jpg,cat,val
    images/3.jpg,cat,test

Paths are relative to the file. `label` is the class name; or its number, with the names given as `class_names`.
`split` is train, val (valid, validation) or test; without the column pictures are split by seed. Further columns are
ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from .base import ClassificationData, ImageItem, clean_class_names, first_few, make_data
from .image_folder import SPLIT_FOLDERS
from .sampling import split
from .split_file import check_present


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
        path: the file, UTF-8, comma-separated, with a header.
        seed, val_share, test_share: the split, if the file has no column `split`.
        class_names: label order; without it, the labels in sorted order.

    Raises:
        DataError: missing columns, unknown labels or splits (with the line), absent pictures.
        ClassNamesError: two labels read the same.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such file: {path}; expected a CSV file with the columns path,label[,split]")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [(c or "").strip() for c in reader.fieldnames or ()]
            reader.fieldnames = columns
            if missing := [c for c in ("path", "label") if c not in columns]:
                raise DataError(f"{path} lacks the columns {missing}; expected path,label[,split], found {columns}")
            rows = [(reader.line_num, {c: (row[c] or "").strip() for c in columns}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a UTF-8 CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    for line, row in rows:
        if not row["path"] or not row["label"]:
            raise DataError(f"{path}, line {line}: path and label must not be empty")

    texts = sorted({row["label"] for _, row in rows})
    if class_names is None:
        if all(text.isdecimal() for text in texts):
            raise DataError(f"{path}: labels are numbers, which name nothing; give class_names=[...] in label order")
        class_names = texts
    labels = {name: label for label, name in enumerate(clean_class_names(class_names))}
    numbers = {str(label): label for label in range(len(class_names))}
    plain = lambda text: " ".join(text.replace("_", " ").split())
    label_of = {text: labels.get(plain(text), numbers.get(text)) for text in texts}
    if unknown := [text for text, label in label_of.items() if label is None]:
        raise DataError(f"{path}: labels {first_few(unknown)} are not among the {len(class_names)} class_names")

    parts: dict[str, list[ImageItem]] = {"train": [], "val": [], "test": []}
    for line, row in rows:
        kind = SPLIT_FOLDERS.get(row.get("split", "train").lower())
        if kind is None:
            raise DataError(f"{path}, line {line}: split must be train, val or test, not {row['split']!r}")
        parts[kind].append(ImageItem(path.parent / row["path"], label_of[row["label"]]))
    check_present([item.path for items in parts.values() for item in items], str(path))
    if "split" not in columns:
        parts = dict(zip(parts, split(parts["train"], val_share, test_share, seed)))
    return make_data(name or path.stem, class_names, **parts, template=template, templates=templates)
