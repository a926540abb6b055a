"""How a step is timed, and how much memory it took: on the processor, or on a GPU by its own events."""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Timer(ABC):
    """Seconds between `start` and `stop`, and bytes at the most."""

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> float: ...

    @abstractmethod
    def peak(self) -> int: ...

    def time(self, work: Callable[[], Any]) -> tuple[Any, float]:
        """What `work` gave, and its seconds."""
        self.start()
        found = work()
        return found, self.stop()


class HostTimer(Timer):
    """The clock; the largest resident memory of the process."""

    def start(self) -> None:
        self._begin = time.perf_counter()

    def stop(self) -> float:
        return time.perf_counter() - self._begin

    def peak(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kilobytes


class CudaTimer(Timer):
    """Events that the GPU records when it gets there: launches that the host is ahead with are not counted twice, and
    nothing of what was launched before is. Memory is what tensors took, without the libraries' own.

    Args:
        cuda: `torch.cuda`, or what stands in for it.
    """

    def __init__(self, cuda: Any = torch.cuda):
        self.cuda = cuda
        cuda.reset_peak_memory_stats()

    def start(self) -> None:
        self.cuda.synchronize()
        self._begin, self._end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        self._begin.record()

    def stop(self) -> float:
        self._end.record()
        self._end.synchronize()  # an event that was not reached has no time
        return self._begin.elapsed_time(self._end) / 1000  # milliseconds

    def peak(self) -> int:
        return self.cuda.max_memory_allocated()


def timer_of(device: str) -> Timer:
    return HostTimer() if device == "cpu" else CudaTimer()


def move(held: Any, device: str, seen: set[int] | None = None) -> None:
    """Every tensor that a step holds to `device`, in place: parameters stay the ones that the optimiser knows."""
    seen = set() if seen is None else seen
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, Tensor):
        moved = held.detach().to(device)
        moved = nn.Parameter(moved, held.requires_grad) if isinstance(held, nn.Parameter) else moved
        torch.utils.swap_tensors(held, moved.requires_grad_(held.requires_grad))
    elif isinstance(held, dict):
        for value in held.values():
            move(value, device, seen)
    elif isinstance(held, (list, tuple)):
        for value in held:
            move(value, device, seen)
    elif isinstance(held, nn.Module):
        for tensor in (*held.parameters(), *held.buffers()):
            move(tensor, device, seen)
    elif type(held).__module__.startswith("benchmarks."):
        move(vars(held), device, seen)
