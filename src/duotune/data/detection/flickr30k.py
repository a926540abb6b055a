"""Flickr30k Entities (Plummer et al. 2015): sentences whose phrases have boxes.

Sentences/ID.txt      five lines: A [/EN#12/people little girl] climbs [/EN#13/other stairs] .
Annotations/ID.xml    <size>, and <object>s with <name>12</name> and a <bndbox>, or none where nothing can be seen
train.txt, val.txt, test.txt    IDs
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import DataError
from ...reading import parse_xml, read_bytes
from ..split_file import check_present, read_lines
from .base import DetectionData, DetectionItem, make_detection_data
from .boxes import clipped_box, make_item
from .report import DetectionReport

MARK = re.compile(r"\[/EN#(\d+)(?:/[^\s\]]*)?\s+([^\]]*)\]")
NOT_VISUAL = "0"  # the entity of phrases that name nothing to be seen


def parse_sentence(line: str) -> tuple[str, dict[str, list[tuple[int, int]]]]:
    """A marked sentence -> (plain caption, entity -> its (first, behind last) character spans).

    >>> parse_sentence("A [/EN#12/people girl] climbs [/EN#13/other the stairs] .")
    ('A girl climbs the stairs .', {'12': [(2, 6)], '13': [(14, 24)]})
    """
    caption, spans, done = "", {}, 0
    for match in MARK.finditer(line):
        caption += line[done : match.start()]
        phrase = " ".join(match[2].split())
        spans.setdefault(match[1], []).append((len(caption), len(caption) + len(phrase)))
        caption += phrase
        done = match.end()
    return caption + line[done:], spans


def read_annotation(path: Path) -> tuple[int, int, dict[str, list[tuple[float, ...]]]]:
    """(width, height, entity -> boxes xyxy). Raises DataError if the file is absent or of another form."""
    try:
        root = parse_xml(read_bytes(path, "an annotation of Flickr30k Entities (XML)"), str(path))
        width, height = (int(root.find(f"size/{side}").text) for side in ("width", "height"))
        boxes: dict[str, list[tuple[float, ...]]] = {}
        for thing in root.findall("object"):
            for corners in thing.findall("bndbox"):
                box = tuple(float(corners.find(corner).text) for corner in ("xmin", "ymin", "xmax", "ymax"))
                for name in thing.findall("name"):
                    boxes.setdefault(str(name.text), []).append(box)
    except (AttributeError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {path}: {error}; expected an annotation of Flickr30k Entities (XML)") from error
    return width, height, boxes


def read_flickr30k(
    splits: Mapping[str, Path], images: Path, folder: Path, name: str = "flickr30k_entities"
) -> DetectionData:
    """One item per sentence; its labels index its phrases (`DetectionItem.phrases`).

    An entity that a sentence names twice is one phrase with two spans (training matches its boxes with both; measuring
    takes them apart, see `by_occurrence`). Entities without boxes are no phrases.

    Args:
        splits: "train", "val", "test" -> file with one picture id per line.
        images: folder of ID.jpg. folder: holds Sentences/ and Annotations/.

    Raises:
        DataError: files absent or not as expected.
    """
    report = DetectionReport()
    items = {split: _read_split(Path(path), images, folder, report) for split, path in splits.items()}
    return make_detection_data(name, (), (), items, report)


def by_occurrence(item: DetectionItem) -> DetectionItem:
    """The item with every span as a phrase of its own, in the order of the sentence, each with all its boxes."""
    spans = sorted((span, phrase) for phrase, spans in enumerate(item.phrases) for span in spans)
    rows = [np.flatnonzero(item.labels == phrase) for _, phrase in spans]
    labels = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    chosen = item.keep(np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64))
    return replace(chosen, labels=labels, phrases=tuple((span,) for span, _ in spans))


def _read_split(path: Path, images: Path, folder: Path, report: DetectionReport) -> list[DetectionItem]:
    ids = read_lines(path, "one picture id per line")
    check_present([images / f"{number}.jpg" for number in ids], str(path))
    items = []
    for number in ids:
        width, height, boxes = read_annotation(folder / "Annotations" / f"{number}.xml")
        lines = read_lines(folder / "Sentences" / f"{number}.txt", "one marked sentence per line")
        for position, line in enumerate(lines):
            caption, entities = parse_sentence(line)
            rows, phrases, where = [], [], f"{number}, sentence {position}"
            for entity, spans in entities.items():
                kept = []
                for corners in boxes.get(entity, ()) if entity != NOT_VISUAL else ():
                    box, fault = clipped_box(*corners, width, height)
                    if fault:
                        report.add(fault, f"{where}: {corners}")
                    if box is not None:
                        area = (box[2] - box[0]) * (box[3] - box[1])
                        kept.append((box, len(phrases), int(entity), False, area))
                if kept:
                    phrases.append(tuple(spans))
                    rows += kept
                else:
                    report.add("unseen_phrases", f"{where}: {[caption[a:b] for a, b in spans]}")
            if not rows:
                report.add("empty_images", where)
            report.images += 1
            report.boxes += len(rows)
            picture = images / f"{number}.jpg"
            more = {"caption": caption, "phrases": tuple(phrases)}
            items.append(make_item(picture, f"{number}#{position}", width, height, rows, **more))
    return items
