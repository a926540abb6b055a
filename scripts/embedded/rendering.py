"""Render glyphs as 48-px pictures with named attributes, and say truthfully in a caption what was drawn.

`draw_attributes` picks every attribute at random (or as forced), `render` draws them, `Captioner`
states a random subset of them. Context words therefore carry information about the picture, which
is what makes a learnt text context worth learning.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from packages import BY_STYLE

PIXELS = 48
COLOURS = dict(
    red=(220, 40, 40),
    green=(40, 160, 70),
    blue=(40, 90, 210),
    yellow=(240, 205, 40),
    orange=(240, 140, 30),
    purple=(140, 60, 180),
    pink=(245, 140, 180),
    brown=(130, 80, 45),
    black=(10, 10, 10),
    gray=(128, 128, 128),
    teal=(20, 150, 150),
    white=(250, 250, 250),
)
COLOUR_NAMES = list(COLOURS)
COLOUR_VALUES = torch.tensor(list(COLOURS.values())).float() / 255
WHITE, BLACK = COLOUR_NAMES.index("white"), COLOUR_NAMES.index("black")
FOREGROUNDS = ("plain", "recolored", "grayscale", "silhouette")
BACKGROUNDS = ("white", "plain", "gradient", "noise", "striped", "checkered")
EFFECTS = ("none", "inverted", "blurry", "pixelated", "noisy", "faded", "dark")
TILTS = ("upright", "tilted left", "tilted right", "upside down")
SIZES = ("small", "medium", "large")
EFFECT_WORDS = dict(
    inverted=("inverted", "negative"),
    blurry=("blurry", "blurred"),
    pixelated=("pixelated", "low resolution"),
    noisy=("noisy", "grainy"),
    faded=("faded", "pale"),
    dark=("dark",),
)
MEDIA = ("drawing", "drawing", "icon", "emoji", "picture", "image", "photo", "cartoon")
KEEP_HANDEDNESS = {
    "alphanum",
    "country-flag",
    "flag",
    "subdivision-flag",
    "arrow",
    "keycap",
    "math",
    "punctuation",
    "time",
    "currency",
    "av-symbol",
    "icon",
}
KINDS = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-bug": "bug",
    "animal-marine": "sea animal",
    "animal-reptile": "reptile",
    "animal-amphibian": "amphibian",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "prepared food",
    "food-asian": "asian food",
    "food-sweet": "sweet food",
    "drink": "drink",
    "dishware": "dishware",
    "transport-ground": "land vehicle",
    "transport-water": "boat",
    "transport-air": "aircraft",
    "place-building": "building",
    "place-geographic": "landscape",
    "place-religious": "religious building",
    "place-other": "place",
    "sky-weather": "weather",
    "clothing": "clothing",
    "musical-instrument": "musical instrument",
    "tool": "tool",
    "sport": "sport",
    "game": "game",
    "household": "household object",
    "office": "office supply",
    "country-flag": "country flag",
    "face-smiling": "smiling face",
    "face-concerned": "worried face",
    "face-neutral-skeptical": "skeptical face",
    "face-affection": "loving face",
    "face-unwell": "sick face",
    "cat-face": "cat face",
    "person-role": "worker",
    "person-sport": "athlete",
    "person-activity": "person doing an activity",
    "person-gesture": "person gesturing",
    "person-fantasy": "fantasy person",
    "family": "family",
    "person": "person",
    "heart": "heart",
    "computer": "computer",
    "phone": "phone",
    "light-video": "light or camera",
    "book-paper": "book or paper",
    "mail": "mail",
    "money": "money",
    "medical": "medical object",
    "science": "science object",
    "time": "clock",
    "zodiac": "zodiac sign",
    "arrow": "arrow",
    "alphanum": "letter sign",
    "geometric": "geometric shape",
    "event": "celebration",
    "award-medal": "medal",
    "arts-crafts": "art",
    "sound": "sound",
    "music": "music",
    "writing": "writing tool",
    "lock": "lock",
    "hand-fingers-open": "hand",
    "body-parts": "body part",
    "religion": "religious symbol",
    "transport-sign": "sign",
    "warning": "warning sign",
    "av-symbol": "button",
    "keycap": "keycap",
}
OBJECTS = (
    "animal-mammal",
    "animal-bird",
    "animal-bug",
    "animal-marine",
    "animal-reptile",
    "food-fruit",
    "food-vegetable",
    "food-prepared",
    "food-asian",
    "food-sweet",
    "drink",
    "transport-ground",
    "transport-water",
    "transport-air",
    "clothing",
    "musical-instrument",
    "tool",
    "sport",
    "household",
    "place-building",
    "plant-flower",
    "plant-other",
    "office",
)


def _mix(mild, full, strength):
    p = np.asarray(mild) * (1 - strength) + np.asarray(full) * strength
    return p / p.sum()


def draw_attributes(records, rs: np.random.RandomState, strength: float = 1.0, **force) -> dict[str, np.ndarray]:
    """Random rendering attributes for a list of glyph records.

    strength: 0 (almost always plain, centred, on white) to 1 (the full mixture).
    force: attribute name -> one value or one per glyph; indices into the tuples above.
    """
    n = len(records)
    mono = np.array([BY_STYLE[r["style"]].mono for r in records])
    flag = np.array(["flag" in r["subgroup"] for r in records])
    a = {
        "foreground": rs.choice(4, n, p=_mix([0.97, 0.01, 0.01, 0.01], [0.68, 0.10, 0.10, 0.12], strength)),
        "background": rs.choice(
            6, n, p=_mix([0.70, 0.25, 0.05, 0, 0, 0], [0.34, 0.27, 0.12, 0.11, 0.09, 0.07], strength)
        ),
        "effect": rs.choice(7, n, p=_mix([1, 0, 0, 0, 0, 0, 0], [0.54, 0.09, 0.09, 0.10, 0.07, 0.06, 0.05], strength)),
        "tilt": rs.choice(4, n, p=_mix([1, 0, 0, 0], [0.70, 0.11, 0.11, 0.08], strength)),
        "size": rs.choice(3, n, p=_mix([0.02, 0.48, 0.50], [0.18, 0.52, 0.30], strength)),
        "colour": rs.randint(0, len(COLOURS), n),
        "back": rs.randint(0, len(COLOURS), n),
        "mono": mono,
    }
    a["foreground"][mono] = rs.choice([0, 3], mono.sum(), p=[0.4, 0.6])
    a["foreground"][flag] = 0
    a["back2"] = (a["back"] + rs.randint(1, len(COLOURS), n)) % len(COLOURS)
    for name, value in force.items():
        a[name] = np.full(n, value) if np.isscalar(value) else np.asarray(value)
    # a glyph of one colour must stay visible on its background
    solid = mono | (a["foreground"] == 3)
    a["colour"] = np.where(mono & (a["foreground"] != 3), BLACK, a["colour"])
    a["back"] = np.where(a["background"] == 0, WHITE, a["back"])
    if "colour" not in force:
        a["colour"] = np.where(
            (a["foreground"] == 3) & (a["background"] == 0) & (a["colour"] == WHITE), BLACK, a["colour"]
        )
    for key in ("back", "back2"):
        if key not in force:
            clash = solid & (a["background"] > 0) & (a[key] == a["colour"])
            a[key] = np.where(clash, (a[key] + 5) % len(COLOURS), a[key])
    small, large = rs.uniform(-10, 10, n), rs.uniform(30, 75, n)
    a["angle"] = np.select([a["tilt"] == 1, a["tilt"] == 2, a["tilt"] == 3], [-large, large, 180 + small], small)
    a["scale"] = np.select(
        [a["size"] == 0, a["size"] == 1], [rs.uniform(0.5, 0.62, n), rs.uniform(0.66, 0.86, n)], rs.uniform(0.88, 1, n)
    )
    a["dx"], a["dy"] = ((1 - a["scale"]) * rs.uniform(-1, 1, n) for _ in "xy")
    a["flip"] = np.array([rs.rand() < 0.4 and r["subgroup"] not in KEEP_HANDEDNESS for r in records])
    a["pair"] = np.zeros(n, bool)
    return a


def _place(pixels, scale, angle, dx, dy, flip):
    """(N,4,s,s) uint8 glyphs -> (N,4,48,48) premultiplied, scaled, rotated (degrees) and moved."""
    t = lambda v: torch.as_tensor(np.asarray(v), dtype=torch.float32)
    scale, theta, shift = t(scale), t(angle) * np.pi / 180, torch.stack([t(dx), t(dy)], 1)
    m = torch.zeros(len(pixels), 2, 3)
    m[:, 0, 0] = m[:, 1, 1] = theta.cos() / scale
    m[:, 0, 1], m[:, 1, 0] = theta.sin() / scale, -theta.sin() / scale
    m[:, :, 2] = -(m[:, :, :2] @ shift[:, :, None])[:, :, 0]
    m[:, 0] *= torch.where(torch.as_tensor(flip), -1.0, 1.0)[:, None]
    x = pixels.float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
    grid = F.affine_grid(m, (len(pixels), 4, PIXELS, PIXELS), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def render(pixels, a, rs: np.random.RandomState, partners=None, effect_share: float = 1.0) -> torch.Tensor:
    """Draw glyphs with the attributes `a`; returns (N, 3, 48, 48) in 0..1.

    pixels: (N, 4, s, s) uint8 RGBA; partners: likewise, the second glyph where a["pair"] is set.
    effect_share: how much of the effect is mixed into the clean picture; pre-training always saw 1.
    """
    n = len(pixels)
    g = torch.Generator().manual_seed(int(rs.randint(2**31)))
    rand = lambda *shape: torch.rand(*shape, generator=g)
    where = lambda name, value: torch.as_tensor(np.where(a[name] == value)[0])
    p = a["pair"]
    x = _place(
        pixels,
        np.where(p, 0.48, a["scale"]),
        a["angle"],
        np.where(p, -0.5, a["dx"]),
        np.where(p, 0, a["dy"]),
        a["flip"],
    )
    if p.any():
        j = np.where(p)[0]
        y = _place(
            partners[j], np.full(len(j), 0.48), a["angle"][j], np.full(len(j), 0.5), np.zeros(len(j)), a["flip"][j]
        )
        x[j] = x[j] + y * (1 - x[j, 3:])
    colour, alpha = x[:, :3], x[:, 3:]

    def shade(name, j):
        return (COLOUR_VALUES[torch.as_tensor(a[name])[j]] + (rand(len(j), 3) - 0.5) * 0.12).clamp(0, 1)[
            :, :, None, None
        ]

    j = where("foreground", 3)
    colour[j] = shade("colour", j) * alpha[j]
    j = where("foreground", 2)
    colour[j] = colour[j].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    j = where("foreground", 1)
    if len(j):
        turns = 1 + (rand(len(j)) > 0.5).long()
        colour[j] = torch.stack([colour[q].roll(int(k), 0) for q, k in zip(j, turns)])

    every, u = torch.arange(n), torch.linspace(0, 1, PIXELS)
    b1, b2 = shade("back", every), shade("back2", every)
    back = b1.expand(-1, -1, PIXELS, PIXELS).clone()
    back[where("background", 0)] = 1.0
    j = where("background", 2)
    d = rand(len(j), 1, 1, 1)
    t = u.view(1, 1, -1, 1) * d + u.view(1, 1, 1, -1) * (1 - d)
    back[j] = b1[j] * t + b2[j] * (1 - t)
    j = where("background", 3)
    if len(j):
        back[j] = (
            F.interpolate(rand(len(j), 3, 7, 7), (PIXELS, PIXELS), mode="bilinear") * 0.7
            + rand(len(j), 3, PIXELS, PIXELS) * 0.3
        )
    j = where("background", 4)
    v = (rand(len(j), 1, 1, 1) > 0.5).float()
    t = u.view(1, 1, -1, 1) * v + u.view(1, 1, 1, -1) * (1 - v)
    q = (torch.sin(t * np.pi * (6 + 6 * rand(len(j), 1, 1, 1))) > 0).float()
    back[j] = b1[j] * q + b2[j] * (1 - q)
    j = where("background", 5)
    q = ((torch.arange(PIXELS) // 8)[:, None] + (torch.arange(PIXELS) // 8)[None]) % 2
    back[j] = b1[j] * q + b2[j] * (1 - q)

    im = colour + (1 - alpha) * back
    im = im * (1 + (rand(n, 1, 1, 1) - 0.5) * 0.3) + (rand(n, 1, 1, 1) - 0.5) * 0.06
    clean = im.clone() if effect_share < 1 else im
    j = where("effect", 1)
    im[j] = 1 - im[j]
    j = where("effect", 2)
    if len(j):
        im[j] = F.avg_pool2d(F.avg_pool2d(F.pad(im[j], (3,) * 4, mode="replicate"), 3, 1), 5, 1)
    j = where("effect", 3)
    if len(j):
        im[j] = F.interpolate(F.avg_pool2d(im[j], 3), scale_factor=3)
    j = where("effect", 4)
    im[j] += torch.randn(len(j), 3, PIXELS, PIXELS, generator=g) * 0.16
    j = where("effect", 5)
    im[j] = 0.62 + 0.38 * im[j]
    j = where("effect", 6)
    im[j] = 0.35 * im[j]
    return (effect_share * im + (1 - effect_share) * clean).clamp(0, 1)


class Captioner:
    """Captions that state a random subset of what was drawn, never anything else."""

    @staticmethod
    def vocabulary() -> list[str]:
        """Words the tokenizer must know beside the concept names."""
        words = list(COLOUR_NAMES) + list(MEDIA) + list(TILTS) + list(SIZES) + list(KINDS.values())
        words += [w for ws in EFFECT_WORDS.values() for w in ws] + [w for p in BY_STYLE.values() for w in p.words]
        return words + [
            "a drawing of a small recolored silhouette, large",
            "in grayscale",
            "background",
            "type of",
            "on a red and blue gradient background",
            "noise texture",
            "striped checkered plain",
            "and",
            "next to a",
            "to the left of",
            "to the right of",
            "at the top",
            "at the bottom",
            "on the",
        ]

    def __call__(self, record, a, i, partner=None, long=False, rng=random) -> tuple[str, bool]:
        """(caption, whether it names the concept) of sample i; partner: record of the second glyph of a pair."""
        detail = 0.9 if long else rng.choice((0.0, 0.3, 0.6, 0.9))
        say = lambda share=1.0: rng.random() < detail * share
        effect, back, fore = EFFECTS[a["effect"][i]], BACKGROUNDS[a["background"][i]], a["foreground"][i]
        inverted = effect == "inverted"
        effect = rng.choice(EFFECT_WORDS[effect]) if effect != "none" and say() else ""
        words = BY_STYLE[record["style"]].words
        style = (
            rng.choice(words) if words and say(0.6) and (partner is None or partner["style"] == record["style"]) else ""
        )
        tilt = TILTS[a["tilt"][i]] if say(0.15 if a["tilt"][i] == 0 else 1) else ""
        colour = ""
        if say() and not inverted:
            if fore == 3 or a["mono"][i]:
                colour = COLOUR_NAMES[a["colour"][i]] + (" silhouette of a" if fore == 3 and rng.random() < 0.5 else "")
            elif fore:
                colour = FOREGROUNDS[fore]
        size = "" if partner or not say(0.6) else ("small", "", "large")[a["size"][i]]
        position = ""
        if not partner and a["size"][i] == 0 and say(0.5):
            dx, dy = a["dx"][i], a["dy"][i]
            if max(abs(dx), abs(dy)) > 0.2:
                position = (
                    ("on the right" if dx > 0 else "on the left")
                    if abs(dx) > abs(dy)
                    else ("at the bottom" if dy > 0 else "at the top")
                )
        tail = ""
        if say() and (not inverted or back in ("noise", "striped", "checkered")):
            one, two = COLOUR_NAMES[a["back"][i]], COLOUR_NAMES[a["back2"][i]]
            both = "" if inverted or rng.random() < 0.5 else f"{one} and {two} "
            tail = {
                "white": "white",
                "plain": rng.choice(("", "plain ")) + one,
                "gradient": both + "gradient",
                "noise": "noise texture",
                "striped": both + "striped",
                "checkered": both + "checkered",
            }[back]
            tail = f"on a {tail} background"
        name, kind, named, u = record["name"], KINDS.get(record["subgroup"]), True, rng.random()
        if partner is not None:
            other, named = partner["name"], False
            name = rng.choice(
                (
                    f"{name} and a {other}",
                    f"{name} next to a {other}",
                    f"{name} to the left of a {other}",
                    f"{other} to the right of a {name}",
                )
            )
        elif u < 0.06 and kind:
            name, named = kind, False
        elif u < 0.12 and kind:
            name = f"{name}, a type of {kind}"
        elif u < 0.20 and record["tags"]:
            name = rng.choice(record["tags"]).lower()
        elif u < 0.28 and record["tags"]:
            name = f"{name}, {rng.choice(record['tags']).lower()}"
        elif u < 0.36 and (effect or style or colour or tail):
            name, named = "", False
        join = lambda *parts: " ".join(part for part in parts if part)
        medium, form = rng.choice(MEDIA), rng.random()
        if not name:
            text = join("a", effect, style, tilt, colour.replace(" silhouette of a", ""), medium, tail)
        elif form < (0.45 if long else 0.16):
            facts = [x for x in (effect, style, tilt, position, tail) if x]
            rng.shuffle(facts)
            text = join(", ".join(facts) + ":" if facts else "", f"a {medium} of a", size, colour, name)
        elif form < 0.32:
            facts = [x for x in (effect, style, tilt, size, colour.replace(" of a", ""), position, tail) if x]
            rng.shuffle(facts)
            text = ", ".join([name] + facts)
        else:
            text = join("a", effect, style, medium, "of a", size, tilt, colour, name, tail, position)
        return text + ("." if rng.random() < 0.5 else ""), named
