"""Detection data sets: pictures with labelled boxes, their captions, and how both become tensors.

    base            DetectionData, DetectionItem          report      what readers met, counted
    formats         which format a folder, archive or file has, and its reader
    coco, yolo, voc people's own data                     lvis, odinw, flickr30k      named data sets' formats
    tree            a folder or archive of annotations    boxes, values               what annotations mean
    sampling        few shots as GLIP takes them          captions    which classes a training caption names
    transforms      resize and flip, with boxes           torch_dataset      the map-style dataset that workers read
    datasets/       named data sets, one small file each

A new named data set is one file in `datasets/` and one line in `DETECTION_DATASETS`.
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError, UnknownNameError
from ...registry import Registry
from .base import DetectionData, DetectionItem
from .report import DetectionReport

__all__ = [
    "DETECTION_DATASETS",
    "EMBEDDED_DETECTION_TASKS",
    "ODINW",
    "ODINW_13",
    "ODINW_35",
    "DetectionData",
    "DetectionItem",
    "DetectionReport",
    "EmbeddedDetectionTask",
    "is_detection_data",
    "list_detection_datasets",
    "load_detection",
]

DETECTION_DATASETS = Registry(
    "detection data set",
    {
        "coco2017": "duotune.data.detection.datasets.coco2017:DATASET",
        "flickr30k_entities": "duotune.data.detection.datasets.flickr30k_entities:DATASET",
        "lvis_minival": "duotune.data.detection.datasets.lvis_v1:MINIVAL",
        "lvis_v1": "duotune.data.detection.datasets.lvis_v1:DATASET",
        "odinw_aerial_maritime_drone_large": "duotune.data.detection.datasets.odinw:AERIAL_MARITIME_DRONE_LARGE",
        "odinw_aerial_maritime_drone_tiled": "duotune.data.detection.datasets.odinw:AERIAL_MARITIME_DRONE_TILED",
        "odinw_american_sign_language_letters": "duotune.data.detection.datasets.odinw:AMERICAN_SIGN_LANGUAGE_LETTERS",
        "odinw_aquarium": "duotune.data.detection.datasets.odinw:AQUARIUM",
        "odinw_bccd": "duotune.data.detection.datasets.odinw:BCCD",
        "odinw_boggle_boards": "duotune.data.detection.datasets.odinw:BOGGLE_BOARDS",
        "odinw_brackish_underwater": "duotune.data.detection.datasets.odinw:BRACKISH_UNDERWATER",
        "odinw_chess_pieces": "duotune.data.detection.datasets.odinw:CHESS_PIECES",
        "odinw_cottontail_rabbits": "duotune.data.detection.datasets.odinw:COTTONTAIL_RABBITS",
        "odinw_dice": "duotune.data.detection.datasets.odinw:DICE",
        "odinw_drone_control": "duotune.data.detection.datasets.odinw:DRONE_CONTROL",
        "odinw_ego_hands_generic": "duotune.data.detection.datasets.odinw:EGO_HANDS_GENERIC",
        "odinw_ego_hands_specific": "duotune.data.detection.datasets.odinw:EGO_HANDS_SPECIFIC",
        "odinw_hard_hat_workers": "duotune.data.detection.datasets.odinw:HARD_HAT_WORKERS",
        "odinw_mask_wearing": "duotune.data.detection.datasets.odinw:MASK_WEARING",
        "odinw_mountain_dew_commercial": "duotune.data.detection.datasets.odinw:MOUNTAIN_DEW_COMMERCIAL",
        "odinw_north_america_mushrooms": "duotune.data.detection.datasets.odinw:NORTH_AMERICA_MUSHROOMS",
        "odinw_open_poetry_vision": "duotune.data.detection.datasets.odinw:OPEN_POETRY_VISION",
        "odinw_oxford_pets_by_breed": "duotune.data.detection.datasets.odinw:OXFORD_PETS_BY_BREED",
        "odinw_oxford_pets_by_species": "duotune.data.detection.datasets.odinw:OXFORD_PETS_BY_SPECIES",
        "odinw_packages": "duotune.data.detection.datasets.odinw:PACKAGES",
        "odinw_pascal_voc": "duotune.data.detection.datasets.odinw:PASCAL_VOC",
        "odinw_pistols": "duotune.data.detection.datasets.odinw:PISTOLS",
        "odinw_pklot": "duotune.data.detection.datasets.odinw:PKLOT",
        "odinw_plantdoc": "duotune.data.detection.datasets.odinw:PLANTDOC",
        "odinw_pothole": "duotune.data.detection.datasets.odinw:POTHOLE",
        "odinw_raccoon": "duotune.data.detection.datasets.odinw:RACCOON",
        "odinw_selfdriving_car": "duotune.data.detection.datasets.odinw:SELFDRIVING_CAR",
        "odinw_shellfish_open_images": "duotune.data.detection.datasets.odinw:SHELLFISH_OPEN_IMAGES",
        "odinw_thermal_cheetah": "duotune.data.detection.datasets.odinw:THERMAL_CHEETAH",
        "odinw_thermal_dogs_and_people": "duotune.data.detection.datasets.odinw:THERMAL_DOGS_AND_PEOPLE",
        "odinw_uno_cards": "duotune.data.detection.datasets.odinw:UNO_CARDS",
        "odinw_vehicles_open_images": "duotune.data.detection.datasets.odinw:VEHICLES_OPEN_IMAGES",
        "odinw_website_screenshots": "duotune.data.detection.datasets.odinw:WEBSITE_SCREENSHOTS",
        "odinw_wildfire_smoke": "duotune.data.detection.datasets.odinw:WILDFIRE_SMOKE",
    },
)


@dataclass(frozen=True)
class EmbeddedDetectionTask:
    """A small data set that ships with the package: a zip archive of COCO files and pictures."""

    name: str
    path: Path

    def load(self, root: str | Path | None = None, **options: Any) -> DetectionData:
        """Read it; `root` is not needed. Options are those of `coco.read_coco`."""
        from .coco import read_coco

        _check_options(self.name, read_coco, options)
        return read_coco(self.path, **{"name": self.name, **options})


def discover_detection_tasks(folder: Path | None = None) -> dict[str, EmbeddedDetectionTask]:
    """name -> task for every zip in a folder (the package's `assets/detection`); empty if there is none."""
    folder = folder or Path(str(resources.files("duotune"))) / "assets" / "detection"
    return {path.stem: EmbeddedDetectionTask(path.stem, path) for path in sorted(folder.glob("*.zip"))}


EMBEDDED_DETECTION_TASKS = Registry("detection data set", discover_detection_tasks())

ODINW_35 = tuple(name for name in DETECTION_DATASETS if name.startswith("odinw_"))
ODINW_13 = (
    "odinw_aerial_maritime_drone_large",
    "odinw_aquarium",
    "odinw_cottontail_rabbits",
    "odinw_ego_hands_generic",
    "odinw_north_america_mushrooms",
    "odinw_packages",
    "odinw_pascal_voc",
    "odinw_pistols",
    "odinw_pothole",
    "odinw_raccoon",
    "odinw_shellfish_open_images",
    "odinw_thermal_dogs_and_people",
    "odinw_vehicles_open_images",
)


def list_detection_datasets() -> list[str]:
    """Names that `load_detection` knows: embedded tasks, then data sets that need a root folder."""
    return [*EMBEDDED_DETECTION_TASKS, *DETECTION_DATASETS]


ODINW = {"odinw_13": ODINW_13, "odinw_35": ODINW_35}
"""Name of a group of tasks -> the tasks, whose mean AP is reported."""


def is_detection_data(name_or_path: str | Path) -> bool:
    """Whether `load_detection` reads this: a name that it knows, or labels of boxes, which are not read here."""
    text = os.fspath(name_or_path)
    if text in EMBEDDED_DETECTION_TASKS or text in DETECTION_DATASETS:
        return True
    path = Path(text).expanduser()
    if os.path.isdir(path) or (path.suffix.lower() == ".zip" and os.path.isfile(path)):
        from .formats import format_of

        return format_of(path) is not None
    return path.suffix.lower() in (".json", ".yaml", ".yml")


def load_detection(
    name_or_path: str | Path, root: str | Path | None = None, seed: int | None = None, **options: Any
) -> DetectionData:
    """A detection data set by name or from files.

    Args:
        name_or_path: a name in `list_detection_datasets()`; or a folder or zip archive in one of `formats.FORMATS`; or
            a COCO JSON file; or the yaml file of a YOLO data set or an ODinW task. A name wins over a folder of the
            same name ("./coco2017" is a folder).
        root: for named data sets the folder that holds their folders; for a task's yaml the folder its paths are
            relative to.
        seed: of the split, where the data bring none, as training takes it (0); None leaves all pictures in `test`.
            Data with splits do not change with it.
        options: of the reader: `missing_images` ("error" or "skip"); `name` and `class_names` for folders; `shots`,
            (number, seed) of a published few-shot list, for ODinW.

    Raises:
        UnknownNameError: neither a name nor a path; says the nearest name.
        DataError, ClassNamesError: files are absent or not as expected.
        ConfigError: an option that the reader does not have.
    """
    text = os.fspath(name_or_path)
    if isinstance(name_or_path, str) and text in EMBEDDED_DETECTION_TASKS:
        return EMBEDDED_DETECTION_TASKS.get(text).load(root, **options)
    if isinstance(name_or_path, str) and text in DETECTION_DATASETS:
        named = DETECTION_DATASETS.get(text)
        _check_options(text, named.load, options)
        return named.load(root, **options)
    path = Path(text).expanduser()
    if not os.path.exists(path):
        if isinstance(name_or_path, str) and path.name == text and not path.suffix:
            raise UnknownNameError("detection data set (or folder)", text, list_detection_datasets())
        raise DataError(
            f"no such file or folder: {path}; expected COCO annotations, YOLO labels, Pascal VOC files or a task (yaml)"
        )
    from .formats import reader_of

    reader = reader_of(path)
    _check_options(text, reader, options)
    more: dict[str, Any] = {"root": root} if "root" in inspect.signature(reader).parameters else {"seed": seed}
    return reader(path, **more, **options)


def _check_options(name: str, reader: Any, options: dict[str, Any]) -> None:
    known = set(inspect.signature(reader).parameters) - {"self", "path", "root", "seed"}
    if unknown := sorted(set(options) - known):
        raise ConfigError(f"{name}: unknown options {unknown}; this kind of data set takes {sorted(known) or 'none'}")
