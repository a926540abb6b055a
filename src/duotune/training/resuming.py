"""What a checkpoint holds, against the run that goes on with it: a manifest can be written anew by anybody.

    trainer_state.json    names and types of transformers' TrainerState, the checkpoint's own step
    optimizer.pt          the run's own groups and settings, buffers of its parameters' shapes, finite
    scheduler.pt          the run's own schedule at that step

Files are read as tensors and plain values; none can make code run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from ..errors import ArtifactError
from ..reading import MAX_DESCRIPTION_BYTES, because, read_json, shown
from ..settings import fits
from .checkpoints import BEFORE, OPTIMIZER, SCHEDULE, TRAINER_STATE

COUNTS = ("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen")
NUMBERS = ("epoch", "total_flos", "logging_steps", "save_steps", "eval_steps")
SHAPED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop)
"""Optimizers whose buffers are numbers, or have their parameter's shape."""


def read_state(folder: Path, step: int) -> dict[str, Any]:
    """Where training stood, by the fields of transformers' `TrainerState`.

    Raises:
        ArtifactError: it is something else, or of another step.
    """
    path = folder / TRAINER_STATE
    state = read_json(path, "where training stands", ArtifactError, MAX_DESCRIPTION_BYTES, nonfinite=True)
    if not isinstance(state, dict):
        raise _unfit(path, "it is no table")
    known = {field.name for field in dataclasses.fields(TrainerState)}
    if unknown := sorted(set(state) - known):
        raise _unfit(path, f"it has the unknown entry {shown(unknown[0])}")
    faults = [name for name in COUNTS if not _is_number(state.get(name), whole=True)]
    faults += [name for name in NUMBERS if name in state and not _is_number(state[name])]
    faults += [name for name in ("logging_steps", "save_steps") if state.get(name) == 0]
    kinds = {"log_history": list[dict], "best_metric": float | None, "best_global_step": int | None}
    kinds |= {"best_model_checkpoint": str | None, "stateful_callbacks": dict | None, "trial_name": str | None}
    kinds |= {"train_batch_size": int | None, "trial_params": dict | None}
    faults += [name for name, kind in kinds.items() if name in state and not fits(state[name], kind)]
    if faults:
        raise _unfit(path, f"{faults[0]} is {shown(state.get(faults[0]))}")
    if any(not _is_number(value, signed=True) for row in state.get("log_history", ()) for value in row.values()):
        raise _unfit(path, "log_history holds what is no number")
    if state["global_step"] != step:
        raise _unfit(path, f"it is of step {state['global_step']}, the checkpoint of step {step}")
    return state


def _is_number(value: Any, whole: bool = False, signed: bool = False) -> bool:
    if not fits(value, int if whole else float):
        return False
    return signed or 0 <= value < math.inf


def load_optimizer(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    step: int,
    exact: bool = True,
) -> None:
    """Put a checkpoint's buffers into an optimizer, and its step into the optimizer's schedule; both are fresh.

    Args:
        step: of the checkpoint.
        exact: the schedule has made every step; under loss scaling it leaves out those that overflowed.

    Raises:
        ArtifactError: they are not of this optimizer and schedule, or not of this step.
    """
    path = folder / SCHEDULE
    saved, own = _read(path), schedule.state_dict()
    done = _entry(path, saved, "last_epoch")
    if not _is_number(done, whole=True) or done > step or (exact and done < step):
        raise _unfit(path, f"last_epoch is {shown(done)} at step {step}")
    factors = [rate(done) for rate in schedule.lr_lambdas]
    rates = [base * factor for base, factor in zip(schedule.base_lrs, factors)]
    moved = {"last_epoch": done, "_step_count": done + 1, "_last_lr": rates}
    _check_same(path, saved, {**own, **moved})

    path = folder / OPTIMIZER
    stored, own = _read(path), optimizer.state_dict()
    groups = [{**group, "lr": rate} for group, rate in zip(own["param_groups"], rates)]
    _check_same(path, {**stored, "state": None}, {"state": None, "param_groups": groups})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
    _check_buffers(path, _entry(path, stored, "state"), parameters, shaped=type(inner) in SHAPED)
    try:
        optimizer.load_state_dict(stored)
        schedule.load_state_dict(saved)
    except Exception as error:  # whatever a foreign value leads to inside of torch
        raise _unfit(path, because(error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file leads to
        raise ArtifactError(f"cannot read {path} ({_why(error)}); {BEFORE}") from error
    if not isinstance(saved, dict):
        raise _unfit(path, f"it holds {type(saved).__name__}")
    return saved


def _why(error: Exception) -> str:
    """torch writes a page about its option weights_only, which is no choice here."""
    text = because(error)
    return "it holds more than tensors and plain values" if "weights_only" in text.lower() else text


def _entry(path: Path, saved: Mapping[str, Any], name: str) -> Any:
    if name not in saved:
        raise _unfit(path, f"{name} is missing")
    return saved[name]


def _check_same(path: Path, saved: Any, own: Any, where: str = "") -> None:
    """Raises ArtifactError unless `saved` is `own`: names, types, numbers (to the last digits of a product)."""
    if isinstance(own, Mapping):
        names = set(saved) if isinstance(saved, Mapping) else {None}
        if names != set(own):
            other = sorted(map(str, names ^ set(own)))
            raise _unfit(path, f"its entries {where or 'are others'} differ by {shown(other[0])}")
        for name in own:
            _check_same(path, saved[name], own[name], str(name))
    elif isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            raise _unfit(path, f"{where} is {shown(saved)}, expected {len(own)} entries")
        for ours, theirs in zip(own, saved):
            _check_same(path, theirs, ours, where)
    else:
        plain = (float, int)
        if isinstance(own, Tensor) and isinstance(saved, Tensor) and own.numel() == saved.numel() == 1:
            own, saved = own.item(), saved.item()
        number = isinstance(own, plain) and isinstance(saved, plain) and not isinstance(saved, bool)
        same = math.isclose(own, saved, rel_tol=1e-12) if number and not isinstance(own, bool) else own == saved
        if type(saved) is not type(own) and not number or not same:
            raise _unfit(path, f"{where} is {shown(saved)}, in this run {shown(own)}")


def _check_buffers(path: Path, state: Any, parameters: Sequence[Tensor], shaped: bool) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(row, Mapping) for row in state.values()):
        raise _unfit(path, "its buffers are no tables")
    for number, row in state.items():
        if not fits(number, int) or not 0 <= number < len(parameters):
            raise _unfit(path, f"it has buffers of a parameter {shown(number)}; there are {len(parameters)}")
        shape = tuple(parameters[number].shape)
        for name, value in row.items():
            if not isinstance(value, Tensor):
                if value is not None and not _is_number(value):
                    raise _unfit(path, f"{shown(name)} of parameter {number} is {shown(value)}")
            elif shaped and value.numel() != 1 and tuple(value.shape) != shape:
                raise _unfit(path, f"{shown(name)} of parameter {number} has shape {tuple(value.shape)}, not {shape}")
            elif not (value.is_floating_point() and value.layout == torch.strided and value.isfinite().all()):
                raise _unfit(path, f"{shown(name)} of parameter {number} holds what is no finite number")


def _unfit(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path} is not of this run: {what}; {BEFORE}")


__all__ = ["load_optimizer", "read_state"]
