"""A Hugging Face data set saved with `save_to_disk`: a Dataset, or a DatasetDict of splits.

Needs the package `datasets`. The picture column is found by its type Image, the labels by ClassLabel, whose names
are the class names. Rows labelled -1 (unlabelled test sets) are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..reading import MAX_DESCRIPTION_BYTES, because, read_json
from .base import ClassificationData, ImageItem, make_data
from .layout import split_of
from .sampling import split


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _load(path: Path) -> Any:
    """The Dataset saved in one folder."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{path} is a Hugging Face data set; install the package 'datasets' to read it") from error
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # arrow, JSON and version errors alike
        raise DataError(f"cannot read the Hugging Face data set saved in {path}: {because(error)}") from error


def _column(dataset: Any, kind: str, wanted: str | None, where: Path) -> str:
    """The one column of a feature type, or the wanted one."""
    columns = [name for name, feature in dataset.features.items() if type(feature).__name__ == kind]
    if wanted in columns:
        return wanted
    if wanted is not None or len(columns) != 1:
        kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
        help = "keep one with remove_columns" if kind == "Image" else "name one with label_column"
        help = help if columns else f"cast_column one to datasets.{kind}"
        raise DataError(f"{where}: expected one {kind} column, found {wanted or columns} among {kinds}; {help}")
    return columns[0]


class ImageRows:
    """Pictures of a saved Dataset, undecoded: `rows[i]` is {"bytes": bytes or None, "path": str or None}."""

    def __init__(self, path: Path):
        dataset = _load(path)
        from datasets import Image

        self._column = _column(dataset, "Image", None, path)
        self._rows = dataset.select_columns([self._column]).cast_column(self._column, Image(decode=False))

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[row][self._column]


def _items(path: Path, label_column: str | None) -> tuple[list[str], list[ImageItem]]:
    """Class names and labelled rows of one saved Dataset."""
    dataset = _load(path)
    _column(dataset, "Image", None, path)
    column = _column(dataset, "ClassLabel", label_column, path)
    labels = dataset.select_columns([column]).with_format(None)[:][column]
    items = [ImageItem(path, label, str(row)) for row, label in enumerate(labels) if label is not None and label >= 0]
    return dataset.features[column].names, items


def read_hf_saved(
    path: str | Path,
    *,
    seed: int = 0,
    val_share: float = 0.2,
    test_share: float = 0.3,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    label_column: str | None = None,
    template: str = "a photo of a {}.",
    templates: Sequence[str] = (),
) -> ClassificationData:
    """Read a data set saved with `save_to_disk`; see the module's docstring.

    Args:
        path: the folder.
        seed, val_share, test_share: the split, if a single Dataset was saved.
        class_names: instead of the ClassLabel's names, in label order.
        label_column: which ClassLabel column, if there are several.

    Raises:
        DataError: not a saved data set, no or several fitting columns, splits that name classes differently.
    """
    path = Path(path)
    if not is_saved_dataset(path):
        raise DataError(f"{path} was not written by save_to_disk: neither dataset_dict.json nor state.json is in it")
    if (path / "state.json").is_file():
        names, undecided = _items(path, label_column)
        parts = {}
    else:
        try:
            saved = read_json(path / "dataset_dict.json", limit=MAX_DESCRIPTION_BYTES)["splits"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path / 'dataset_dict.json'} does not list splits: {error!r}") from error
        known = [kind for kind in saved if split_of(kind)]
        if not known or len({split_of(kind) for kind in known}) < len(known):
            raise DataError(f"{path}: expected splits train, validation (or val), test; found {saved}")
        names, parts, undecided = [], {}, []
        for kind in known:
            found, items = _items(path / kind, label_column)
            if names and found != names:
                raise DataError(f"{path}: split {kind!r} has other class names than {known[0]!r}")
            names, parts[split_of(kind)] = found, items
    if class_names is not None and len(class_names) != len(names):
        raise DataError(f"{path} has {len(names)} classes, but class_names has {len(class_names)}")
    if undecided:
        parts = dict(zip(("train", "val", "test"), split(undecided, class_names or names, val_share, test_share, seed)))
    return make_data(
        name or path.resolve().name,
        class_names or names,
        parts.get("train", ()),
        parts.get("val", ()),
        parts.get("test", ()),
        template=template,
        templates=templates,
    )
