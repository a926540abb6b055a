"""python -m benchmarks.profile NAME: where one of our steps spends its time, operation by operation."""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from .table import BENCHMARKS, make_step


def table(name: str, rows: int = 12, quick: bool = False) -> str:
    """The operations with the largest share of one step's time; shares in percent of the whole."""
    bench = BENCHMARKS[name]
    step = make_step("ours", bench, bench.dtype, quick)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    lines = [f"{'operation':50} {'share':>7} {'ms':>9} {'calls':>6}"]
    for e in events[:rows]:
        milliseconds = e.self_cpu_time_total / 1000
        lines.append(f"{e.key[:50]:50} {100 * e.self_cpu_time_total / total:6.1f}% {milliseconds:9.1f} {e.count:6d}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes by itself")
    parser.add_argument("--quick", action="store_true", help="a tiny shape")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    print(table(options.name, options.rows, options.quick))


if __name__ == "__main__":
    main()
