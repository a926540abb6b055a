"""LVIS v1 (Gupta et al. 2019): 1,203 classes on COCO's pictures, each picture annotated for some classes only.

A picture's annotations say which classes are in it, which are known to be absent (`neg_category_ids`) and which are not
annotated completely (`not_exhaustive_category_ids`); evaluation counts accordingly. Pictures lie in COCO's folders:
their place is the end of `coco_url`, since validation pictures come from train2017 too.

*MiniVal* is the list of 5,000 of the validation pictures that detection papers report on (Kamath et al. 2021): either a
complete annotation file, or a list of image ids (JSON, or text with one per line).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..split_file import read_lines
from .base import DetectionData, make_detection_data
from .coco import coco_items, merge_categories, read_coco_file, read_json
from .report import DetectionReport
from .tree import Tree

FREQUENCIES = ("r", "c", "f")  # rare: below 10 training pictures; common: below 100; frequent


def lvis_location(image: Mapping[str, Any]) -> str | None:
    """ "train2017/000000000001.jpg" from `coco_url`; `file_name` where there is none."""
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) and url else image.get("file_name")


def read_image_ids(path: Path) -> set[int]:
    """Image ids from a JSON list, a file with "images", or lines of text. Raises DataError for anything else."""
    try:
        if path.suffix.lower() == ".json":
            content = read_json(path)
            rows = content["images"] if isinstance(content, dict) else content
            return {int(row["id"] if isinstance(row, dict) else row) for row in rows}
        return {int(line) for line in read_lines(path, "one image id per line")}
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        expected = "a JSON list of ids, annotations, or one id per line"
        raise DataError(f"{path} is no list of images: expected {expected}; found {error!r}") from error


def read_lvis(
    splits: Mapping[str, Path],
    images: Path,
    name: str = "lvis_v1",
    minival: Path | None = None,
    missing_images: str = "error",
) -> DetectionData:
    """Read LVIS annotation files.

    Args:
        splits: "train", "val", "test" -> annotation file.
        images: folder that holds train2017/ and val2017/.
        minival: keep only these of the val split's pictures.
        missing_images: "error", or "skip" to leave absent pictures out, counted.

    Raises:
        DataError: files absent or broken, categories without frequency, MiniVal pictures that val does not list.
    """
    report = DetectionReport()
    files = {split: read_coco_file(Path(path)) for split, path in splits.items()}
    categories = merge_categories(list(files.values()), report)
    frequencies = [category.get("frequency") for category in categories]
    if bad := [c["name"] for c, frequency in zip(categories, frequencies) if frequency not in FREQUENCIES]:
        raise DataError(f"{name}: {len(bad)} categories have no frequency 'r', 'c' or 'f', such as {bad[0]!r}")
    ids = [category["id"] for category in categories]
    label = {category: position for position, category in enumerate(ids)}

    def extras(image: Mapping[str, Any]) -> dict[str, Any]:
        lists = {
            "neg_labels": image.get("neg_category_ids", ()),
            "not_exhaustive_labels": image.get("not_exhaustive_category_ids", ()),
        }
        try:
            return {field: tuple(sorted(label[c] for c in values)) for field, values in lists.items()}
        except (KeyError, TypeError) as error:
            raise DataError(f"{name}: image {image['id']} lists a category that is absent: {error}") from error

    items, tree = {}, Tree(images, unwrap=False)
    for split, file in files.items():
        only = read_image_ids(minival) if minival is not None and split == "val" else None
        if only is not None and (unknown := only - {image["id"] for image in file.images}):
            raise DataError(
                f"{minival} names {len(unknown)} pictures that {file.path} does not list: {min(unknown)}, ..."
            )
        items[split] = coco_items(file, tree, ("",), ids, report, missing_images, lvis_location, extras, only)
    names = [category["name"] for category in categories]
    return make_detection_data(name, names, ids, items, report, frequencies=frequencies)
