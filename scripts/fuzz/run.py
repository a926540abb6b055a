"""Feeds damaged and hostile inputs to duotune and counts what it does with them.

    python scripts/fuzz/run.py --count 10000 --seed 1 --kind all

Each input is made from (seed, kind, number) alone, so a failure is run again with --kind KIND --first NUMBER --count 1.
Verdicts: "ok": read, and the result is right as far as it can be known (that of the undamaged input where a digest
protects it); "refused": a DuotuneError of one short line; "FAILED": anything else: another exception, a hang, more than
3 GB of memory, code of a file that ran, of several lines or, for one fault, of more than 400 characters, a wrong result.
The exit status is 1 if any input failed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from targets import TARGETS, Target
from watchdog import watched

SHARES = {"image": 26, "json": 22, "yaml": 12, "csv": 8, "artifact": 10, "folder": 8, "pickle": 9, "checkpoint": 5}


def fuzz(kind: str, seed: int, indices: list[int], say: Callable[[str], None], watch=watched) -> Counter:
    """Verdict -> number of inputs of one kind; `say` is told each failure."""
    counts: Counter = Counter()
    with tempfile.TemporaryDirectory(prefix="duotune-fuzz-") as top:
        target: Target = TARGETS[kind](Path(top) / "whole")

        def run(index: int) -> str | None:
            rng = random.Random(f"{seed}/{kind}/{index}")
            folder = Path(top) / "input"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            canary = folder / "canary"
            os.environ["DUOTUNE_CANARY"] = str(canary)
            wrong = error = None
            try:
                wrong = target.run(rng, folder)
            except Exception as caught:
                error = caught
            if canary.exists():
                return "code of the file ran"
            if error is not None:
                raise error
            return wrong

        for index, verdict in watch(run, indices, f"{top}/input"):
            counts[verdict.kind] += 1
            if verdict.kind == "FAILED":
                say(f"{kind} {index}: {verdict.text}")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all kinds together")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", default="all", choices=["all", *TARGETS])
    options = parser.parse_args()
    kinds = list(TARGETS) if options.kind == "all" else [options.kind]
    whole = sum(SHARES[kind] for kind in kinds)
    total: Counter = Counter()
    for kind in kinds:
        number = round(options.count * SHARES[kind] / whole)
        began = time.monotonic()
        counts = fuzz(
            kind, options.seed, list(range(options.first, options.first + number)), lambda s: print(s, flush=True)
        )
        total += counts
        row = "  ".join(f"{counts[v]:6} {v}" for v in ("ok", "refused", "FAILED"))
        print(f"{kind:12} {number:6} inputs  {row}  {time.monotonic() - began:6.0f} s", flush=True)
    print(
        f"{'all':12} {sum(total.values()):6} inputs  "
        + "  ".join(f"{total[v]:6} {v}" for v in ("ok", "refused", "FAILED"))
    )
    return 1 if total["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
