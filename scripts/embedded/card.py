"""Write the model card of the embedded CLIP and the page of the embedded tasks, from the logs alone.

    python card.py --model ../../src/duotune/assets/tiny-clip --tasks ../../src/duotune/assets/tasks \
        --results ../../docs/data/embedded.jsonl --docs ../../docs/embedded.md
"""

from __future__ import annotations

import argparse
import collections
import json
import zipfile
from pathlib import Path

import numpy as np
from gate import METHODS, SHIFTED, rows_of, table
from packages import PACKAGES

CHOSEN = (
    "All tasks share one rate for the text and one for the visual prompts per method, chosen among three by the mean "
    "accuracy on the validation images of tiny-food, tiny-transport, tiny-effects and tiny-colours, one seed (`gate.py select`, "
    "`docs/data/embedded_rates.jsonl`)."
)


def describe_model(folder: Path) -> dict:
    config = json.loads((folder / "config.json").read_text())
    log = [json.loads(line) for line in (folder / "pretraining.jsonl").read_text().splitlines()]
    size = sum(p.stat().st_size for p in folder.iterdir() if p.suffix != ".md")
    last = [r for r in log if "unseen_zero_shot" in r][-1]
    return dict(config=config, log=log, size=size, samples=log[-1]["samples"], unseen=last["unseen_zero_shot"])


def seeds_of(rows: list[dict]) -> str:
    """How many seeds each method's means are over."""
    count = lambda method, shifted: len(
        {r["seed"] for r in rows if r["method"] == method and (r["task"] == SHIFTED) == shifted}
    )
    counts = {m: count(m, False) for m in METHODS[1:]}
    listed = ", ".join(f"{m} {n}" for m, n in counts.items())
    return f"Seeds: {listed}; on {SHIFTED} {max(count(m, True) for m in METHODS)}."


def findings(rows: list[dict]) -> list[str]:
    """What the table says, counted."""
    mean = collections.defaultdict(list)
    for r in rows:
        mean[r["task"], r["method"]].append(r["accuracy"])
    mean = {k: float(np.mean(v)) for k, v in mean.items()}
    tasks = sorted({t for t, _ in mean if t != SHIFTED})
    zero = {t: mean[t, "zero_shot"] for t in tasks}
    lines = []
    for m in METHODS[1:]:
        if all((t, m) in mean for t in tasks):
            gain = np.mean([mean[t, m] - zero[t] for t in tasks])
            up = [t for t in tasks if mean[t, m] > zero[t]]
            down = [t for t in tasks if mean[t, m] < zero[t]]
            lines.append(
                f"- `{m}`: {gain:+.1f} points over zero-shot on average; above it on {len(up)} of {len(tasks)} "
                f"tasks" + (f", below it on {', '.join(down)}" if down else "") + "."
            )
    shifted = [f"`{m}` {mean[SHIFTED, m]:.1f}" for m in METHODS if (SHIFTED, m) in mean]
    lines.append(f"- {SHIFTED}, where shots and test come from different packages: {', '.join(shifted)}.")
    return lines


