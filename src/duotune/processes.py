"""Several processes that train one model, as `torchrun` and `accelerate launch` start them.

Who is who and what they talk through is torch.distributed's. Two ways are used:

    a step      sums over all processes on the device, within the communicator's time limit: gradients, counts
    between     `Processes.gather` and `together`: what each has done, or why it could not; a process may take as long
                as it needs, and one that has died ends the others

Work between steps is shared out by `Processes.share` and `spread`. A function that takes `processes=ALONE` works for
itself; given those of the run, all have to call it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import DuotuneError, ProcessLostError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

FOREVER = timedelta(days=365)
"""Time limit between steps: encoding a data set takes hours, and a process that has died is noticed without one."""
LONGEST_PAUSE = 0.05
"""Seconds between two looks at whether the others are there."""
STEP_MINUTES = 30
"""Time limit within a step, transformers' own."""


@dataclass(frozen=True)
class Processes:
    """This process among all that train one model.

    Attributes:
        rank: its number, from 0. count: how many there are.
        group: what they talk through between steps.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of `items`: every count-th."""
        return list(items[self.rank :: self.count])

    def share_batches(self, items: Sequence[T], size: int) -> list[T]:
        """This process's part in whole batches of `size`, those that one process would make."""
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        return [item for batch in self.share(batches) for item in batch]

    def spread(self, items: Sequence[T], compute: Callable[[list[T]], Sequence[R]]) -> list[R]:
        """`compute(items)`, one result per item, of which each process computes its share."""
        whole: list[Any] = [None] * len(items)
        for rank, part in enumerate(self.gather(compute(self.share(items)))):
            whole[rank :: self.count] = part
        return whole

    def gather(self, value: T) -> list[T]:
        """Every process's `value`, which can be pickled, in their order.

        Raises:
            what another process raises in `together`. ProcessLostError: one has ended.
        """
        return [value] if self.count == 1 else self._exchange(value, None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What one process raises in this block, all raise: the first of them, marked as known to all.

        The block may call `gather` and the like, but make no step.
        """
        if self.count == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if isinstance(error, ProcessLostError) or known_to_all(error):
                raise
            self._exchange(None, error)
        else:
            self._exchange(None, None)

    def somewhere(self, flag: Tensor) -> bool:
        """Whether a flag is set in any process; a part of a step, on the flag's device."""
        if self.count > 1:
            import torch

            flag = flag.float()
            torch.distributed.all_reduce(flag)
        return bool(flag)

    def _exchange(self, value: Any, fault: Exception | None) -> list[Any]:
        import torch

        answers: list[Any] = [None] * self.count
        try:
            self._meet()
            torch.distributed.all_gather_object(answers, (value, _portable(fault)), group=self.group)
        except RuntimeError as error:
            if gone := lost(error):
                raise gone from error
            raise
        for rank, (_, wrong) in enumerate(answers):
            if wrong is not None:
                told: Any = fault if rank == self.rank else wrong
                told.of_process = rank
                raise told
        return [row[0] for row in answers]

    def _meet(self) -> None:
        """Wait for the others; Ctrl-C is heard meanwhile."""
        import torch

        work, pause = torch.distributed.barrier(group=self.group, async_op=True), 0.001
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        work.wait()


ALONE = Processes()
_known: tuple[Any, Processes] | None = None


def of_this_run() -> Processes:
    """The processes that torch.distributed knows; `ALONE` without it. When first asked for, all have to ask."""
    import torch

    global _known
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not there or torch.distributed.get_world_size() == 1:
        return ALONE
    whole = torch.distributed.group.WORLD
    if _known is None or _known[0] is not whole:
        group = torch.distributed.new_group(backend="gloo", timeout=FOREVER)
        _known = whole, Processes(torch.distributed.get_rank(), torch.distributed.get_world_size(), group)
    return _known[1]


def start(settings: Mapping[str, Any]) -> Processes:
    """Let the processes of a launcher know each other, before anything else is done.

    Args:
        settings: training arguments; `ddp_backend` and `ddp_timeout` are heeded.
    """
    if launched()[2] == 1:
        return ALONE
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # heeded when torch is imported; warnings come from each
    import torch

    if not torch.distributed.is_initialized():
        # both: what is done on the CPU is told there, and one process may have to say that it found no recipe
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else None if not must_use_cpu() else "gloo"
        seconds, wanted = settings.get("ddp_timeout"), settings.get("ddp_backend")  # which are checked later
        limit = timedelta(seconds=seconds) if type(seconds) is int and seconds > 0 else timedelta(minutes=STEP_MINUTES)
        backend = wanted if wanted in ("nccl", "gloo", "mpi") else backend
        torch.distributed.init_process_group(backend, timeout=limit)
    return of_this_run()


def finish() -> None:
    """Let go of the other processes, where nothing is left to tell them."""
    if launched()[2] > 1:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def launched() -> tuple[int, int, int]:
    """(number of this process, its number on this machine, how many there are), as the launcher's environment says."""
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE"
    try:
        rank, local, count = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        return 0, 0, 1
    return rank, local, count


def on_this_machine() -> Processes:
    """For sharing out alone: this process among those of its machine."""
    try:
        return Processes(launched()[1], int(os.environ["LOCAL_WORLD_SIZE"]))
    except (KeyError, ValueError):
        return ALONE


def default_device() -> str:
    """CUDA if there is one, each of several processes its own; else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    _, local, count = launched()
    return f"cuda:{local % torch.cuda.device_count()}" if count > 1 else "cuda"


def must_use_cpu() -> bool:
    """Whether there are several processes and no accelerator that they could talk through."""
    import torch

    kind = torch.accelerator.current_accelerator(check_available=True)
    return launched()[2] > 1 and (kind is None or kind.type == "mps")


def lost(error: BaseException) -> ProcessLostError | None:
    """What to raise for an error of the communicator; None for other errors."""
    import torch

    if isinstance(error, DuotuneError):
        return None
    told = "onnection closed by peer", "onnection reset by peer", "/gloo/", "NCCL", "Broken pipe"
    if isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in told):
        return ProcessLostError("another process of this run has ended; its own error, or the launcher's, says why")
    return None


def known_to_all(error: BaseException) -> bool:
    """Whether all processes end with this error."""
    return hasattr(error, "of_process")


def said_by(error: BaseException) -> int | None:
    """The process that is said to have raised an error which ends this one; None if another process says it."""
    rank, _, _ = launched()
    if isinstance(error, ProcessLostError) or (rank and known_to_all(error)):
        return None
    return getattr(error, "of_process", rank)


def _portable(fault: Exception | None) -> Exception | None:
    """`fault` as it can be sent to others."""
    try:
        pickle.loads(pickle.dumps(fault))
    except Exception:
        return RuntimeError(f"{type(fault).__name__}: {fault}")
    return fault


def mean_over_processes(total: Tensor, least: float = 0.0) -> Tensor:
    """What each process divides its sum by, so that the mean of all quotients is one process's with the whole batch.

    Processes take the mean of their gradients: with W of them, the sum s of one over n/W becomes s·W/n, and the mean
    of these is the whole sum over n, the total of all processes. `least` bounds n, not n/W, as it would in one process.

    Without gradients no process waits for others: a loss that is only looked at may be computed in one of them.

    Args:
        total: this process's number of samples, positives or the like, a scalar.
        least: of the total over all processes.

    Returns:
        n / W, a scalar; `total` itself, if that is not less than `least`, where there is one process.
    """
    import torch

    learns = torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized()
    count = torch.distributed.get_world_size() if learns else 1
    if count > 1:
        total = total.detach().clone()
        torch.distributed.all_reduce(total)
    return total.clamp(min=least) / count


__all__ = [
    "ALONE",
    "Processes",
    "default_device",
    "finish",
    "known_to_all",
    "launched",
    "lost",
    "mean_over_processes",
    "must_use_cpu",
    "of_this_run",
    "on_this_machine",
    "said_by",
    "start",
]
