"""Values worked out from weights and asked for again and again: kept as long as the weights are what they were."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .tracing import traced


class Memory:
    """Values by name, each computed when it is first asked for.

    All are forgotten as soon as one of the tensors that they depend on is another tensor, has been written to, lies on
    another device or has another dtype: so a training step, `load_state_dict`, `.to` or a new context are seen by
    looking, and nobody has to tell. What is computed under autocast serves there alone. A copy of a memory, and one
    read from a file, is empty.

    torch does not count what is written through `.data`. Learnt tensors are small, so on a CPU their contents are
    compared too; elsewhere that would wait for the device.

    Args:
        limit: most values to keep, the oldest go first; None for all.
    """

    def __init__(self, limit: int | None = None):
        self.limit = limit
        self._values: dict[Hashable, Any] = {}
        self._state: list[_Mark] | None = None
        self._contents: list[Tensor] = []
        self._held = False

    def get(
        self,
        name: Hashable,
        compute: Callable[[], Any],
        frozen: Iterable[Tensor] = (),
        learnt: Iterable[Tensor] = (),
    ) -> Any:
        """The value of that name; `compute()` must depend on the tensors given alone. Traced: anew, unless held."""
        if traced():  # tensors are stand-ins then, which no value can be held against
            return self._values[name] if self._held and name in self._values else compute()
        learnt = tuple(learnt)
        tensors = (*frozen, *learnt)
        seen = [t.detach() for t in learnt if t.device.type == "cpu"]
        if not self._made_of(tensors) or not all(map(torch.equal, seen, self._contents)):
            self.clear()
            self._state, self._contents = [_Mark(t) for t in tensors], [t.clone() for t in seen]
        kinds = {t.device.type for t in tensors} - {"meta"}
        if casts := [torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)]:
            name = (name, *casts)
        if name not in self._values:
            value = compute()
            while self.limit is not None and len(self._values) >= self.limit:
                self._values.pop(next(iter(self._values)))
            self._values[name] = value
        return self._values[name]

    def _made_of(self, tensors: Sequence[Tensor]) -> bool:
        state = self._state
        return state is not None and len(state) == len(tensors) and all(m.fits(t) for m, t in zip(state, tensors))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A block in which what is kept serves as constants where torch traces; who opens it knows that it is true."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def clear(self) -> None:
        self._values.clear()
        self._state, self._contents = None, []

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: Hashable) -> bool:
        return name in self._values

    def __deepcopy__(self, memo: Any) -> Memory:
        return type(self)(self.limit)

    def __copy__(self) -> Memory:
        return type(self)(self.limit)

    def __reduce__(self):
        return type(self), (self.limit,)


class _Mark:
    """What tells a tensor from others and from itself before it was written to; inference tensors count no writes."""

    def __init__(self, tensor: Tensor):
        self._tensor = weakref.ref(tensor)  # not its id, which the next tensor may have once it is gone
        self._seen = self._look(tensor)

    def fits(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and self._seen == self._look(tensor)

    @staticmethod
    def _look(tensor: Tensor) -> tuple[int, torch.device, torch.dtype]:
        return -1 if tensor.is_inference() else tensor._version, tensor.device, tensor.dtype
