"""Compose scenes of many drawings, with boxes, and captions that name what is there among what is not.

A scene is a square picture of one to twelve objects of different sizes on a background; objects may cover each other
and reach out of the picture. A box is the extent of what is still visible of its object.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass

import numpy as np
from packages import BY_STYLE
from PIL import Image
from rendering import COLOURS, KEEP_HANDEDNESS, KINDS, OBJECTS

CANVAS = 128
SMALLEST, LARGEST = 18, 54  # side of the square that a drawing fills, in pixels
MOST_OBJECTS, TRIES = 12, 6
LEAST_VISIBLE = 0.4  # share of an object's pixels that later objects and the edge must leave
SOLID = 100  # alpha from which a pixel belongs to an object
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32) / 255
MONO_SHARE, KIND_SHARE = 0.12, 0.06
FEWEST_NAMES, MOST_NAMES = 5, 16


@dataclass
class Scene:
    """pixels: (S, S, 3) uint8 RGB. boxes: (n, 4) xyxy, width = x2 - x1. drawings: n indices of the records."""

    pixels: np.ndarray
    boxes: np.ndarray
    drawings: list[int]


def is_object(record) -> bool:
    """An emoji of a thing that can lie in a scene."""
    return record["subgroup"] in OBJECTS and not record["concept"].startswith("n:")


def background(rng: np.random.Generator, size: int, kind: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """((S, S, 3) in 0..1, (k, 3) its colours)."""
    kind = kind or rng.choice(
        ["white", "plain", "gradient", "noise", "striped", "checkered"], p=[0.2, 0.3, 0.2, 0.12, 0.1, 0.08]
    )
    one, two = np.clip(PALETTE[rng.choice(len(PALETTE), 2, replace=False)] + rng.uniform(-0.08, 0.08, (2, 3)), 0, 1)
    row, column = np.mgrid[:size, :size].astype(np.float32)
    if kind == "white":
        return np.ones((size, size, 3), np.float32), np.ones((1, 3))
    if kind == "plain":
        return np.broadcast_to(one, (size, size, 3)).astype(np.float32), one[None]
    if kind == "noise":
        cells = Image.fromarray((255 * rng.random((9, 9, 3))).astype(np.uint8))
        smooth = np.asarray(cells.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        return 0.75 * smooth + 0.25 * rng.random((size, size, 3), dtype=np.float32), np.full((1, 3), 0.5)
    angle = rng.uniform(0, 2 * np.pi)
    along = row * np.sin(angle) + column * np.cos(angle)
    if kind == "gradient":
        share = (along - along.min()) / (along.max() - along.min())
    elif kind == "striped":
        share = (np.sin(along * 2 * np.pi / rng.uniform(10, 40)) > 0).astype(np.float32)
    else:
        side = rng.integers(6, 24)
        share = ((row // side + column // side) % 2).astype(np.float32)
    return (one * (1 - share[..., None]) + two * share[..., None]).astype(np.float32), np.stack([one, two])


def painted(drawing: np.ndarray, mono: bool, colours: np.ndarray, rng: np.random.Generator, mild: float) -> np.ndarray:
    """A drawing (64, 64, 4) uint8, perhaps in other colours; one-coloured drawings stand out from the background.

    mild: 1 for the drawing's own colours always, 0 for the full mixture.
    """
    u = rng.random() + mild
    if mono or u < 0.05:
        distance = np.abs(PALETTE[:, None] - colours[None]).max(2).min(1)
        drawing = drawing.copy()
        drawing[..., :3] = 255 * PALETTE[rng.choice(np.flatnonzero(distance > 0.3))]
    elif u < 0.12:
        drawing = drawing.copy()
        drawing[..., :3] = np.roll(drawing[..., :3], rng.integers(1, 3), axis=2)
    elif u < 0.19:
        drawing = drawing.copy()
        drawing[..., :3] = drawing[..., :3].mean(2, keepdims=True)
    return drawing


def degraded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of a few mild faults of a whole picture (S, S, 3) in 0..1."""
    kind = rng.integers(4)
    if kind == 0:
        return x + rng.normal(0, rng.uniform(0.03, 0.12), x.shape).astype(np.float32)
    if kind == 1:
        return 0.5 + rng.uniform(0.4, 0.8) * (x - 0.5)
    if kind == 2:
        return x * rng.uniform(0.4, 0.8)
    small = Image.fromarray((255 * x.clip(0, 1)).astype(np.uint8)).resize((x.shape[1] // 2,) * 2, Image.Resampling.BOX)
    return np.asarray(small.resize(x.shape[1::-1], Image.Resampling.BILINEAR), dtype=np.float32) / 255


def compose(
    images: np.ndarray,
    records,
    drawings: list[int],
    rng: np.random.Generator,
    size: int = CANVAS,
    mild: float = 0.0,
    degrade: float = 0.2,
) -> Scene:
    """Lay drawings over each other, the first at the bottom; those that find no place are left out.

    Args:
        images: (N, 64, 64, 4) uint8. drawings: indices of images and records.
        mild: see `painted`. degrade: share of pictures that pass `degraded`.
    """
    canvas, colours = background(rng, size)
    canvas = canvas.copy()
    masks: list[np.ndarray] = []  # what is still visible of each object
    areas: list[int] = []
    placed: list[int] = []
    for index in drawings:
        record = records[index]
        drawing = painted(images[index], BY_STYLE[record["style"]].mono, colours, rng, mild)
        glyph = Image.fromarray(drawing).convert("RGBa")  # premultiplied, so that edges keep their colour
        if record["subgroup"] not in KEEP_HANDEDNESS and rng.random() < 0.4:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turn = rng.random()
        angle = rng.uniform(-75, 75) if turn < 0.15 else rng.uniform(-15, 15) if turn < 0.5 else 0.0
        for _ in range(TRIES):
            side = int(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
            patch = glyph.resize((side, side), Image.Resampling.BILINEAR)
            if angle:
                patch = patch.rotate(angle, Image.Resampling.BILINEAR, expand=True)
            patch = np.frombuffer(patch.tobytes(), np.uint8).reshape(patch.height, patch.width, 4)
            height, width = patch.shape[:2]
            solid = patch[..., 3] >= SOLID
            area = int(solid.sum())
            x, y = (int(rng.integers(-side // 5, size - s + side // 5 + 1)) for s in (width, height))
            x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + width, size), min(y + height, size)
            here = (slice(y1, y2), slice(x1, x2))
            part = (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))
            mask = np.zeros((size, size), bool)
            mask[here] = solid[part]
            rest = [m & ~mask for m in masks]
            if mask.sum() < max(12, LEAST_VISIBLE * area):
                continue
            if any(r.sum() < LEAST_VISIBLE * a for r, a in zip(rest, areas)):
                continue
            over = patch[part].astype(np.float32) / 255
            canvas[here] = canvas[here] * (1 - over[..., 3:]) + over[..., :3]
            masks, areas, placed = [*rest, mask], [*areas, area], [*placed, index]
            break
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    canvas = canvas * rng.uniform(0.85, 1.1) + rng.uniform(-0.03, 0.03)
    if rng.random() < degrade:
        canvas = degraded(canvas, rng)
    return Scene((255 * canvas.clip(0, 1)).round().astype(np.uint8), boxes, placed)


def compose_grid(
    images: np.ndarray, records, drawings: list[int], side: int, rng, size: int = CANVAS, mild=0.5
) -> Scene:
    """side x side drawings in the cells of a grid, moved and scaled a little: dense and quick to compose."""
    canvas, colours = background(rng, size)
    canvas = canvas.copy()
    cell, boxes = size / side, []
    for number, index in enumerate(drawings):
        record = records[index]
        drawing = painted(images[index], BY_STYLE[record["style"]].mono, colours, rng, mild)
        glyph = Image.fromarray(drawing).convert("RGBa")
        if record["subgroup"] not in KEEP_HANDEDNESS and rng.random() < 0.4:
            glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        width = int(cell * rng.uniform(0.7, 1.1))
        patch = glyph.resize((width, width), Image.Resampling.BILINEAR)
        if rng.random() < 0.3:
            patch = patch.rotate(rng.uniform(-20, 20), Image.Resampling.BILINEAR)
        patch = np.frombuffer(patch.tobytes(), np.uint8).reshape(width, width, 4).astype(np.float32) / 255
        row, column = divmod(number, side)
        y, x = (int(cell * (k + 0.5) - width / 2 + rng.uniform(-0.15, 0.15) * cell) for k in (row, column))
        y, x = (min(max(v, 0), size - width) for v in (y, x))
        here = (slice(y, y + width), slice(x, x + width))
        canvas[here] = canvas[here] * (1 - patch[..., 3:]) + patch[..., :3]
        solid = patch[..., 3] >= SOLID / 255
        ys, xs = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        if len(xs):
            boxes.append([x + xs[0], y + ys[0], x + xs[-1] + 1, y + ys[-1] + 1])
        else:
            boxes.append([x, y, x + width, y + width])
    canvas = canvas * rng.uniform(0.85, 1.1) + rng.uniform(-0.03, 0.03)
    return Scene((255 * canvas.clip(0, 1)).round().astype(np.uint8), np.array(boxes, np.float32), drawings)


class Distribution:
    """The scenes and captions of pre-training, from the drawings that may be seen.

    Args:
        records: of all drawings. allowed: indices that may be used.
    """

    def __init__(self, images: np.ndarray, records, allowed: list[int]):
        self.images, self.records = images, records
        self.colour, self.mono = collections.defaultdict(list), collections.defaultdict(list)
        for i in allowed:
            if is_object(records[i]):
                kind = self.mono if BY_STYLE[records[i]["style"]].mono else self.colour
                kind[records[i]["concept"]].append(i)
        self.concepts = sorted({*self.colour, *self.mono})
        self.number = {c: k for k, c in enumerate(self.concepts)}
        either = lambda c: records[(self.colour[c] or self.mono[c])[0]]
        self.names = [either(c)["name"] for c in self.concepts]
        self.subgroups = [either(c)["subgroup"] for c in self.concepts]
        self.of_subgroup = collections.defaultdict(list)
        for k, subgroup in enumerate(self.subgroups):
            self.of_subgroup[subgroup].append(k)

    def drawing(self, concept: str, rng: np.random.Generator) -> int:
        colour, mono = self.colour.get(concept, ()), self.mono.get(concept, ())
        pool = mono if mono and (not colour or rng.random() < MONO_SHARE) else colour
        return int(rng.choice(pool))

    def scene(self, rng: np.random.Generator, size: int = CANVAS, mild: float = 0.0) -> tuple[Scene, list[int]]:
        """A scene and the numbers of its objects' concepts."""
        count = 1 + int(rng.integers(MOST_OBJECTS))
        concepts = rng.choice(len(self.concepts), count).tolist()
        if rng.random() < 0.3:  # relatives in one picture have to be told apart
            group = self.of_subgroup[self.subgroups[concepts[0]]]
            concepts[1:] = rng.choice(group, count - 1).tolist()
        if count > 1 and rng.random() < 0.3:
            concepts[-1] = concepts[0]
        chosen = [self.drawing(self.concepts[k], rng) for k in concepts]
        scene = compose(self.images, self.records, chosen, rng, size, mild, degrade=0.12 * (1 - mild))
        return scene, [self.number[self.records[i]["concept"]] for i in scene.drawings]

    def grid(self, rng: np.random.Generator, sides=(3, 4, 4, 5)) -> tuple[Scene, list[int]]:
        """A grid of drawings and the numbers of their concepts."""
        side = int(rng.choice(sides))
        concepts = rng.choice(len(self.concepts), side * side).tolist()
        chosen = [self.drawing(self.concepts[k], rng) for k in concepts]
        return compose_grid(self.images, self.records, chosen, side, rng), concepts

    def caption(self, concepts: list[int], rng: np.random.Generator) -> tuple[list[str], list[int]]:
        """(names of a caption in order, per object the place of its name)."""
        present = set(concepts)
        named = {k: self.names[k] for k in present}
        closed: set[str] = set()  # subgroups named by their kind: none of their members may be a distractor
        for k in present:
            if rng.random() < KIND_SHARE and self.subgroups[k] in KINDS:
                closed.add(self.subgroups[k])
        for k in present:
            if self.subgroups[k] in closed:
                named[k] = KINDS[self.subgroups[k]]
        names = list(dict.fromkeys(named[k] for k in concepts))
        wanted = max(len(names) + 1, int(rng.integers(FEWEST_NAMES, MOST_NAMES + 1)))
        groups = [self.subgroups[k] for k in present]
        for _ in range(8 * wanted):
            if len(names) >= wanted:
                break
            near = rng.random() < 0.4
            k = int(rng.choice(self.of_subgroup[groups[rng.integers(len(groups))]])) if near else None
            k = int(rng.integers(len(self.concepts))) if k is None else k
            if k not in present and self.subgroups[k] not in closed and self.names[k] not in names:
                names.append(self.names[k])
        order = [names[i] for i in rng.permutation(len(names))]
        return order, [order.index(named[k]) for k in concepts]
