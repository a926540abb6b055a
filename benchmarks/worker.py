"""One side of a benchmark in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import torch

from .table import BENCHMARKS, make_step, measured_rate


def main(side: str, name: str, dtype: str, quick: str, repeats: str, threads: str, out: str):
    if int(threads):
        torch.set_num_threads(int(threads))
    bench = BENCHMARKS[name]
    step = make_step(side, bench, dtype, quick == "1")
    losses, seconds, cpu_seconds = [step()], [], []  # the first step warms up, and its gradients are compared
    gradients = {k: p.grad.float().clone() for k, p in step.parameters.items()}
    for _ in range(int(repeats)):
        start, start_cpu = time.perf_counter(), time.process_time()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - start_cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes
    result = {"loss": losses[0], "gradients": gradients, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak}
    result["threads"] = torch.get_num_threads()
    if side == "ours":
        del step
        result["rate"], result["cpu_rate"] = measured_rate(bench, quick == "1")
    torch.save(result, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
