"""One side of a benchmark in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from .table import BENCHMARKS, make_step, measured_rate
from .timers import move, timer_of


def main(side: str, name: str, dtype: str, quick: str, repeats: str, threads: str, out: str, device: str = "cpu"):
    if int(threads):
        torch.set_num_threads(int(threads))
    bench = BENCHMARKS[name]
    step, timer = make_step(side, bench, dtype, quick == "1"), timer_of(device)
    if device != "cpu":
        move(step, device)
        torch.set_default_device(device)  # of what a step makes for itself
    losses, seconds, cpu_seconds = [step()], [], []  # the first step warms up, and its gradients are compared
    gradients = {k: p.grad.float().cpu().clone() for k, p in step.parameters.items()}
    for _ in range(int(repeats)):
        start_cpu = time.process_time()
        loss, elapsed = timer.time(step)
        losses.append(loss)
        seconds.append(elapsed)
        cpu_seconds.append(time.process_time() - start_cpu)
    result = {"loss": losses[0], "gradients": gradients, "seconds": seconds, "cpu_seconds": cpu_seconds}
    result["peak"] = timer.peak()
    result["threads"] = torch.get_num_threads()
    if side == "ours":
        del step
        result["rate"], result["cpu_rate"] = measured_rate(bench, quick == "1", device)
    torch.save(result, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
