"""Draw every glyph of the icon packages once: an RGBA image and a record of what it shows.

    python glyphs.py --packages work/packages --out work/glyphs     # about a minute on 2 cores

Each glyph is drawn with resvg at 128 px, cropped to the bounding box of its alpha channel, padded
to a square and shrunk to 64 px. Writes `images.npy` (N, 64, 64, 4) uint8 and `glyphs.json`, a list
of records {style, icon, concept, name, tags, subgroup}; `concept` is an emoji's code points or
`n:<name>` for icons that are no emoji.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import re
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from packages import EMOJIBASE, PACKAGES, Package, folder
from PIL import Image

DRAWN, SIZE = 128, 64
SKIN_TONE = re.compile(r"1F3F[B-F]")
OWN_NAMES = ("flatcolor", "meteocons", "iconpark", "mdi", "gameicons")  # icon sets, not emoji sets


def code_points(text: str) -> str:
    return "-".join(x for x in text.upper().split("-") if x not in ("FE0F", "FE0E"))


def squash(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class EmojiNames:
    """Maps an icon's name in any package to an emoji's code points."""

    def __init__(self, source: Path):
        base = folder(source, *EMOJIBASE[:2])
        load = lambda path: json.loads(path.read_text())
        groups = load(base / "meta" / "groups.json")
        self.emoji = {
            code_points(e["hexcode"]): dict(
                name=e["label"],
                tags=e.get("tags", []),
                subgroup=groups["subgroups"].get(str(e.get("subgroup")), "other"),
            )
            for e in load(base / "en" / "data.json")
        }
        self.by_slug: dict[str, str] = {}
        for package in PACKAGES:
            chars = folder(source, f"iconify-json-{package.npm}", package.version) / "chars.json"
            if package.style in ("noto", "twemoji", "fluentflat") and chars.exists():
                for code, name in load(chars).items():
                    self.by_slug.setdefault(slug(name), code_points(code))
        for code, emoji in self.emoji.items():
            self.by_slug.setdefault(slug(emoji["name"]), code)
        self.by_squash = {}
        for name, code in self.by_slug.items():
            self.by_squash.setdefault(squash(name), code)
        for kind in ("cldr", "github", "emojibase", "joypixels", "iamcal"):
            path = base / "en" / "shortcodes" / f"{kind}.json"
            if path.exists():
                for code, names in load(path).items():
                    for name in [names] if isinstance(names, str) else names:
                        self.by_squash.setdefault(squash(name), code_points(code))
        self.country = {
            "".join(chr(int(x, 16) - 0x1F1E6 + 97) for x in code.split("-")): code
            for code, e in self.emoji.items()
            if e["subgroup"] == "country-flag" and code.startswith("1F1")
        }

    def find(self, package: Package, name: str) -> str | None:
        if package.flags:
            if package.style == "flag":
                return self.country.get(name[:-4]) if name.endswith("-4x3") else None
            return self.country.get(name)
        if name in self.by_slug or package.style in OWN_NAMES:
            return self.by_slug.get(name)
        if m := re.match(r"flag-for-(?:flag-)?(.+)", name):
            if f"flag-{m[1]}" in self.by_slug:
                return self.by_slug[f"flag-{m[1]}"]
        return self.by_squash.get(squash(re.sub(r"-\d+$", "", name))) or self.by_squash.get(squash(name))


def wanted(package: Package, name: str, code: str | None) -> bool:
    if (package.flags and not code) or (code and SKIN_TONE.search(code)) or "skin-tone" in name:
        return False
    if package.style == "meteocons":
        return name.endswith("-fill")
    if package.style == "mdi":
        return not re.search(
            r"-outline|-(off|box|circle|variant|plus|minus|remove|edit|check|lock|alert|multiple)\b", name
        )
    return True


def clean_name(name: str) -> str:
    name = re.sub("[“”:]", "", name.replace("flag: ", "flag of ").replace("’", "'"))
    return re.sub(r"\s+", " ", re.sub(r"\b(fill|outline)\b", "", name)).strip().lower()


def draw(svg: str) -> np.ndarray | None:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, skip_system_fonts=True)
    except Exception:  # resvg raises bare exceptions on the few documents it cannot draw
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    if box is None:
        return None
    image = image.crop(box)
    square = Image.new("RGBA", (max(image.size),) * 2)
    square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
    pixels = np.asarray(square.resize((SIZE, SIZE), Image.LANCZOS))
    return pixels if pixels[..., 3].mean() > 8 else None


def main(source: Path, out: Path) -> None:
    names, svgs, records = EmojiNames(source), [], []
    for package in PACKAGES:
        icons = json.loads((folder(source, f"iconify-json-{package.npm}", package.version) / "icons.json").read_text())
        width, height = icons.get("width", 16), icons.get("height", 16)
        for name, icon in icons["icons"].items():
            code = names.find(package, name)
            if not wanted(package, name, code):
                continue
            w, h = icon.get("width", width), icon.get("height", height)
            svgs.append(
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {w} {h}" width="{w}" height="{h}">'
                + icon["body"].replace("currentColor", "#000")
                + "</svg>"
            )
            if code in names.emoji:
                record = dict(concept=code, **names.emoji[code])
            else:
                base = re.sub(r"-\d+$", "", name)
                record = dict(concept="n:" + base, name=base.replace("-", " "), tags=[], subgroup="icon")
            record["name"] = clean_name(record["name"])
            records.append(dict(style=package.style, icon=name, **record))
    with Pool(os.cpu_count()) as pool:
        pixels = pool.map(draw, svgs, chunksize=64)
    keep = [i for i, p in enumerate(pixels) if p is not None]
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "images.npy", np.stack([pixels[i] for i in keep]))
    (out / "glyphs.json").write_text(json.dumps([records[i] for i in keep]))
    print(f"{len(keep)} glyphs of {len(svgs)}:", dict(collections.Counter(records[i]["style"] for i in keep)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    main(args.packages, args.out)
