"""Data sets: what they are, where they come from, and how pictures become tensors.

    base            ClassificationData, ImageItem
    sampling        few shots and splits, pure functions of items and seed
    layout          what names mean                         listing, tables   what a folder or archive holds; rows
    image_folder    class folders, on disk or zipped        csv, metadata, hf_saved     other formats
    named           a data set known by name                datasets/         one small file each
    images          from an item to an RGB picture          transforms        from a picture to pixel_values
    torch_dataset   the map-style dataset that workers read

A new named data set is one file in `datasets/` and one line in `DATASETS`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, UnknownNameError
from ..registry import Registry
from .base import ClassificationData, ImageItem

__all__ = [
    "DATASETS",
    "EMBEDDED_TASKS",
    "ClassificationData",
    "EmbeddedTask",
    "ImageItem",
    "list_datasets",
    "load_dataset",
]

DATASETS = Registry(
    "data set",
    {
        "caltech101": "duotune.data.datasets.caltech101:DATASET",
        "dtd": "duotune.data.datasets.dtd:DATASET",
        "eurosat": "duotune.data.datasets.eurosat:DATASET",
        "fgvc_aircraft": "duotune.data.datasets.fgvc_aircraft:DATASET",
        "food101": "duotune.data.datasets.food101:DATASET",
        "imagenet": "duotune.data.datasets.imagenet:DATASET",
        "imagenet_a": "duotune.data.datasets.imagenet_a:DATASET",
        "imagenet_r": "duotune.data.datasets.imagenet_r:DATASET",
        "imagenet_sketch": "duotune.data.datasets.imagenet_sketch:DATASET",
        "imagenet_v2": "duotune.data.datasets.imagenet_v2:DATASET",
        "oxford_flowers": "duotune.data.datasets.oxford_flowers:DATASET",
        "oxford_pets": "duotune.data.datasets.oxford_pets:DATASET",
        "stanford_cars": "duotune.data.datasets.stanford_cars:DATASET",
        "sun397": "duotune.data.datasets.sun397:DATASET",
        "ucf101": "duotune.data.datasets.ucf101:DATASET",
    },
)


@dataclass(frozen=True)
class EmbeddedTask:
    """A small data set that ships with the package: a zip archive of class folders."""

    name: str
    path: Path

    def load(self, root: str | Path | None = None, seed: int = 0, **options: Any) -> ClassificationData:
        """Read it; `root` is not needed. Options are those of `image_folder.read_image_folder`."""
        from .image_folder import read_image_folder

        _check_options(self.name, read_image_folder, options)
        return read_image_folder(self.path, seed=seed, **{"name": self.name, **options})


def discover_tasks(folder: Path | None = None) -> dict[str, EmbeddedTask]:
    """name -> task for every zip in a folder (the package's `assets/tasks`); empty if there is none."""
    folder = folder or Path(str(resources.files("duotune"))) / "assets" / "tasks"
    return {path.stem: EmbeddedTask(path.stem, path) for path in sorted(folder.glob("*.zip"))}


EMBEDDED_TASKS = Registry("data set", discover_tasks())


def list_datasets() -> list[str]:
    """Names that `load_dataset` knows: embedded tasks, then data sets that need a root folder."""
    return [*EMBEDDED_TASKS, *DATASETS]


def load_dataset(
    name_or_path: str | Path, root: str | Path | None = None, seed: int = 0, **options: Any
) -> ClassificationData:
    """A data set by name or from files.

    Args:
        name_or_path: a name in `list_datasets()`; or a folder of class folders, a `.zip` of one, a `.csv`, or a
            folder written by Hugging Face's `save_to_disk`. A name wins over a folder of the same name ("./dtd" is a
            folder).
        root: for named data sets, the folder that holds their folders.
        seed: of the split, where the data brings none. Keep it while the few-shot seed varies, so that the test
            split stays the same.
        options: of the reader (`name`, `class_names`, `template`, `templates`, `val_share`, `test_share`,
            `label_column`).

    Raises:
        UnknownNameError: neither a name nor a path; says the nearest name, those with boxes among them.
        DataError: files are absent or not as expected.
        ConfigError: an option that the reader does not have.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, str):
        if text in EMBEDDED_TASKS:
            return EMBEDDED_TASKS.get(text).load(root, seed=seed, **options)
        if text in DATASETS:
            named = DATASETS.get(text)
            _check_options(text, named.load, options)
            return named.load(root, seed=seed, **options)
    path = Path(text).expanduser()
    if not os.path.exists(path):  # unlike Path's, it raises for no name, however long
        if isinstance(name_or_path, str) and path.name == text and not path.suffix:
            from .detection import list_detection_datasets

            boxes = list_detection_datasets()
            if text in boxes:
                raise DataError(f"{text} has boxes, it is no data set of labelled images; load_detection reads it")
            raise UnknownNameError("data set (or folder)", text, [*list_datasets(), *boxes])
        raise DataError(f"no such file or folder: {path}; expected a folder of class folders, a .zip of one, or a .csv")
    reader = _reader_of(path)
    _check_options(text, reader, options)
    return reader(path, seed=seed, **options)


def _reader_of(path: Path) -> Callable[..., ClassificationData]:
    """The reader of a file or folder. Raises DataError for a file of another kind."""
    suffix = path.suffix.lower()
    if path.is_dir():
        from .hf_saved import is_saved_dataset, read_hf_saved
        from .image_folder import read_image_folder

        return read_hf_saved if is_saved_dataset(path) else read_image_folder
    if suffix in (".csv", ".tsv"):
        from .csv import read_csv

        return read_csv
    if suffix == ".zip":
        from .image_folder import read_image_folder

        return read_image_folder
    raise DataError(f"cannot read {path} as a data set; expected a folder of class folders, a .zip of one, or a .csv")


def _check_options(name: str, reader: Callable[..., Any], options: dict[str, Any]) -> None:
    known = set(inspect.signature(reader).parameters) - {"self", "path", "root", "seed"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"{name}: unknown options {unknown}; this kind of data set takes {sorted(known) or 'none'}")
