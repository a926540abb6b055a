"""Write the model card of the embedded GLIP and the page's part about detection, from the logs alone.

    python card_detection.py --model ../../src/duotune/assets/tiny-glip --tasks ../../src/duotune/assets/detection \
        --results ../../docs/data/embedded_detection.jsonl --docs ../../docs/embedded_detection.md
"""

from __future__ import annotations

import argparse
import collections
import json
import zipfile
from pathlib import Path

import numpy as np
from gate_detection import METHODS, RECIPES, SCENES, rows_of, table
from packages import PACKAGES

from duotune.recipes import load_recipe


def describe_model(folder: Path) -> dict:
    config = json.loads((folder / "config.json").read_text())
    log = [json.loads(line) for line in (folder / "pretraining.jsonl").read_text().splitlines()]
    size = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".md")
    return dict(
        config=config,
        log=log,
        size=size,
        start=next(r for r in log if "parameters" in r),
        names=next((r["names_cosine"] for r in log if "names_cosine" in r), None),
        samples=sum(
            max(r["samples"] for r in log if r["run"] == k and "samples" in r) for k in {r["run"] for r in log}
        ),
        looked=max((r["drawings"] for r in log if "drawings" in r), default=0),
        last=[r for r in log if "samples" in r][-1],
        watched=[r for r in log if "ap" in r],
    )


def findings(rows: list[dict]) -> list[str]:
    """What the table says, counted."""
    mean = collections.defaultdict(list)
    for r in rows:
        mean[r["task"], r["method"]].append(r["ap"])
    mean = {k: float(np.mean(v)) for k, v in mean.items()}
    tasks = sorted({t for t, _ in mean if (t, "sdpt") in mean})
    if not tasks:
        return []
    lines = []
    for other in METHODS:
        if other != "sdpt" and all((t, other) in mean for t in tasks):
            gaps = {t: mean[t, "sdpt"] - mean[t, other] for t in tasks}
            up = [t for t in tasks if gaps[t] > 0]
            lines.append(
                f"- `sdpt` is above `{other}` on {len(up)} of {len(tasks)} tasks; by {np.mean(list(gaps.values())):+.1f} "
                f"AP on average, least on {min(gaps, key=gaps.get)} ({min(gaps.values()):+.1f})."
            )
    return lines


def settings_text() -> str:
    recipes = {m: load_recipe(RECIPES[m]) for m in METHODS if m != "zero_shot"}
    rates = "; ".join(f"`{m}` {', '.join(f'{k} {v:g}' for k, v in r.settings.items())}" for m, r in recipes.items())
    recipe = recipes["sdpt"]
    return (
        f"All training pictures, {recipe.epochs} epochs in steps of {recipe.batch_size} pictures, AdamW, one rate per "
        f"method for all tasks: {rates}. On the validation pictures of tiny-scenes-concepts, with weights from before the "
        "end of pre-training, `sdpt`'s and `full`'s were the best of three, `text_prompt`'s the better of two, "
        "`linear_probe`'s the second of three by 0.3 AP; `vpt`'s was not tried "
        "(`docs/data/embedded_detection_rates.jsonl`)."
    )


def forgetting(rows: list[dict]) -> str:
    before = [r["ap"] for r in rows if r["task"] == SCENES and r["method"] == "zero_shot"]
    text = (
        f"The row 'afterwards' is what the adapted model finds on {SCENES}, the distribution of pre-training, when it is given "
        "that task's class names; a text prompt is bound to its own caption and cannot. Detached, every model is the "
        "embedded one again."
    )
    return f"Zero-shot AP on {SCENES} before adapting: {before[0]:.1f}. {text}" if before else text


