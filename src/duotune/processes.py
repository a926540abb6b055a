"""Several processes that train one model, as `torchrun` and `accelerate launch` start them.

Who is who and what they talk through is torch.distributed's; accelerate starts it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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


__all__ = ["mean_over_processes"]
