"""Tensors out of foreign PyTorch files, without running anything the files contain.

A file written by `torch.save` and a TorchScript archive are both zip files with the same inside: a
pickle `NAME/data.pkl` that describes the objects, and one raw binary entry `NAME/data/KEY` per
tensor storage. A pickle names the functions to call, so reading one normally may run anything;
`torch.jit.load` compiles and keeps the archive's own code; and `torch.load(weights_only=True)`
refuses both TorchScript archives and many training checkpoints, because Dassl's warm-up scheduler
stores a whole `CosineAnnealingLR` object, optimizer included, beside the weights.

`read_archive` therefore interprets `data.pkl` with an unpickler that knows three things: ordered
dictionaries, tensors, and `Inert`, an object that takes the place of every class and function it
does not know. No name in the file is ever imported or called. Files from before the zip format
(PyTorch < 1.6) go through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ArtifactError, ConfigError, DuotuneError, because
from ..reading import MAX_DESCRIPTION_BYTES, MAX_WEIGHT_BYTES, check_file
from ..reading.archives import Archive

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Inert:
    """Stands for an object of a class that is not needed. Keeps the state it was given and does nothing with it."""

    state: Any = None

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    # containers are filled item by item; what goes into an inert one is not needed
    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _Call:
    """A function of this module under a name of the file; slots, so that a pickle cannot set attributes on it."""

    __slots__ = ("_function",)

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"a pickle tried to set {name!r} on a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    # as_strided raises if the view leaves the storage; a view may also name one value billions of times
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of {math.prod(size)} values is made of {storage.numel()}")
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: Archive, prefix: str):
        code = archive.read(f"{prefix}/data.pkl", MAX_DESCRIPTION_BYTES)
        _check_memo(code)
        super().__init__(io.BytesIO(code))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _Call(_rebuild_tensor)
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _Call(_rebuild_parameter)
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            return Inert()
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._prefix}/data/{key}", MAX_WEIGHT_BYTES))
            self._storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return self._storages[key]


def _check_memo(code: bytes) -> None:
    """Raises UnpicklingError if a pickle numbers objects beyond their count: Python would make a table that long."""
    most = 0
    for operation, argument, _ in pickletools.genops(code):
        if "PUT" in operation.name and isinstance(argument, int):
            most = max(most, argument)
    if most > len(code):
        raise pickle.UnpicklingError(f"a pickle of {len(code)} bytes numbers an object {most}")


def check_settings(given: Mapping[str, Any], known: Mapping[str, Any], source: str | Path) -> None:
    """Raises ConfigError with every given setting that a checkpoint itself says otherwise."""
    if faults := [
        f"{name} is {known[name]!r} in {source}, not {value!r}; leave it out"
        for name, value in given.items()
        if name in known and value != known[name]
    ]:
        raise ConfigError(*faults)


def read_archive(path: str | Path) -> Any:
    """The object a PyTorch file describes, made of containers, numbers, strings, CPU tensors, and `Inert` for the rest.

    Args:
        path: a file written by `torch.save` or `torch.jit.save`.

    Raises:
        ArtifactError: there is no such file, it is truncated, or it is no PyTorch file.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise ArtifactError(f"no file {path}; expected a PyTorch checkpoint")
    check_file(path, "a PyTorch checkpoint", ArtifactError)
    with understood(path):
        if not zipfile.is_zipfile(path):
            return _read_old(path)
        with Archive(path, "a PyTorch checkpoint", ArtifactError) as archive:
            names = [n for n in archive.names if n.count("/") == 1 and n.endswith("/data.pkl")]
            if not names:
                raise ArtifactError(f"{path} is a zip file without data.pkl; expected a PyTorch checkpoint")
            prefix = names[0].partition("/")[0]
            order = f"{prefix}/byteorder"
            if order in archive and archive.read(order) == b"big":
                raise ArtifactError(f"{path} was written on a big-endian machine; write it again on a usual one")
            return _Unpickler(archive, prefix).load()


@contextlib.contextmanager
def understood(path: str | Path) -> Iterator[None]:
    """Turns whatever the content of a checkpoint leads to into one ArtifactError that names it.

    A damaged or hostile pickle may fail anywhere, and tensors of unexpected shapes wherever they are first used.
    """
    try:
        yield
    except DuotuneError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"cannot read {path} as a PyTorch checkpoint ({type(error).__name__}: {because(error)}); "
            "it is damaged or of another kind; copy or download it again"
        ) from error


def _read_old(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] == b"PK":  # a zip file whose directory, at its end, is missing
        raise ArtifactError(f"{path} is truncated; copy or download it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text advises to run what is in the file
        raise ArtifactError(
            f"cannot read {path} as a PyTorch checkpoint; it is damaged or of another kind; copy or download it again"
        ) from error


def state_dict_of(content: Any) -> dict[str, Tensor] | None:
    """The name -> tensor table in what `read_archive` returned; None if there is none.

    A TorchScript module's attributes become dotted names; a checkpoint's `state_dict` entry is
    taken; the prefix `module.` of parallel training is dropped.
    """
    if isinstance(content, Inert):
        return dict(_attributes(content, "")) or None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        return None
    table = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor) and is_plain(v)}
    return {k.removeprefix("module."): v for k, v in table.items()} or None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and stores each of its values: a view may name one value billions of times."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _attributes(module: Inert, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module.state, Mapping):
        return
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Inert):
            yield from _attributes(value, f"{prefix}{name}.")
