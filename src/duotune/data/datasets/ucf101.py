"""UCF101 (Soomro et al. 2012): the middle frames of videos of 101 human actions.

ucf101/
├── UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg
├── ucfTrainTestlist/classInd.txt, trainlist01.txt, testlist01.txt
└── split_zhou_UCF101.json           without it: the first official split, and our 80/20 split of its training part
"""

from __future__ import annotations

import re
from pathlib import Path

from ..base import ImageItem
from ..named import NamedDataset, split_train
from ..split_file import Splits, check_present, names_of_labels, parse_lines


def spaced(action: str) -> str:
    """ "ApplyEyeMakeup" -> "Apply_Eye_Makeup", the name of the folder of frames."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def read_original(folder: Path, seed: int) -> Splits:
    lists = folder / "ucfTrainTestlist"
    number_name = lambda line: (int(line.split(" ")[0]) - 1, line.split(" ")[1])
    pairs = parse_lines(lists / "classInd.txt", "lines 'NUMBER Action'", number_name)
    names = names_of_labels(pairs, str(lists / "classInd.txt"))
    labels = {name: label for label, name in enumerate(names)}

    def parse(line: str) -> ImageItem:
        action, video = line.split(" ")[0].split("/")
        frame = Path(video).with_suffix(".jpg").name
        return ImageItem(folder / "UCF-101-midframes" / spaced(action) / frame, labels[action])

    parts = []
    for file in (lists / "trainlist01.txt", lists / "testlist01.txt"):
        items = parse_lines(file, "lines 'Action/VIDEO.avi' with an action of classInd.txt", parse)
        check_present([item.path for item in items], str(file))
        parts.append(items)
    return split_train(Splits([spaced(name) for name in names], train=parts[0], test=parts[1]), seed)


DATASET = NamedDataset(
    name="ucf101",
    title="UCF101, middle frames of human actions",
    num_classes=101,
    folder="ucf101",
    layout="UCF-101-midframes/, split_zhou_UCF101.json or ucfTrainTestlist/",
    images="UCF-101-midframes",
    split_file="split_zhou_UCF101.json",
    read_original=read_original,
    template="a photo of a person doing {}.",
)
