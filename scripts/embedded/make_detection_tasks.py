"""Compose the embedded detection tasks: one zip of COCO files and small pictures per task.

    python make_detection_tasks.py --glyphs work/glyphs --out ../../src/duotune/assets/detection

Only drawings that pre-training never saw are used (`holdout.py`), and no drawing is in two splits. Training is small
on purpose: 60 pictures.

tiny-scenes            concepts and styles of pre-training, drawn from its own mixture; for testing alone
tiny-scenes-styles     what kind of thing it is, in two packages' styles that pre-training never saw; no concept is
                       both trained and tested
tiny-scenes-concepts   concepts that pre-training never saw in any style
tiny-scenes-solarised  known concepts, all pictures solarised: a systematic corruption never seen in pre-training
tiny-scenes-edges      likewise, outlines on a faint picture
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from holdout import COLOUR_STYLES, split
from make_tasks import edges, solarised
from packages import BY_STYLE
from PIL import Image
from rendering import KINDS
from scenes import CANVAS, Scene, compose, is_object

IMAGES = dict(train=60, val=40, test=150)
FEWEST_OBJECTS, MOST_OBJECTS, QUALITY = 2, 7, 85
STAMP = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is made
Pools = dict[str, list[int]]


@dataclass
class Task:
    """A task's classes, drawings and rendering.

    pools: per class, drawings of each split. images: pictures of each split.
    after: a corruption of the finished pictures (N, 3, S, S) in 0..1. mild: see `scenes.painted`.
    """

    name: str
    about: str
    class_names: list[str]
    pools: list[Pools]
    images: dict[str, int]
    after: Callable[[torch.Tensor], torch.Tensor] | None = None
    mild: float = 1.0
    degrade: float = 0.0


def deal(drawings: list[int], rng: np.random.Generator) -> Pools:
    """Drawings of one class over the splits: 40 % for test, one or a sixth for val, the rest for training."""
    order = rng.permutation(drawings).tolist()
    test, val = max(1, round(0.4 * len(order))), max(1, len(order) // 6)
    return dict(test=order[:test], val=order[test : test + val], train=order[test + val :])


def by_concept(records, drawings: list[int]) -> dict[str, list[int]]:
    found = collections.defaultdict(list)
    for i in drawings:
        if is_object(records[i]):
            found[records[i]["concept"]].append(i)
    return found


def concepts_task(name, about, records, drawings, classes, least, seed, images=IMAGES, **options) -> Task:
    """One class per concept with at least `least` drawings; concepts that share a word are not taken together."""
    rng, found = np.random.default_rng(seed), by_concept(records, drawings)
    chosen: list[str] = []
    words: set[str] = set()
    for concept in rng.permutation(sorted(c for c, rows in found.items() if len(rows) >= least)).tolist():
        named = set(records[found[concept][0]]["name"].split())
        if len(chosen) < classes and not named & words:
            chosen.append(concept)
            words |= named
    names = [records[found[c][0]]["name"] for c in chosen]
    return Task(name, about, names, [deal(found[c], rng) for c in chosen], dict(images), **options)


def kinds_task(name, about, records, drawings, classes, seed, **options) -> Task:
    """One class per kind of thing; no concept is in two splits."""
    rng, found = np.random.default_rng(seed), by_concept(records, drawings)
    groups = collections.defaultdict(list)
    for concept in sorted(found):
        groups[records[found[concept][0]]["subgroup"]].append(concept)
    largest = sorted(groups, key=lambda s: -len(groups[s]))[:classes]
    pools = []
    for subgroup in largest:
        dealt = deal(list(range(len(groups[subgroup]))), rng)
        pools.append({s: [i for k in part for i in found[groups[subgroup][k]]] for s, part in dealt.items()})
    return Task(name, about, [KINDS[s] for s in largest], pools, dict(IMAGES), **options)


def tasks(records) -> list[Task]:
    _, held, back = split(records)
    colour = (*COLOUR_STYLES, "fxemoji", "streamline")
    unseen = [i for i in back if records[i]["style"] in ("fxemoji", "streamline") and records[i]["concept"] not in held]
    new = [i for i in back if records[i]["style"] in colour and records[i]["concept"] in held]
    known = [i for i in back if records[i]["style"] in colour and records[i]["concept"] not in held]
    in_style = [i for i in known if not BY_STYLE[records[i]["style"]].unseen]
    return [
        concepts_task(
            "tiny-scenes",
            "concepts, styles and renderings of pre-training, drawings it never saw; for testing alone",
            records,
            in_style,
            20,
            2,
            11,
            images=dict(test=150),
            mild=0.5,
            degrade=0.06,
        ),
        kinds_task(
            "tiny-scenes-styles",
            "what kind of thing it is, in two packages' styles pre-training never saw; no concept is trained and tested",
            records,
            unseen,
            12,
            12,
        ),
        concepts_task("tiny-scenes-concepts", "concepts pre-training never saw in any style", records, new, 12, 6, 13),
        concepts_task(
            "tiny-scenes-solarised",
            "known concepts, all pictures solarised: a systematic corruption never seen in pre-training",
            records,
            known,
            12,
            4,
            14,
            after=solarised,
        ),
        concepts_task(
            "tiny-scenes-edges",
            "known concepts, outlines on a faint picture: a systematic corruption never seen in pre-training",
            records,
            known,
            12,
            4,
            15,
            after=edges,
        ),
    ]


def scenes_of(task: Task, split_name: str, images, records, rng) -> tuple[list[Scene], list[list[int]]]:
    """(scenes, the classes of their objects); every class is shown about as often as every other."""
    pools = [pool[split_name] if task.images.keys() > {"test"} else sum(pool.values(), []) for pool in task.pools]
    queues = [[] for _ in pools]
    order: list[int] = []
    scenes, labels = [], []
    for _ in range(task.images[split_name]):
        drawings, classes = [], {}
        for _ in range(int(rng.integers(FEWEST_OBJECTS, MOST_OBJECTS + 1))):
            order = order or rng.permutation(len(pools)).tolist()
            label = order.pop()
            queues[label] = queues[label] or rng.permutation(pools[label]).tolist()
            drawings.append(queues[label].pop())
            classes[drawings[-1]] = label
        scene = compose(images, records, drawings, rng, mild=task.mild, degrade=task.degrade)
        scenes.append(scene)
        labels.append([classes[i] for i in scene.drawings])
    return scenes, labels


def annotations(task: Task, scenes: list[Scene], labels: list[list[int]]) -> dict:
    """COCO's form of one split."""
    content = dict(
        info=dict(description=task.about),
        images=[dict(id=n, file_name=f"{n:04d}.webp", width=CANVAS, height=CANVAS) for n in range(len(scenes))],
        annotations=[],
        categories=[dict(id=k + 1, name=name) for k, name in enumerate(task.class_names)],
    )
    for number, (scene, classes) in enumerate(zip(scenes, labels)):
        for (x1, y1, x2, y2), label in zip(scene.boxes.tolist(), classes):
            box = [x1, y1, x2 - x1, y2 - y1]
            row = dict(image_id=number, category_id=label + 1, bbox=box, area=box[2] * box[3], iscrowd=0)
            content["annotations"].append(dict(id=len(content["annotations"]) + 1, **row))
    return content


