"""Write the model card of the embedded CLIP and the page of the embedded tasks, from the logs alone.

    python card.py --model ../../src/duotune/assets/tiny-clip --tasks ../../src/duotune/assets/tasks \
        --results ../../docs/data/embedded.jsonl --docs ../../docs/embedded.md
"""

from __future__ import annotations

import numpy as np
from gate import METHODS, SHIFTED, table
from measuring import cells_of, rows_of
from writing import arguments, model_facts, task_table, write

CHOSEN = (
    "All tasks share one rate for the text and one for the visual prompts per method, chosen among three by the mean "
    "accuracy on the validation images of tiny-food, tiny-transport, tiny-effects and tiny-colours, one seed "
    "(`gate.py select`, `docs/data/embedded_rates.jsonl`)."
)


def seeds_of(rows: list[dict]) -> str:
    """How many seeds each method's means are over."""
    cells = cells_of(rows, "seed")
    count = lambda method, shifted: max(
        (len(seeds) for (task, m), seeds in cells.items() if m == method and (task == SHIFTED) == shifted), default=0
    )
    listed = ", ".join(f"{m} {count(m, False)}" for m in METHODS[1:])
    return f"Seeds: {listed}; on {SHIFTED} {max(count(m, True) for m in METHODS)}."


def findings(rows: list[dict]) -> str:
    """What the table says, counted."""
    mean = {cell: float(np.mean(values)) for cell, values in cells_of(rows, "accuracy").items()}
    tasks = sorted({t for t, _ in mean if t != SHIFTED})
    lines = []
    for m in METHODS[1:]:
        if all((t, m) in mean for t in tasks):
            gains = {t: mean[t, m] - mean[t, "zero_shot"] for t in tasks}
            below = [t for t in tasks if gains[t] < 0]
            lines.append(
                f"- `{m}`: {np.mean(list(gains.values())):+.1f} points over zero-shot on average; above it on "
                f"{sum(g > 0 for g in gains.values())} of {len(tasks)} tasks"
                + (f", below it on {', '.join(below)}." if below else ".")
            )
    shifted = [f"`{m}` {mean[SHIFTED, m]:.1f}" for m in METHODS if (SHIFTED, m) in mean]
    lines.append(f"- {SHIFTED}, where shots and test come from different packages: {', '.join(shifted)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    args = arguments(__doc__)
    facts, rows = model_facts(args.model), rows_of(args.results)
    facts |= dict(
        vision=facts["config"]["vision_config"],
        samples=facts["log"][-1]["samples"],
        unseen=[r for r in facts["log"] if "unseen_zero_shot" in r][-1]["unseen_zero_shot"],
        seeds=seeds_of(rows),
        chosen=CHOSEN,
        table=table(rows),
        findings=findings(rows),
        tasks=task_table(args.tasks, lambda archive, about: len(about["class_names"])),
    )
    write("clip", args, facts)
