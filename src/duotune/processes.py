"""Several processes that train one model, as `torchrun` and `accelerate launch` start them.

Who is who and what they talk through is torch.distributed's; accelerate starts it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def launched() -> tuple[int, int, int]:
    """(number of this process, its number on this machine, how many there are), as the launcher's environment says."""
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE"
    try:
        rank, local, count = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        return 0, 0, 1
    return rank, local, count


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


__all__ = ["default_device", "launched", "mean_over_processes", "must_use_cpu"]
