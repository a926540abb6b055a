"""What happens beside the steps of a run: its progress bar, and the epoch told to the training data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

if TYPE_CHECKING:
    from .trainer import PromptTrainer


class RunBar(ProgressCallback):
    """One bar for the run, the newest numbers beside it; transformers' own prints a dictionary per epoch.

    Args:
        name: stands before the bar.
    """

    SHOWN = {"loss": "loss", "eval_loss": "val loss", "eval_accuracy": "val accuracy", "eval_ap": "val AP"}

    def __init__(self, name: str = "training"):
        super().__init__()
        self.name = name
        self.numbers: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **_):
        self.numbers, self.current_step = {}, state.global_step
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", dynamic_ncols=True
            )

    def on_prediction_step(self, *args, **kwargs):
        """No bar of its own for validation."""

    def on_log(self, args, state, control, logs=None, **_):
        if self.training_bar is not None:
            self.numbers |= {self.SHOWN[k]: f"{v:.4g}" for k, v in (logs or {}).items() if k in self.SHOWN}
            self.training_bar.set_postfix(self.numbers)

    def close(self) -> None:
        """End the bar's line; also where training ends early."""
        if self.training_bar is not None:
            self.training_bar.close()
        self.training_bar = None


class TellEpoch(TrainerCallback):
    """Tells the training dataset its epoch before anything is read from it."""

    def __init__(self, trainer: PromptTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **_):
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(self.trainer.progress.epoch)
