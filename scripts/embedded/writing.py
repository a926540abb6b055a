"""What the scripts that write model cards share: templates, and what a model's and a task's files say of themselves."""

from __future__ import annotations

import argparse
import collections
import json
import zipfile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from measuring import markdown
from packages import PACKAGES

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
)


def model_facts(folder: Path) -> dict:
    """config, log (rows of pre-training), megabytes of all files but the card, packages and those kept back."""
    config = json.loads((folder / "config.json").read_text())
    return dict(
        config=config,
        text=config["text_config"],
        log=[json.loads(line) for line in (folder / "pretraining.jsonl").read_text().splitlines()],
        megabytes=f"{sum(p.stat().st_size for p in folder.iterdir() if p.suffix != '.md') / 1e6:.1f}",
        packages=PACKAGES,
        kept_back=", ".join(p.npm for p in PACKAGES if p.unseen),
    )


def task_table(folder: Path, number_of_classes) -> str:
    """Markdown: name, classes, pictures, question of each task.

    Args:
        number_of_classes: (open archive, its dataset.json) -> int.
    """
    lines = []
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("dataset.json"))
            count = collections.Counter(n.split("/")[0] for n in archive.namelist() if n.endswith(".webp"))
            classes = number_of_classes(archive, about)
        pictures = " / ".join(str(count[part]) for part in ("train", "val", "test"))
        lines.append([about["name"], str(classes), pictures, about["about"]])
    return markdown(["data set", "classes", "train / val / test pictures", "what it asks"], lines)


def arguments(doc: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    return parser.parse_args()


def write(kind: str, args: argparse.Namespace, facts: dict) -> None:
    """The card beside the model and the page of the documentation, from templates/KIND_{card,page}.md."""
    for part, path in (("card", args.model / "README.md"), ("page", args.docs)):
        path.write_text(TEMPLATES.get_template(f"{kind}_{part}.md").render(facts))
