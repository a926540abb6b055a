"""python -m benchmarks.run NAME: one training step, ours against plain, in one run.

Prints what it measures; the last line is one JSON object. A time is the best of `--repeats` steps
(forward, backward, optimiser step) after one warm-up step, as the floor's rate is the best of many
products. The same in processor seconds (keys with "cpu"), which other work on the machine disturbs less.
A peak is the largest resident memory of the side's whole process, weights and libraries included, in GB
of 10^9 bytes. With `--device cuda` times are of the GPU's own events, and a peak is what tensors took there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .table import BENCHMARKS, Benchmark, needed_flops, plain_peak


def side(kind: str, bench: Benchmark, dtype: str, quick: bool, repeats: int, threads: int, device: str = "cpu") -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.pt"
        arguments = [kind, bench.name, dtype, int(quick), repeats, threads, out, device]
        command = [sys.executable, "-m", "benchmarks.worker", *map(str, arguments)]
        done = subprocess.run(command, cwd=Path(__file__).parent.parent)
        if done.returncode:
            raise SystemExit(f"the {kind} side ended with status {done.returncode}; nothing was measured")
        return torch.load(out)


def available_bytes(device: str = "cpu") -> float:
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def differences(ours: dict, plain: dict) -> tuple[float, float]:
    """Relative difference of the loss, and the largest one of a gradient (norm of the difference / norm)."""
    loss = abs(ours["loss"] - plain["loss"]) / abs(plain["loss"])
    pairs = [(ours["gradients"][k], g) for k, g in plain["gradients"].items()]
    return loss, max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def machine(device: str = "cpu") -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":")[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def run(name: str, repeats: int = 5, threads: int = 0, quick: bool = False, device: str = "cpu") -> dict:
    """Measure one benchmark; the keys are described on the benchmarks' page."""
    import transformers

    bench = BENCHMARKS[name]
    there = {} if device == "cpu" else {"device": device}
    print(f"{name}: {bench.what}" + (" (quick shape)" if quick else ""))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    ours = side("ours", bench, bench.dtype, quick, repeats, threads, **there)
    ours_s = min(ours["seconds"])
    flops = needed_flops(bench, quick)
    result = {"name": name, "ours_s": ours_s, "plain_s": None, "ratio": None}
    result |= {"ours_peak_gb": ours["peak"] / 1e9, "plain_peak_gb": None, "floor_s": flops / ours["rate"]}
    result |= {"ours_cpu_s": min(ours["cpu_seconds"]), "plain_cpu_s": None, "cpu_ratio": None}
    result |= {"floor_cpu_s": flops / ours["cpu_rate"], "step_gflop": flops / 1e9, "matmul_gflops": ours["rate"] / 1e9}
    result |= {f"plain_{which}_{unit}": None for which in ("same_dtype", "frozen") for unit in ("s", "cpu_s")}
    print(f"  ours   {ours_s:8.3f} s  {ours['peak'] / 1e9:6.2f} GB   floor {result['floor_s']:.3f} s")
    needed = plain_peak(bench, quick)
    available = available_bytes(**there)
    if needed > 0.9 * available:
        print(f"  plain  left out: needs about {needed / 1e9:.0f} GB, {available / 1e9:.0f} GB are available")
    else:
        plain = side("plain", bench, bench.plain_dtype, quick, max(1, repeats // 2), threads, **there)
        plain_s = min(plain["seconds"])
        result |= {"plain_s": plain_s, "ratio": plain_s / ours_s, "plain_peak_gb": plain["peak"] / 1e9}
        result |= {"plain_cpu_s": min(plain["cpu_seconds"])}
        result["cpu_ratio"] = result["plain_cpu_s"] / result["ours_cpu_s"]
        result["loss_difference"], result["gradient_difference"] = differences(ours, plain)
        print(f"  plain  {plain_s:8.3f} s  {plain['peak'] / 1e9:6.2f} GB   ratio {plain_s / ours_s:.1f}")
        for key, (kind, dtype) in bench.plain_sides.items():
            other = side(kind, bench, dtype, quick, max(1, repeats // 2), threads, **there)
            result |= {f"{key}_s": min(other["seconds"]), f"{key}_cpu_s": min(other["cpu_seconds"])}
            print(f"  plain  {result[f'{key}_s']:8.3f} s  {key.removeprefix('plain_').replace('_', ' ')}")
    result |= {"repeats": repeats, "threads": ours["threads"], "load_at_start": load, "machine": machine(**there)}
    result |= there
    result |= {"commit": commit(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {k: round(v, 9) if isinstance(v, float) else v for k, v in result.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.split("\n")[0])
    table = "; ".join(f"{name}: {b.what}" for name, b in BENCHMARKS.items())
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=table)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of ours; half as many of plain")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes by itself")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: times by the GPU's own events")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to try the benchmark itself")
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the result to this file")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.run: --device cuda, but torch sees no CUDA device here; leave it out", file=sys.stderr)
        raise SystemExit(2)
    result = run(options.name, options.repeats, options.threads, options.quick, options.device)
    text = json.dumps(result)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
