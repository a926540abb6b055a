"""Object Detection in the Wild (Li et al. 2022): 13 or 35 small detection tasks, read from the benchmark's yaml files.

One yaml per task (github.com/microsoft/GLIP, configs/odinw_13 and odinw_35):

    DATASETS:
      REGISTER:
        train: {img_dir: odinw/pothole/train, ann_file: odinw/pothole/train/annotations_without_background.json}
        val, test, minival: ...
        train_1_3: {..., ann_file: odinw/pothole/train/fewshot_train_shot1_seed3.json}     1 shot, seed 3
      TEST: ("val",)
      OVERRIDE_CATEGORY: '[{"id": 1, "name": "pothole", "supercategory": "potholes"}]'
      CAPTION_PROMPT: '[{"prefix": "there are some ", "name": "holes", "suffix": " on the road"}]'

`PUBLISHED_SHOTS` and `PUBLISHED_SEEDS` are the few-shot lists that come with the pictures; all published few-shot
numbers are on them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError, DataError
from ...grounding import CaptionPrompt
from ...reading import because, parse_yaml, read_text
from .base import DetectionData
from .coco import read_coco_splits

PUBLISHED_SHOTS = (1, 3, 5, 10)
PUBLISHED_SEEDS = (3, 30, 300)


@dataclass(frozen=True)
class OdinwDataset:
    """One task of the benchmark, for those who have the pictures but not the yaml.

    Attributes:
        name: in the table.
        folder: below ROOT/odinw/ (or ROOT/).
        class_names: in the order of category ids, which count from 1.
        prompts: how each class reads in a caption, where the benchmark says so.
        minival: validation happens on a part of the validation split.
        export: all pictures lie in one folder, annotation files carry the split in their names.
        splits: split -> folder or word, where it is not the split's own.
        in_13: also one of the 13 tasks.
        names_13: class names among the 13, where they differ.
    """

    name: str
    folder: str
    class_names: tuple[str, ...]
    prompts: tuple[CaptionPrompt, ...] = ()
    minival: bool = False
    export: bool = False
    test: str = "test"
    in_13: bool = False
    names_13: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"ODinW {self.folder}"

    def load(
        self,
        root: str | Path | None,
        shots: tuple[int, int] | None = None,
        variant: int = 35,
        missing_images: str = "error",
    ) -> DetectionData:
        """Read it from ROOT/odinw/`folder` or ROOT/`folder`.

        Args:
            root: the folder that holds odinw/, or that folder itself.
            shots: (number, seed) of a published few-shot list for train and val; None for all pictures.
            variant: 35, or 13 for the names that the smaller benchmark uses, without caption prompts.
            missing_images: "error", or "skip" to leave absent pictures out, counted.

        Raises:
            DataError, ConfigError: files absent or not as expected, or no such list.
        """
        if root is None:
            raise DataError(f"data set {self.name!r} needs root, the folder that holds odinw/{self.folder}/")
        if variant not in (13, 35) or (variant == 13 and not self.in_13):
            raise ConfigError(f"{self.name}: variant must be 35{' or 13' if self.in_13 else ''}, not {variant}")
        root = Path(root).expanduser()
        folder = next((f for f in (root / "odinw" / self.folder, root / self.folder) if f.is_dir()), None)
        if folder is None:
            raise DataError(f"no such folder: {root / 'odinw' / self.folder}; expected {self.title} there")
        check_shots(shots)
        words = {"train": "train", "val": "minival" if self.minival else "val", "test": self.test}
        splits = {split: self._files(folder, word, shots if split != "test" else None) for split, word in words.items()}
        names = self.names_13 if variant == 13 and self.names_13 else self.class_names
        prompts = self.prompts if variant == 35 else ()
        return read_coco_splits(
            self.name,
            splits,
            missing_images,
            rename={number: name for number, name in enumerate(names, start=1)},
            caption_prompts=prompts,
        )

    def _files(self, folder: Path, word: str, shots: tuple[int, int] | None) -> tuple[Path, Path]:
        """(annotation file, folder of pictures) of a split."""
        pictures = folder if self.export else folder / {"val": "valid", "minival": "mini_val"}.get(word, word)
        if shots:
            return pictures / f"fewshot_{word}_shot{shots[0]}_seed{shots[1]}.json", pictures
        return pictures / f"{f'{word}_' if self.export else ''}annotations_without_background.json", pictures


def check_shots(shots: tuple[int, int] | None) -> None:
    """Raises ConfigError unless `shots` is (number, seed) or None."""
    if shots is not None and not (len(shots) == 2 and all(isinstance(value, int) for value in shots)):
        raise ConfigError(
            f"shots must be (number, seed) of a published list, numbers {PUBLISHED_SHOTS}, seeds {PUBLISHED_SEEDS}; "
            f"got {shots!r}"
        )


def read_odinw_yaml(
    path: Path,
    root: str | Path | None = None,
    shots: tuple[int, int] | None = None,
    name: str | None = None,
    missing_images: str = "error",
) -> DetectionData:
    """A task from its yaml file.

    Args:
        root: folder that the yaml's paths ("odinw/...") are relative to; None for the yaml's own.
        shots: (number, seed) of a published few-shot list, for train and val; None for all pictures.
        name: of the data set; None for the file's.
        missing_images: "error", or "skip" to leave absent pictures out, counted.

    Raises:
        DataError: no such yaml, or files absent or not as expected. ConfigError: no such few-shot list.
    """
    path = Path(path)
    root = Path(root).expanduser() if root is not None else path.parent
    text = read_text(path, "an ODinW task (yaml)")
    try:
        settings = parse_yaml(text, path.name)["DATASETS"]
        register = {str(key): (str(row["img_dir"]), str(row["ann_file"])) for key, row in settings["REGISTER"].items()}
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no ODinW task: expected DATASETS: REGISTER: ...; {because(error)}") from error
    check_shots(shots)
    validation = re.findall(r"\w+", str(settings.get("TEST", "val"))) or ["val"]
    words = {"train": "train", "val": validation[0], "test": "test"}
    splits = {}
    for split, word in words.items():
        key = f"{word}_{shots[0]}_{shots[1]}" if shots and split != "test" else word
        if key not in register:
            if shots and split != "test":
                lists = sorted(k.removeprefix(f"{word}_") for k in register if re.fullmatch(rf"{word}_\d+_\d+", k))
                raise ConfigError(f"{path.name} has no few-shot list {key!r}; number_seed must be one of {lists}")
            if split == "train":
                raise DataError(f"{path} registers no split 'train'; it has {sorted(register)}")
            continue
        pictures, annotations = register[key]
        splits[split] = _below(root, annotations), _below(root, pictures)
    override = {row["id"]: str(row["name"]) for row in _listed(settings, "OVERRIDE_CATEGORY", ("id", "name"), path)}
    prompts = [
        CaptionPrompt(str(row["name"]), str(row["prefix"]), str(row["suffix"]))
        for row in _listed(settings, "CAPTION_PROMPT", ("name", "prefix", "suffix"), path)
    ]
    return read_coco_splits(name or path.stem, splits, missing_images, rename=override, caption_prompts=prompts)


def _below(root: Path, path: str) -> Path:
    """A yaml's path below root; root may be the folder odinw/ itself."""
    whole = root / path
    inside = root / path.removeprefix("odinw/")
    return inside if not whole.exists() and inside.exists() else whole


def _listed(settings: dict[str, Any], key: str, fields: Sequence[str], path: Path) -> list[dict[str, Any]]:
    """A list of objects that the yaml holds as text; empty if it is absent. Raises DataError for another form.

    Some of the published texts have a comma behind the last object: no JSON, but yaml.
    """
    text = settings.get(key)
    if not text:
        return []
    try:
        rows = parse_yaml(text, key) if isinstance(text, str) else text
        if not all(field in row for row in rows for field in fields):
            raise ValueError(f"each needs {', '.join(fields)}")
    except (TypeError, ValueError) as error:  # a DataError is a ValueError
        form = f"a list of objects with {', '.join(fields)}"
        raise DataError(f"{path}: {key} must be {form}: {because(error)}") from error
    return rows
