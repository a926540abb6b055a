"""Write the model card of the embedded GLIP and the page of its tasks, from the logs alone.

    python card_detection.py --model ../../src/duotune/assets/tiny-glip --tasks ../../src/duotune/assets/detection \
        --results ../../docs/data/embedded_detection.jsonl --docs ../../docs/embedded_detection.md
"""

from __future__ import annotations

import json

import numpy as np
from gate_detection import METHODS, RECIPES, SCENES, table
from measuring import cells_of, rows_of
from writing import arguments, model_facts, task_table, write

from duotune.recipes import load_recipe


def pretraining_facts(log: list[dict]) -> dict:
    start = next(r for r in log if "parameters" in r)
    looks, last = [r for r in log if "look" in r], log[-1]
    settings = start["settings"]
    return dict(
        start=start,
        arguments=settings,
        names_cosine=next(r["names_cosine"] for r in log if "names_cosine" in r),
        looked=looks[-1]["drawings"],
        right=looks[-1]["right"],
        last=last,
        minutes=last["minutes"] + float(settings["look_minutes"]) + float(settings["name_minutes"]),
        plain=float(settings["plain"]),
    )


def seeds_of(rows: list[dict]) -> str:
    cells = cells_of(rows, "seed")
    counts = {m: [len(seeds) for (task, name), seeds in cells.items() if name == m] for m in METHODS[1:]}
    return "Seeds: " + ", ".join(f"{m} {min(n)}" for m, n in counts.items() if n) + "."


def findings(rows: list[dict]) -> str:
    """What the table says, counted."""
    mean = {cell: float(np.mean(values)) for cell, values in cells_of(rows, "ap").items()}
    tasks = sorted({t for t, _ in mean if (t, "sdpt") in mean})
    lines = []
    for other in METHODS:
        if tasks and other != "sdpt" and all((t, other) in mean for t in tasks):
            gaps = {t: mean[t, "sdpt"] - mean[t, other] for t in tasks}
            lines.append(
                f"- `sdpt` is above `{other}` on {sum(g > 0 for g in gaps.values())} of {len(tasks)} tasks; by "
                f"{np.mean(list(gaps.values())):+.1f} AP on average, least on {min(gaps, key=gaps.get)} "
                f"({min(gaps.values()):+.1f})."
            )
    return "\n".join(lines)


def settings_text() -> str:
    recipes = {m: load_recipe(RECIPES[m]) for m in METHODS if m != "zero_shot"}
    rates = "; ".join(f"`{m}` {', '.join(f'{k} {v:g}' for k, v in r.settings.items())}" for m, r in recipes.items())
    recipe = recipes["sdpt"]
    return (
        f"All training pictures, {recipe.epochs} epochs in steps of {recipe.batch_size} pictures, AdamW, one rate per "
        f"method for all tasks, chosen by the mean AP on the validation pictures of two tasks, tiny-scenes-concepts and "
        f"tiny-scenes-solarised, with one seed (`gate_detection.py select`; `docs/data/embedded_detection_rates.jsonl` has "
        f"every one tried): {rates}."
    )


def forgetting(rows: list[dict]) -> str:
    before = [r["ap"] for r in rows if r["task"] == SCENES and r["method"] == "zero_shot"]
    text = (
        f"The row 'afterwards' is what the adapted model finds on {SCENES}, the distribution of pre-training, when it "
        "is given that task's class names; a text prompt is bound to its own caption and cannot. Detached, every model "
        "is the embedded one again."
    )
    return f"Zero-shot AP on {SCENES} before adapting: {before[0]:.1f}. {text}" if before else text


if __name__ == "__main__":
    args = arguments(__doc__)
    facts, rows = model_facts(args.model), rows_of(args.results)
    facts |= pretraining_facts(facts["log"]) | dict(
        seeds=seeds_of(rows),
        settings=settings_text(),
        table=table(rows),
        forgetting=forgetting(rows),
        findings=findings(rows),
        tasks=task_table(args.tasks, lambda archive, about: len(json.loads(archive.read("test.json"))["categories"])),
    )
    write("glip", args, facts)
