"""Render the embedded few-shot tasks: one zip of small pictures per task, in the layout of an image folder.

    python make_tasks.py --glyphs work/glyphs --out ../../src/duotune/assets/tasks
    python make_tasks.py ... --check work/clip          # also print zero-shot accuracy of a model on each

Only drawings that pre-training never saw are used (`holdout.py`). Each class's drawings, of whatever
packages, are dealt at random over train, val and test, so the three splits share a distribution and
never a drawing. `tiny-cross-package` is the exception by design: it is trained on one package's
drawings and tested on another's. Every drawing is rendered several times with random attributes.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from holdout import COLOUR_STYLES, split
from packages import BY_STYLE
from PIL import Image
from pretrain_clip import load_glyphs
from rendering import COLOUR_NAMES, EFFECTS, KINDS, OBJECTS, draw_attributes, render

TRAIN, VAL, TEST_IMAGES, QUALITY = 20, 6, 400, 85
FOOD = ("food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink")
VEHICLES = ("transport-ground", "transport-water", "transport-air")
TRANSPORT = (*VEHICLES, "place-building")
MAMMALS = ("animal-mammal",)
ANIMALS = (*MAMMALS, "animal-bird", "animal-bug", "animal-marine", "animal-reptile")
PLAIN = dict(foreground=0, effect=0, tilt=0, size=(1, 2), background=(0, 1, 2))
STYLE_NAMES = dict(
    noto="noto",
    twemoji="twitter",
    fluent="fluent",
    fluentflat="flat fluent",
    fluenthc="high contrast",
    fxemoji="firefox",
    streamline="streamline",
)


@dataclass
class Task:
    """A task's classes, drawings and rendering.

    pools: per class and split ("train", "val", "test"), glyph indices.
    force: rendering attributes (index, tuple to choose from, or "label").
    after: a corruption of the finished pictures (N, 3, 48, 48) in 0..1.
    effect_share: strength of the effects, see `render`.
    """

    name: str
    about: str
    class_names: list[str]
    pools: list[dict[str, list[int]]]
    force: dict = field(default_factory=dict)
    after: object = None
    effect_share: float = 1.0
    template: str = "a drawing of a {}."
    templates: tuple[str, ...] = (
        "a drawing of a {}.",
        "a picture of a {}.",
        "an icon of a {}.",
        "an emoji of a {}.",
        "a cartoon of a {}.",
    )


def deal(drawings: list[int], rs) -> dict[str, list[int]]:
    """Drawings of one class over the splits: a third for test, one for val, the rest for training."""
    order = [int(i) for i in rs.permutation(drawings)]
    test = max(1, round(len(order) / 3))
    return dict(test=order[:test], val=order[test : test + 1], train=order[test + 1 :])


def kinds(name, about, records, subgroups, most, seed, least=4, held_out=None, **options) -> Task:
    """One class per concept of these subgroups with at least `least` kept-back drawings.

    held_out: True: concepts that pre-training never saw, all of whose drawings are kept back; False: the others;
        None: both.
    """
    _, held, back = split(records)
    drawings = collections.defaultdict(list)
    for i in back:
        r = records[i]
        if r["subgroup"] not in subgroups or r["concept"].startswith("n:") or BY_STYLE[r["style"]].mono:
            continue
        if held_out is None or (r["concept"] in held) == held_out:
            drawings[r["concept"]].append(i)
    rs = np.random.RandomState(seed)
    concepts = [c for c in sorted(drawings) if len(drawings[c]) >= least]
    concepts = [concepts[k] for k in rs.permutation(len(concepts))[:most]]
    names = [records[drawings[c][0]]["name"] for c in concepts]
    return Task(name, about, names, [deal(drawings[c], rs) for c in concepts], **options)


def solarised(x):
    return 0.5 * x + 0.5 * (2 * x - 1).abs()


def swapped(x):
    return x[:, [1, 2, 0]]


def coarse(x):
    """12 x 12 blocks, colour channels exchanged."""
    return swapped(F.interpolate(F.avg_pool2d(x, 4), scale_factor=4))


def filmed(x):
    """Behind a pale yellow film."""
    return 0.3 * x + 0.7 * torch.tensor([0.95, 0.85, 0.55]).view(1, 3, 1, 1)


def edges(x):
    """Faint pictures with dark lines where the brightness changes."""
    grey = F.pad(x.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    dx, dy = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2], grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    return 0.35 * x + 0.65 * (1 - 1.5 * (dx.square() + dy.square()).sqrt()).clamp(0, 1)


def attributes(name, about, class_names, drawings, rs, **options) -> Task:
    """One class per value of a rendering attribute; every class shows its own random drawings.

    A drawing that is tested in any class is trained in none.
    """
    order = [int(i) for i in rs.permutation(drawings)]
    test, rest = order[: len(order) // 3], order[len(order) // 3 :]
    val, train = rest[: len(rest) // 5], rest[len(rest) // 5 :]
    pick = lambda pool, n: [int(i) for i in rs.choice(pool, n, replace=len(pool) < n)]
    pools = [dict(test=pick(test, 80), val=pick(val, VAL), train=pick(train, TRAIN)) for _ in class_names]
    return Task(name, about, class_names, pools, **options)


def _shuffled(by_concept, concepts, rs) -> list[int]:
    return [int(i) for i in rs.permutation([i for c in concepts for i in by_concept[c]])]


def groups(name, about, records, drawings, rs, **options) -> Task:
    """One class per kind of object (mammal, bird, fruit, ...), every shot another drawing; no concept in two splits."""
    subgroups = [s for s in OBJECTS if sum(records[i]["subgroup"] == s for i in drawings) >= 3 * TRAIN // 2]
    pools = []
    for s in subgroups:
        by_concept = collections.defaultdict(list)
        for i in drawings:
            if records[i]["subgroup"] == s:
                by_concept[records[i]["concept"]].append(i)
        concepts = [c for c in rs.permutation(sorted(by_concept))]
        test = max(1, round(len(concepts) * 0.35))
        val = test + max(1, len(concepts) // 10)
        parts = dict(test=concepts[:test], val=concepts[test:val], train=concepts[val:])
        pools.append({split_name: _shuffled(by_concept, part, rs) for split_name, part in parts.items()})
    return Task(name, about, [KINDS[s] for s in subgroups], pools, **options)


def tasks(records) -> list[Task]:
    seen, held, back = split(records)
    rs = np.random.RandomState(8)
    colour = [
        i
        for i in back
        if records[i]["style"] in (*COLOUR_STYLES, "fxemoji", "streamline")
        and records[i]["subgroup"] in OBJECTS
        and records[i]["concept"] not in held
    ]
    of_kind = lambda name, about, subgroups, most, seed, **options: kinds(
        name, about, records, subgroups, most, seed, force=dict(PLAIN), **options
    )
    new = dict(least=6, held_out=True)  # many different drawings of each: what 16 shots are for
    made = [
        of_kind("tiny-mammals", "fine-grained kinds of mammals, two or three drawings each", MAMMALS, 20, 1),
        of_kind("tiny-clothing", "kinds of clothing, two or three drawings each", ("clothing",), 20, 3),
        of_kind("tiny-food", "kinds of food and drink", FOOD, 20, 2, least=5),
        of_kind(
            "tiny-animals",
            "animals whose names and looks pre-training never saw",
            ANIMALS,
            20,
            4,
            least=4,
            held_out=True,
        ),
        of_kind(
            "tiny-transport",
            "vehicles and buildings that pre-training never saw",
            TRANSPORT,
            20,
            5,
            least=5,
            held_out=True,
        ),
        of_kind("tiny-objects", "objects of all sorts that pre-training never saw", OBJECTS, 24, 6, **new),
        of_kind(
            "tiny-solarised",
            "objects pre-training never saw, all pictures solarised: a systematic corruption it never saw either",
            OBJECTS,
            24,
            7,
            after=solarised,
            **new,
        ),
        of_kind(
            "tiny-edges",
            "objects pre-training never saw, outlines on a faint picture: a systematic corruption it never saw either",
            OBJECTS,
            24,
            9,
            after=edges,
            **new,
        ),
        of_kind(
            "tiny-false-colours",
            "food, all pictures with their colour channels exchanged: a systematic corruption pre-training saw rarely",
            FOOD,
            20,
            10,
            least=5,
            after=swapped,
        ),
        groups(
            "tiny-kinds",
            "what kind of thing it is; no concept is both trained and tested",
            records,
            colour,
            rs,
            force=dict(PLAIN),
        ),
    ]
    styles, pools = list(STYLE_NAMES), []
    for style in styles:
        drawings = [i for i in back if records[i]["style"] == style and records[i]["subgroup"] in OBJECTS]
        order = [int(i) for i in rs.permutation(drawings)]
        test = min(60, len(order) // 2)
        pools.append(dict(test=order[:test], val=order[test : test + 6], train=order[test + 6 : test + 6 + 4 * TRAIN]))
    made.append(
        Task(
            "tiny-styles",
            "who drew it: five drawing styles pre-training saw and two it never saw",
            [STYLE_NAMES[s] for s in styles],
            pools,
            force=dict(PLAIN),
            template="a {} drawing.",
            templates=("a {} drawing.", "a {} emoji.", "a {} icon.", "a {} picture."),
        )
    )
    colours = [c for c in COLOUR_NAMES if c != "white"]
    made.append(
        attributes(
            "tiny-colours",
            "the colour of the background, seen through a pale yellow film, whatever stands before it",
            colours,
            colour,
            rs,
            force=dict(PLAIN, background=1, back="label"),
            after=filmed,
            template="a drawing on a {} background.",
            templates=("a drawing on a {} background.", "a picture on a plain {} background."),
        )
    )
    made.append(
        attributes(
            "tiny-effects",
            "how the picture was degraded, more mildly than pre-training ever saw it, whatever it shows",
            ["clean", *EFFECTS[1:]],
            colour,
            rs,
            force=dict(PLAIN, effect="label"),
            effect_share=0.5,
            template="a {} picture.",
            templates=("a {} picture.", "a {} drawing."),
        )
    )
    flags = collections.defaultdict(list)
    for i in back:
        if records[i]["subgroup"] == "country-flag":
            flags[records[i]["concept"]].append(i)
    chosen = [c for c in sorted(flags) if len(flags[c]) >= 2]
    names = [records[flags[c][0]]["name"].removeprefix("flag of ") for c in chosen]
    pools = []
    for c in chosen:
        order = [int(i) for i in rs.permutation(flags[c])]
        pools.append(dict(test=order[:1], val=order[1:2], train=order[1:2]))
    made.append(
        Task(
            "tiny-flags",
            "country flags of 12 x 12 blocks in exchanged colours; one drawing for training and validation, another for testing",
            names,
            pools,
            force=dict(PLAIN, size=(0, 1, 2)),
            after=coarse,
            template="a drawing of a flag of {}.",
            templates=("a drawing of a flag of {}.", "an icon of a flag of {}.", "an emoji of a flag of {}."),
        )
    )
    both = collections.defaultdict(dict)
    for i in back:
        r = records[i]
        if r["subgroup"] in OBJECTS and r["style"] in ("fxemoji", "streamline") and r["concept"] not in held:
            both[r["concept"]].setdefault(r["style"], []).append(i)
    concepts = [c for c in sorted(both) if len(both[c]) == 2]
    concepts = [concepts[k] for k in rs.permutation(len(concepts))[:60]]
    made.append(
        Task(
            "tiny-cross-package",
            "a domain shift: trained on one package's drawings, tested on another's",
            [records[both[c]["fxemoji"][0]]["name"] for c in concepts],
            [dict(train=both[c]["streamline"], val=both[c]["streamline"], test=both[c]["fxemoji"]) for c in concepts],
            force=dict(PLAIN),
        )
    )
    return made


def pictures(task: Task, split_name: str, images, records, seed: int):
    """[(label, (3, 48, 48) tensor in 0..1)] of one split."""
    rs = np.random.RandomState(seed)
    each = {"train": TRAIN, "val": VAL, "test": max(8, -(-TEST_IMAGES // len(task.class_names)))}[split_name]
    index, labels = [], []
    for label, pool in enumerate(task.pools):
        drawings = pool[split_name]
        index += [drawings[k % len(drawings)] for k in range(each)]
        labels += [label] * each
    chosen, force = [records[i] for i in index], {}
    for key, value in task.force.items():
        force[key] = (
            np.array(labels)
            if value == "label"
            else rs.choice(value, len(index))
            if isinstance(value, tuple)
            else value
        )
    a = draw_attributes(chosen, rs, 1.0, **force)
    x = render(images[torch.as_tensor(index)], a, rs, effect_share=task.effect_share)
    return labels, task.after(x) if task.after else x


def write(task: Task, images, records, out: Path, seed: int) -> Path:
    path, tmp = out / f"{task.name}.zip", out / f"{task.name}.zip.new"
    styles = sorted({records[i]["style"] for p in task.pools for s in p.values() for i in s})
    about = dict(
        name=task.name,
        about=task.about,
        class_names=task.class_names,
        template=task.template,
        templates=list(task.templates),
        sources=[f"{BY_STYLE[s].npm} ({BY_STYLE[s].author}, {BY_STYLE[s].licence})" for s in styles],
    )
    stamp = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is made
    with zipfile.ZipFile(tmp, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("dataset.json", stamp), json.dumps(about, indent=1))
        for k, split_name in enumerate(("train", "val", "test")):
            labels, x = pictures(task, split_name, images, records, 1000 * seed + k)
            pixels = (x.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            for n, (label, picture) in enumerate(zip(labels, pixels)):
                data = io.BytesIO()
                Image.fromarray(picture).save(data, "WEBP", quality=QUALITY, method=6)
                archive.writestr(zipfile.ZipInfo(f"{split_name}/{label:03d}/{n:05d}.webp", stamp), data.getvalue())
    tmp.replace(path)
    return path


def zero_shot(path: Path, folder: Path) -> float:
    from pretrain_clip import MEAN, STD, features
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = (
        CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(),
        CLIPTokenizer.from_pretrained(folder),
    )
    with zipfile.ZipFile(path) as archive, torch.no_grad():
        about = json.loads(archive.read("dataset.json"))
        names = [n for n in archive.namelist() if n.startswith("test/")]
        x = torch.stack(
            [torch.from_numpy(np.array(Image.open(io.BytesIO(archive.read(n))).convert("RGB"))) for n in names]
        )
        x = (x.permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
        device = torch.device("cpu")
        image = features(model, model.vision_model, model.visual_projection, device, pixel_values=x)
        ids = tokenizer(
            [about["template"].format(c) for c in about["class_names"]], padding=True, return_tensors="pt"
        ).input_ids
        text = features(model, model.text_model, model.text_projection, device, input_ids=ids)
        labels = torch.tensor([int(n.split("/")[1]) for n in names])
    return 100 * ((image @ text.T).argmax(1) == labels).float().mean().item()


def main(args) -> None:
    images, records = load_glyphs(args.glyphs)
    args.out.mkdir(parents=True, exist_ok=True)
    for seed, task in enumerate(tasks(records)):
        if args.only and task.name not in args.only.split(","):
            continue
        path = write(task, images, records, args.out, seed)
        with zipfile.ZipFile(path) as archive:
            count = collections.Counter(n.split("/")[0] for n in archive.namelist())
        row = (
            f"{task.name:22s} {len(task.class_names):3d} classes {count['train']:5d} train {count['val']:4d} val "
            f"{count['test']:4d} test {path.stat().st_size / 1e6:5.2f} MB"
        )
        if args.check:
            row += f"  zero-shot {zero_shot(path, args.check):5.1f} %, chance {100 / len(task.class_names):.1f} %"
        print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glyphs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", type=Path, help="folder of a CLIP model to measure zero-shot accuracy of")
    parser.add_argument("--only", help="comma-separated task names")
    main(parser.parse_args())