def card(model: dict, rows: list[dict]) -> str:
    text, vision = model["config"]["text_config"], model["config"]["vision_config"]
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "library_name: transformers",
            "tags: [clip, tiny, test-model]",
            "---",
            "",
            "# tiny-clip: the embedded CLIP of duotune",
            "",
            "A small but really pre-trained CLIP (Hugging Face `CLIPModel`) for demos and tests of prompt tuning. It knows "
            "emoji and icons, and the words that say how they were drawn. It is no general-purpose model: it has never seen a "
            "photograph.",
            "",
            "| | |",
            "|---|---|",
            f"| image | {vision['image_size']} px, patch {vision['patch_size']}, width {vision['hidden_size']}, "
            f"{vision['num_hidden_layers']} layers |",
            f"| text | own BPE of {text['vocab_size']} entries, {text['max_position_embeddings']} tokens, width "
            f"{text['hidden_size']}, {text['num_hidden_layers']} layers |",
            f"| joint space | {model['config']['projection_dim']} |",
            f"| files | {model['size'] / 1e6:.1f} MB, weights in fp16 |",
            f"| pre-training | {model['samples']:,} rendered pictures with captions, bf16 on 2 CPU cores |",
            f"| 60 objects, drawing styles never seen, zero-shot | {model['unseen']:.1f} % (chance 1.7 %) |",
            "",
            "## Data",
            "",
            "Drawings of these npm packages, rendered with random colours, backgrounds, rotations and degradations; captions "
            "state a random subset of what was really drawn (`scripts/embedded/rendering.py`). Kept back from pre-training: "
            "every drawing of "
            + ", ".join(p.npm for p in PACKAGES if p.unseen)
            + "; every drawing of 60 concepts; two "
            "drawings of each object concept drawn in six styles or more (`scripts/embedded/holdout.py`). Concept names are "
            "tied together while training by a sentence encoder's vectors (all-MiniLM-L6-v2).",
            "",
            *(f"- {p.npm} {p.version}, {p.author}, {p.licence}" for p in PACKAGES),
            "",
            "## Scores",
            "",
            f"16 shots, test accuracy in percent, mean ± deviation over seeds, backbone in bfloat16. {seeds_of(rows)} "
            + CHOSEN,
            "",
            table(rows),
            "",
            *findings(rows),
            "",
            "## Weaknesses",
            "",
            "- Fewer pictures than planned (4 million). From a million on, accuracy on unseen drawing styles rose slowly "
            "while the training loss kept falling (`pretraining.jsonl`): more different drawings may matter more than "
            "more renderings.",
            "- Drawing style is weakly represented: see tiny-styles, zero-shot.",
            "- Names outside the emoji vocabulary, sentences, counts and relations beyond left/right mean nothing to it.",
            "- Classes of tiny-mammals, tiny-clothing and tiny-flags have one to three drawings to learn from, so 16 shots "
            "repeat them in other renderings. The other tasks about things take concepts of which four drawings or more were "
            "kept back.",
            "",
            "## How it was made",
            "",
            "```",
            "cd scripts/embedded",
            "python packages.py --out work/packages            # needs npm",
            "python glyphs.py --packages work/packages --out work/glyphs",
            "python tokenizer.py --glyphs work/glyphs --out work/tokenizer",
            "python pretrain_clip.py --glyphs work/glyphs --tokenizer work/tokenizer --out work/clip --width 192 --minutes 102",
            "python ship.py --clip work/clip --out ../../src/duotune/assets/tiny-clip",
            "python make_tasks.py --glyphs work/glyphs --out ../../src/duotune/assets/tasks",
            "python gate.py select --out ../../docs/data/embedded_rates.jsonl --tasks "
            "tiny-food,tiny-transport,tiny-effects,tiny-colours",
            "python gate.py run --out ../../docs/data/embedded.jsonl",
            "python card.py --model ../../src/duotune/assets/tiny-clip --tasks ../../src/duotune/assets/tasks "
            "--results ../../docs/data/embedded.jsonl --docs ../../docs/embedded.md",
            "```",
            "",
        ]
    )


def page(model: dict, rows: list[dict], tasks: Path) -> str:
    lines = [
        "# The embedded model and tasks",
        "",
        "`tiny` is a CLIP of a few megabytes, pre-trained on drawings (its "
        "model card, `src/duotune/assets/tiny-clip/README.md`, says how). The tasks below are few-shot data sets like "
        "any other: `--data tiny-mammals`. No drawing is both trained and tested, and none was shown in pre-training.",
        "",
        "| data set | classes | train / val / test | what it asks |",
        "|---|---|---|---|",
    ]
    for path in sorted(tasks.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("dataset.json"))
            count = collections.Counter(n.split("/")[0] for n in archive.namelist())
        lines.append(
            f"| {about['name']} | {len(about['class_names'])} | {count['train']} / {count['val']} / "
            f"{count['test']} | {about['about']} |"
        )
    lines += [
        "",
        "`--classes base` and `--classes new` halve any of them; `tiny-objects` is the one to use for base-to-new "
        "results.",
        "",
        "## Results",
        "",
        "`python scripts/embedded/gate.py table --out docs/data/embedded.jsonl` prints this table: test accuracy in "
        f"percent after 16 shots, mean ± deviation over seeds, backbone in bfloat16. {seeds_of(rows)} " + CHOSEN,
        "",
        table(rows),
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
