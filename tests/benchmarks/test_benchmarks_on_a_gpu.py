"""What `--device cuda` measures with, held with a stand-in for the GPU's events: none is needed here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


class Queue:
    """Stands in for `torch.cuda`: launches return at once, the device gets to them later, in order."""

    def __init__(self):
        self.launched_ms, self.clock_ms, self.log = 0.0, 0.0, []

    def launch(self, milliseconds: float) -> None:
        self.launched_ms += milliseconds

    def reset_peak_memory_stats(self):
        self.log.append("reset")

    def max_memory_allocated(self) -> int:
        return 123

    def synchronize(self):
        self.clock_ms = self.launched_ms
        self.log.append("synchronize")

    def Event(self, enable_timing: bool):
        assert enable_timing
        return _Event(self)


class _Event:
    def __init__(self, queue: Queue):
        self.queue, self.at, self.reached = queue, None, False

    def record(self):
        self.at = self.queue.launched_ms

    def synchronize(self):
        self.queue.synchronize()
        self.reached = True

    def elapsed_time(self, other: _Event) -> float:
        assert other.reached, "asked for the time of an event that the device has not reached"
        return other.at - self.at


def test_a_step_is_what_the_device_took_and_nothing_before_it():
    from benchmarks.timers import CudaTimer

    queue = Queue()
    timer = CudaTimer(queue)
    assert queue.log == ["reset"]
    queue.launch(500.0)  # of the step before
    found, seconds = timer.time(lambda: queue.launch(40.0) or "loss")
    assert found == "loss" and seconds == pytest.approx(0.040) and timer.peak() == 123
    assert queue.log == ["reset", "synchronize", "synchronize"]


def test_the_host_is_timed_by_its_clock(monkeypatch):
    from benchmarks import timers

    clock = iter([10.0, 12.5])
    monkeypatch.setattr(timers.time, "perf_counter", lambda: next(clock))
    timer = timers.timer_of("cpu")
    assert timer.time(lambda: 7) == (7, 2.5) and timer.peak() > 1e6


@pytest.mark.parametrize("side", ["ours", "plain"])
@pytest.mark.parametrize("name", ["coop_100", "dpt_fp32", "sdpt_step", "fusion_20"])
def test_a_step_is_moved_whole(name, side):
    """No tensor stays behind, and the optimiser updates the ones that were moved."""
    from benchmarks.table import BENCHMARKS, make_step
    from benchmarks.timers import move

    step = make_step(side, BENCHMARKS[name], "float32", True)
    parameters = dict(step.parameters)
    move(step, "meta")
    assert all(step.parameters[k] is p and p.is_meta and p.requires_grad for k, p in parameters.items())
    if hasattr(step, "optimiser"):
        groups = [p for group in step.optimiser.param_groups for p in group["params"]]
        assert {id(p) for p in parameters.values()} <= {id(p) for p in groups} and all(p.is_meta for p in groups)
    if (name, side) in {("coop_100", "ours"), ("dpt_fp32", "ours"), ("fusion_20", "plain")}:  # those ask no numbers
        with torch.device("meta"):
            if hasattr(step, "loss"):
                step.loss().backward()
            else:
                torch.autograd.backward(step.attend(**step.parameters), step.gradients)
        assert all(p.grad is not None and p.grad.is_meta for p in parameters.values())


def test_no_gpu_is_told_in_one_line(monkeypatch, capsys):
    from benchmarks import run

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        run.main(["coop_100", "--device", "cuda"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "no CUDA device" in told.err and not told.out


def test_both_sides_and_the_rate_are_measured_there(monkeypatch):
    from benchmarks import run

    asked = []

    def side(kind, *rest, device="cpu"):
        asked.append((kind, device))
        grads = {"p": torch.ones(2)}
        return {"seconds": [2.0], "cpu_seconds": [4.0], "peak": 3e9, "rate": 1e12, "cpu_rate": 1e12, "threads": 1} | {
            "loss": 1.0,
            "gradients": grads,
        }

    monkeypatch.setattr(run, "side", side)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80e9, 80e9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    result = run.run("dpt_bf16", device="cuda")
    assert asked == [("ours", "cuda"), ("plain", "cuda"), ("plain", "cuda")]
    assert result["device"] == "cuda" and result["machine"] == "a GPU" and result["ratio"] == 1.0