def card(model: dict, rows: list[dict]) -> str:
    c, text, last = model["config"], model["config"]["text_config"], model["last"]
    score = f"{last['ap']:.1f} AP ({last['ap50']:.1f} AP50)" if "ap" in last else ""
    if not score and model["watched"]:
        seen = model["watched"][-1]
        score = f"{seen['ap']:.1f} AP ({seen['ap50']:.1f} AP50) after {seen['samples']:,} pictures"
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: duotune",
            "tags: [glip, object-detection, tiny, test-model]",
            "---",
            "",
            "# tiny-glip: the embedded GLIP of duotune",
            "",
            "A small but really pre-trained GLIP (`duotune.models.glip.GlipForObjectDetection`, the class that official "
            "GLIP weights are read into) for demos and tests of detector tuning. It finds drawings of things in composed "
            "scenes, by their names. It is no general-purpose model: it has never seen a photograph.",
            "",
            "| | |",
            "|---|---|",
            f"| image tower | Swin, width {c['embed_dim']}, blocks {c['depths']}, windows of {c['window_size']}; pictures of "
            "128 px |",
            f"| feature pyramid, fusion tower | {c['fpn_channels']} channels; {c['num_fusion_layers']} layers, inner width "
            f"{c['fusion_dim']} in {c['fusion_heads']} heads |",
            f"| text tower | BERT, width {text['hidden_size']}, {text['num_hidden_layers']} layers; own WordPiece of "
            f"{text['vocab_size']} entries, {c['max_text_tokens']} tokens |",
            f"| size | {model['start']['parameters']:,} parameters; files {model['size'] / 1e6:.1f} MB, weights in fp16 |",
            f"| pre-training | the image tower: {model['looked']:,} drawings in grids; the detector: {model['samples']:,} "
            "composed scenes; on part of two CPU cores |",
            f"| 40 known concepts, drawings never seen, zero-shot | {score} |",
            "",
            "## Data",
            "",
            "Scenes of one to twelve drawings on a background, with boxes of what is visible; captions name what is there "
            "among names of other things, related ones preferred (`scripts/embedded/scenes.py`). Drawings of 484 concepts "
            "from the packages below. Kept back from pre-training, as for tiny-clip: every drawing of "
            + ", ".join(p.npm for p in PACKAGES if p.unseen)
            + "; every drawing of 60 concepts; two drawings of each concept drawn in six styles or more "
            "(`scripts/embedded/holdout.py`).",
            "",
            "Before it sees pictures, the text tower learns to put names, those of the 60 concepts too, where a sentence "
            "encoder puts them (all-MiniLM-L6-v2"
            + (f"; mean cosine at the end {model['names']:.2f}" if model["names"] is not None else "")
            + "). Then the image tower alone learns to tell the concepts apart on grids of drawings, then all of it learns "
            "to detect; in the last part the image tower was kept as it was.",
            "",
            *(f"- {p.npm} {p.version}, {p.author}, {p.licence}" for p in PACKAGES),
            "",
            "## Scores",
            "",
            f"AP (AP50) on test pictures, mean ± deviation over {max((r['seed'] for r in rows), default=0)} seeds. "
            + settings_text(),
            "",
            table(rows),
            "",
            forgetting(rows),
            "",
            *findings(rows),
            "",
            "## Weaknesses",
            "",
            "- Pre-training was far too short: losses were still falling when it ended (`pretraining.jsonl`). Most of what "
            "it finds it cannot name.",
            "- The offsets of its deformable convolutions were held at zero throughout, and still are: plain convolutions.",
            "- Names outside its vocabulary, attributes, counts and relations mean nothing to it.",
            "- Pictures much larger or smaller than 128 px are resized to it; objects below 16 px are lost.",
            "",
            "## How it was made",
            "",
            "```",
            "cd scripts/embedded",
            "python packages.py --out work/packages            # needs npm",
            "python glyphs.py --packages work/packages --out work/glyphs",
            "python wordpiece.py --glyphs work/glyphs --out work/wordpiece",
            "python pretrain_glip.py --glyphs work/glyphs --wordpiece work/wordpiece --out work/glip --minutes 60",
            "python ship_glip.py --glip work/glip --out ../../src/duotune/assets/tiny-glip",
            "python make_detection_tasks.py --glyphs work/glyphs --out ../../src/duotune/assets/detection",
            "python gate_detection.py run --out ../../docs/data/embedded_detection.jsonl",
            "python card_detection.py --model ../../src/duotune/assets/tiny-glip --tasks "
            "../../src/duotune/assets/detection --results ../../docs/data/embedded_detection.jsonl --docs "
            "../../docs/embedded_detection.md",
            "```",
            "",
            "These weights come from two such runs, the second started from the first (`--start`), stopped and gone on "
            "with (`--resume`), in the end with `--freeze-image`; `pretraining.jsonl` has every step that was logged.",
            "",
        ]
    )


def page(model: dict, rows: list[dict], tasks: Path) -> str:
    lines = [
        "# The embedded detector and its tasks",
        "",
        f"`tiny-glip` is a GLIP of {model['size'] / 1e6:.0f} MB, pre-trained on composed scenes of drawings (its "
        "model card, `src/duotune/assets/tiny-glip/README.md`, says how). The tasks below are COCO data sets like any "
        "other. No drawing is both trained and tested, and none was shown in pre-training.",
        "",
        "| data set | classes | train / val / test pictures | what it asks |",
        "|---|---|---|---|",
    ]
    for path in sorted(tasks.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("dataset.json"))
            classes = len(json.loads(archive.read("test.json"))["categories"])
            count = collections.Counter(n.split("/")[0] for n in archive.namelist() if n.endswith(".webp"))
        numbers = f"{count['train']} / {count['val']} / {count['test']}"
        lines.append(f"| {about['name']} | {classes} | {numbers} | {about['about']} |")
    lines += [
        "",
        "## Results",
        "",
        "`python scripts/embedded/gate_detection.py table --out docs/data/embedded_detection.jsonl` prints this table: AP "
        "(AP50) on the test pictures, mean ± deviation over the seeds there are. " + settings_text(),
        "",
        table(rows),
        "",
        forgetting(rows),
        "",
        *findings(rows),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    args = parser.parse_args()
    model, rows = describe_model(args.model), rows_of(args.results)
    (args.model / "README.md").write_text(card(model, rows))
    args.docs.write_text(page(model, rows, args.tasks))
