"""An accelerator that is not there: tensors that live on the CPU and claim another device.

`torch.device("simulated")` is torch's PrivateUse1 backend, registered from Python. A `SimulatedTensor` says that it is
there and holds a CPU tensor; every operation on one comes to `SimulatedDevice`, which refuses what torch refuses on an
accelerator (tensors of two devices in one operation), runs the rest on the CPU and counts it. So numbers are real,
autograd and optimisers run as they do on an accelerator, and code that asks `x.device` is told another device.

What is counted, on operations of the level below autograd:

    kernels    operations that compute: neither views nor allocations. Real kernels may be more (a sort) or fewer
               (attention is counted as its products and softmax).
    syncs      what makes the host wait for the device: a number read (`item`, `tolist`, `if tensor`), a copy to the
               host, a result whose size depends on values (`nonzero`, `unique`, a boolean index, `bincount`,
               `repeat_interleave`).
    copies     tensors that come from the host; `blocking` are those without `non_blocking=True`.

Only one device can be registered per process: whoever uses it is in a process of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
LIBRARIES = str(Path(torch.__file__).parents[1])
aten = torch.ops.aten


class MixedDevices(RuntimeError):
    """An operation was given tensors of two devices."""


class _Module:
    """What torch asks of a device's module."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:  # random numbers come from the CPU's generator
        pass

    manual_seed = manual_seed_all

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        yield


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
DEVICE = torch.device(NAME, 0)


class SimulatedTensor(Tensor):
    """A tensor that claims to be on the device; `held` is the CPU tensor with its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> SimulatedTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a simulated tensor outside `with SimulatedDevice()`")

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"SimulatedTensor({tuple(self.shape)}, {self.dtype})"


def _data(self: SimulatedTensor) -> Tensor:
    return Tensor.data.__get__(self)


def _set_data(self: SimulatedTensor, other: Tensor) -> None:
    Tensor.data.__set__(self, other)
    self.held = other.held


SimulatedTensor.data = property(_data, _set_data)


_active: SimulatedDevice | None = None
_library = torch.library.Library("aten", "IMPL")


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None) -> Tensor:
    return SimulatedTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(source, SimulatedTensor):
        raise NotImplementedError("a copy to the host where no mode looks")
    if _active is not None:
        _active.copied(non_blocking)
    target.held.copy_(source)
    return target


# torch.tensor(numbers, device=...) makes its tensor on the CPU and copies it where no mode looks
_library.impl("empty_strided", _empty_strided, "PrivateUse1")
_library.impl("_copy_from", _copy_from, "PrivateUse1")

# nothing is cast: precisions are another test's
_autocast = torch.library.Library("_", "IMPL")
_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")

_apply = torch.nn.Module._apply
_moved: dict[int, tuple[Tensor, Tensor]] | None = None


def _apply_tied(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` on a real device changes parameters in place. Here new ones take their places, and one that is
    in several places must stay one."""
    global _moved
    outermost, before = _moved is None, dict(module._parameters)
    _moved = {} if _moved is None else _moved
    try:
        _apply(module, fn, recurse)
        for name, old in before.items():
            if old is not None:
                module._parameters[name] = _moved.setdefault(id(old), (old, module._parameters[name]))[1]
    finally:
        _moved = None if outermost else _moved
    return module


ALLOCATIONS = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "lift_fresh",
    "_unsafe_view",
}
WAITING = {
    "_local_scalar_dense": "item",
    "equal": "equal",
    "nonzero": "nonzero",
    "masked_select": "boolean index",
    "_unique2": "unique",
    "_unique": "unique",
    "unique_consecutive": "unique",
    "unique_dim": "unique",
    "unique_dim_consecutive": "unique",
    "bincount": "bincount",
    "repeat_interleave": "repeat_interleave",
}


@dataclass
class _Kind:
    """What is known of an operation without its arguments."""

    name: str
    writes: bool
    computes: bool
    pointwise: bool

    @classmethod
    def of(cls, func: Any) -> _Kind:
        name = func.overloadpacket.__name__
        schema = func._schema
        view = bool(schema.returns) and any(
            r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
        )
        return cls(
            name,
            schema.is_mutable,
            not view and name not in ALLOCATIONS,
            torch.Tag.pointwise in func.tags or name in ("fill_", "masked_fill", "masked_fill_", "where"),
        )


@dataclass
class Counts:
    """What happened on the device; see the module.

    Attributes:
        waits, copied: syncs and blocking copies per kind and line. launched: kernels per operation and line, if asked.
    """

    kernels: int = 0
    syncs: int = 0
    copies: int = 0
    blocking: int = 0
    launched: Counter = field(default_factory=Counter)
    waits: Counter = field(default_factory=Counter)
    copied: Counter = field(default_factory=Counter)

    def numbers(self) -> dict[str, int]:
        found = self.kernels, self.syncs, self.copies, self.blocking
        return dict(zip(("kernels", "syncs", "copies", "blocking"), found))


