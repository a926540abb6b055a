"""Checkpoints of a `PromptTrainer`: what is written, by what a run knows its own, and how it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer

from ..errors import ArtifactError, TrainingError
from ..processes import Processes, lost
from ..reading import because
from . import checkpoints
from .checkpoints import last_checkpoint
from .resuming import load_optimizer, read_state


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints hold the method's state alone and are complete, or as if they had never been begun.

    Attributes:
        processes: that train together.
        drawn: how the training images were drawn. _data: what the images themselves are known by.
    """

    processes: Processes
    drawn: dict[str, Any]
    _data: dict[str, Any]

    @property
    def num_epochs(self) -> int:
        raise NotImplementedError

    def _where_to_go_on(self) -> str:
        last = last_checkpoint(self.args.output_dir)
        return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        runs = Path(self._get_output_dir(trial))
        folder = runs / f"checkpoint-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once this one is complete
        try:
            if self.args.should_save:
                checkpoints.discard(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes the state of its generators
            if self.args.should_save:
                checkpoints.seal(folder, self.state.global_step)
                best = self.state.best_model_checkpoint
                checkpoints.keep_newest(runs, limit, folder, Path(best) if best else None)
        except BaseException as error:
            if self.processes.count > 1 and lost(error):
                raise
            why = checkpoints.why_not_written(error, folder)  # before what was written of it is gone
            if self.args.should_save and not checkpoints.is_complete(folder):
                checkpoints.discard(folder)
            if isinstance(error, (OSError, SafetensorError, RuntimeError)) and not isinstance(error, TrainingError):
                raise TrainingError(
                    f"cannot write the checkpoint {folder}: {why}; {self._where_to_go_on()}; free some space and resume"
                ) from error
            raise
        finally:
            self.args.save_total_limit = limit

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        state = checkpoints.each_once(self.model.method.state_dict())
        state = {k: v.detach().cpu().contiguous() for k, v in state.items()}
        if broken := sorted(k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()):
            raise TrainingError(
                f"{broken[0]} holds NaN or infinity after step {self.state.global_step}; {self._where_to_go_on()}; "
                "try lower learning rates"
            )
        checkpoints.write(folder, state, self._identity())

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a run to go on as if it had never stopped."""
        args, model = self.args, self.model
        return {
            "method": model.method_name,
            "config": model.method.config.to_dict(),
            "fingerprint": model.backbone.fingerprint(),
            "class_names": list(model.class_names),
            "template": model.method.template,
            **self.drawn,
            **self._data,
            "views": args.views,
            "augment": args.augment,
            "num_train_epochs": self.num_epochs,
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "devices": args.world_size * max(1, args.n_gpu),
            "optim": str(getattr(args.optim, "value", args.optim)),
            "sgd_momentum": args.sgd_momentum,
            "weight_decay": args.weight_decay,
            "max_grad_norm": args.max_grad_norm,
            "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
            "metric_for_best": args.metric_for_best,
            "dataloader_drop_last": args.dataloader_drop_last,
            "seed": args.seed,
            "data_seed": args.data_seed,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        with self.processes.together():
            self._load_state(folder)

    def _load_state(self, folder: Path) -> None:
        step = checkpoints.check_resumable(folder, self._identity())
        best = read_state(folder, step).get("best_model_checkpoint")
        self._best = Path(self.args.output_dir) / Path(best).name if best else None  # the run may have moved
        if self._best is not None:
            checkpoints.check_resumable(self._best, self._identity())
        checkpoints.restore(self.model, folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.state.best_model_checkpoint = str(self._best) if self._best is not None else None
            exact = self.accelerator.scaler is None
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler, self.state.global_step, exact)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _unfit(checkpoint, "the states of random generators"):
            super()._load_rng_state(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with _unfit(checkpoint, "the loss scale"):
            super()._load_scaler(checkpoint)

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        checkpoints.check_resumable(best, self._identity())
        checkpoints.restore(self.model, best)


@contextlib.contextmanager
def _unfit(checkpoint: str | None, what: str) -> Iterator[None]:
    """Whatever a foreign value in a checkpoint leads to is an ArtifactError."""
    try:
        yield
    except Exception as error:
        raise ArtifactError(
            f"{checkpoint} does not fit: {what} cannot be restored ({because(error)}); {checkpoints.BEFORE}"
        ) from error
