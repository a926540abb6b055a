"""The icon packages the embedded models and tasks are drawn from, with their licences.

    python packages.py --out work/packages        # npm pack + unpack, about 60 MB

Packages under share-alike licences (openmoji, emojione-v1) are left out on purpose: what is
drawn here ships under Apache-2.0 with attribution, which share-alike material would not allow.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One `@iconify-json/*` package.

    style: key of the drawing style in `glyphs.json`.
    words: how a caption may name the style (empty for unseen styles: no caption is ever written).
    unseen: never shown in pre-training; kept for the tasks.
    mono: black glyphs, no colours of their own.
    flags: country flags only.
    """

    style: str
    npm: str
    version: str
    licence: str
    author: str
    words: tuple[str, ...] = ()
    unseen: bool = False
    mono: bool = False
    flags: bool = False


PACKAGES = (
    Package("noto", "noto", "1.2.9", "Apache-2.0", "Google Inc", ("noto", "google")),
    Package("notov1", "noto-v1", "1.2.5", "Apache-2.0", "Google Inc", ("old noto",)),
    Package("twemoji", "twemoji", "1.2.5", "CC-BY-4.0", "Twitter", ("twitter", "twemoji")),
    Package("fluent", "fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation", ("fluent", "glossy fluent")),
    Package("fluentflat", "fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation", ("flat fluent",)),
    Package(
        "fluenthc",
        "fluent-emoji-high-contrast",
        "1.2.6",
        "MIT",
        "Microsoft Corporation",
        ("high contrast", "solid"),
        mono=True,
    ),
    Package("emojione", "emojione", "1.2.3", "CC-BY-4.0", "Emoji One", ("emojione",)),
    Package("emojionemono", "emojione-monotone", "1.2.1", "CC-BY-4.0", "Emoji One", ("monotone",), mono=True),
    Package("flatcolor", "flat-color-icons", "1.2.3", "MIT", "Icons8", ("flat color",)),
    Package("gameicons", "game-icons", "1.2.4", "CC-BY-3.0", "GameIcons", ("game",), mono=True),
    Package("mdi", "mdi", "1.2.3", "Apache-2.0", "Pictogrammers", ("material",), mono=True),
    Package("iconpark", "icon-park", "1.2.4", "Apache-2.0", "ByteDance", ("line", "outline")),
    Package("flagpack", "flagpack", "1.2.8", "MIT", "Yummygum", ("rectangular",), flags=True),
    Package("flag", "flag", "1.2.12", "MIT", "Panayiotis Lipiridis", ("rectangular",), flags=True),
    Package("fxemoji", "fxemoji", "1.2.2", "Apache-2.0", "Mozilla", unseen=True),
    Package("streamline", "streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline", unseen=True),
    Package("meteocons", "meteocons", "1.2.4", "MIT", "Bas Milius", unseen=True),
    Package("circleflags", "circle-flags", "1.2.11", "MIT", "HatScripts", unseen=True, flags=True),
)
EMOJIBASE = ("emojibase-data", "17.0.0", "MIT", "Miles Johnson")
BY_STYLE = {p.style: p for p in PACKAGES}


def folder(source: Path, npm: str, version: str) -> Path:
    """Where `fetch` unpacks `@iconify-json/NAME` (or `emojibase-data`)."""
    return Path(source) / f"{npm.replace('@', '').replace('/', '-')}-{version}"


def fetch(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(f"@iconify-json/{p.npm}", p.version) for p in PACKAGES] + [EMOJIBASE[:2]]
    for npm, version in wanted:
        target = folder(out, npm, version)
        if target.exists():
            continue
        name = subprocess.run(
            ["npm", "pack", "--silent", f"{npm}@{version}"], cwd=out, check=True, capture_output=True, text=True
        ).stdout.strip()
        with tarfile.open(out / name) as archive:
            archive.extractall(out / "unpacking", filter="data")
        (out / "unpacking" / "package").rename(target)
        print(target.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    fetch(parser.parse_args().out)