def write(task: Task, images, records, out: Path, seed: int) -> Path:
    path, tmp = out / f"{task.name}.zip", out / f"{task.name}.zip.new"
    styles = sorted({records[i]["style"] for pool in task.pools for part in pool.values() for i in part})
    about = dict(
        name=task.name,
        about=task.about,
        sources=[f"{BY_STYLE[s].npm} ({BY_STYLE[s].author}, {BY_STYLE[s].licence})" for s in styles],
    )
    with zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("dataset.json", STAMP), json.dumps(about, indent=1))
        for k, split_name in enumerate(task.images):
            scenes, labels = scenes_of(task, split_name, images, records, np.random.default_rng([seed, k]))
            content = json.dumps(annotations(task, scenes, labels), separators=(",", ":"))
            archive.writestr(zipfile.ZipInfo(f"{split_name}.json", STAMP), content, compress_type=zipfile.ZIP_DEFLATED)
            pixels = np.stack([scene.pixels for scene in scenes])
            if task.after:
                x = task.after(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).clamp(0, 1)
                pixels = (255 * x).round().byte().permute(0, 2, 3, 1).numpy()
            for number, picture in enumerate(pixels):
                data = io.BytesIO()
                Image.fromarray(picture).save(data, "WEBP", quality=QUALITY, method=6)
                archive.writestr(zipfile.ZipInfo(f"{split_name}/{number:04d}.webp", STAMP), data.getvalue())
    tmp.replace(path)
    return path


def main(args) -> None:
    torch.set_num_threads(1)
    images, records = np.load(args.glyphs / "images.npy"), json.loads((args.glyphs / "glyphs.json").read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, task in enumerate(tasks(records)):
        if args.only and task.name not in args.only.split(","):
            continue
        path = write(task, images, records, args.out, seed)
        drawings = [min(len(pool[s]) for pool in task.pools) for s in ("train", "val", "test")]
        print(
            f"{task.name:22s} {len(task.class_names):3d} classes, images {task.images}, fewest drawings of a class "
            f"{drawings}, {path.stat().st_size / 1e6:.2f} MB: {', '.join(task.class_names)}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="comma-separated task names")
    main(parser.parse_args())