class SimulatedDevice(TorchDispatchMode):
    """Inside it tensors can be moved to `DEVICE` and made there.

    Attributes:
        counts: of everything since the last `taken`.

    Args:
        root: lines of files below it are named, those of installed libraries (a `.venv` may lie there) left out.
        by_line: name those that launch kernels too, which takes time.
    """

    def __init__(self, root: str | Path, by_line: bool = False):
        super().__init__()
        self.root, self.by_line = str(root), by_line
        self.kinds: dict[Any, _Kind] = {}
        self.counts = Counts()

    def __enter__(self) -> SimulatedDevice:
        global _active
        _active, torch.nn.Module._apply = self, _apply_tied
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        global _active
        _active, torch.nn.Module._apply = None, _apply
        super().__exit__(*error)

    def taken(self) -> Counts:
        """The counts so far; the next ones start at 0."""
        counts, self.counts = self.counts, Counts()
        return counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind = self.kinds.get(func)
        if kind is None:
            kind = self.kinds[func] = _Kind.of(func)
        there: list[SimulatedTensor] = []
        here: list[Tensor] = []
        plain_args = _unwrap(args, there, here)
        plain_kwargs = {k: _unwrap(v, there, here) for k, v in kwargs.items()}
        asked = kwargs.get("device")
        on_device = asked.type == NAME if asked is not None else bool(there)
        if asked is not None:
            plain_kwargs["device"] = torch.device("cpu")
        if not there and not on_device:
            return func(*args, **kwargs)
        counts = self.counts
        if kind.name in ("_to_copy", "copy_"):
            if bool(there) != on_device or here:
                return self._across(kind, func, args, kwargs, plain_args, plain_kwargs, on_device)
        elif here and there:
            self._check(kind, func, args, there, here)
        if kind.name in WAITING and not (
            kind.name == "repeat_interleave" and plain_kwargs.get("output_size") is not None
        ):
            self._waited(WAITING[kind.name])
        elif kind.name in ("index", "index_put_", "index_put", "_index_put_impl_") and self._boolean(plain_args):
            self._waited("boolean index")
        if kind.computes:
            counts.kernels += 1
            if self.by_line:
                counts.launched[f"{kind.name} at {self._place()}"] += 1
        out = func(*plain_args, **plain_kwargs)
        if not on_device:
            return out
        return _wrap(out, {id(t.held): t for t in there} if kind.writes else {})

    def _across(self, kind, func, args, kwargs, plain_args, plain_kwargs, to_device: bool):
        """A copy between host and device."""
        if kind.name == "copy_":
            to_device = isinstance(args[0], SimulatedTensor)
            non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        else:
            non_blocking = kwargs.get("non_blocking", False)
        if to_device:
            self.copied(non_blocking)
        else:
            self._waited("copy to the host")
        out = func(*plain_args, **plain_kwargs)
        if kind.name == "copy_":
            return args[0]
        if out is plain_args[0] or out.data_ptr() == plain_args[0].data_ptr() and out.numel():
            out = out.clone()
        return SimulatedTensor(out) if to_device else out

    def _check(self, kind: _Kind, func, args, there, here) -> None:
        if kind.name in ("index", "index_put_", "index_put", "_index_put_impl_") and isinstance(
            args[0], SimulatedTensor
        ):
            values = args[2] if len(args) > 2 else None
            if values is None or isinstance(values, SimulatedTensor) or values.dim() == 0:
                self.copied(False)  # torch takes indices from the host, and copies them
                return
        target = args[0] if kind.writes else None
        if kind.pointwise and all(t.dim() == 0 for t in here) and not any(t is target for t in here):
            return
        shapes = [tuple(t.shape) for t in here]
        raise MixedDevices(
            f"{func} is given tensors of {NAME} and, with shapes {shapes}, of the CPU; at {self._place()}"
        )

    @staticmethod
    def _boolean(args) -> bool:
        found = any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1])
        return found and not (len(args) > 2 and args[2].numel() == 1)

    def copied(self, non_blocking: bool) -> None:
        self.counts.copies += 1
        if not non_blocking:
            self.counts.blocking += 1
            self.counts.copied[self._place()] += 1

    def _waited(self, what: str) -> None:
        self.counts.syncs += 1
        self.counts.waits[f"{what} at {self._place()}"] += 1

    def _place(self) -> str:
        """The innermost line below `root` that asked."""
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(self.root) and not name.startswith(LIBRARIES) and name != __file__:
                return f"{Path(name).name}:{frame.f_lineno} {frame.f_code.co_name}"
            frame = frame.f_back
        return "the backward pass"


def _unwrap(x: Any, there: list, here: list) -> Any:
    if isinstance(x, SimulatedTensor):
        there.append(x)
        return x.held
    if isinstance(x, Tensor):
        here.append(x)
        return x
    if isinstance(x, (list, tuple)):
        return type(x)(_unwrap(i, there, here) for i in x)
    return x


def _wrap(out: Any, written: dict[int, SimulatedTensor]) -> Any:
    if isinstance(out, Tensor):
        known = written.get(id(out))
        if known is None:
            return SimulatedTensor(out)
        if known.shape != out.shape:
            raise NotImplementedError(f"an operation in place that changes shapes: {known.shape} to {out.shape}")
        return known
    if isinstance(out, (list, tuple)):
        return type(out)(_wrap(i, written) for i in out)
    return out
