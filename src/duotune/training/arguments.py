"""Settings of a training run: transformers' own, with the defaults that prompt learning changes, and ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ..errors import ConfigError
from ..processes import default_device, must_use_cpu
from ..reading import because
from .fields import range_faults, refused_faults, type_faults

PINNED_FOR = ("cuda", "xpu")
"""Kinds of device that copy pinned memory beside what they compute."""


@dataclass
class PromptTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` for kilobytes of prompts.

    Changed defaults, each with its reason:
        num_train_epochs 60: the authors' DPT script (their yaml: 100; CoOp: 50 to 200 by shots).
        per_device_train_batch_size 32, per_device_eval_batch_size 64: 32 is the authors'.
        optim "sgd", sgd_momentum 0.9, weight_decay 5e-4: the authors'. Decay applies to every prompt.
        learning_rate: not used. Each kind of prompt has its own rate in the method's settings (`text_lr`, ...),
            its own warm-up, and a cosine over all epochs; see `duotune.training.schedule`.
        max_grad_norm 0: the authors do not clip.
        logging_strategy "epoch", save_strategy "epoch": an epoch is a handful of steps; a checkpoint is kilobytes.
        save_total_limit 2: the last checkpoint and the one before (or the best).
        logging_nan_inf_filter False: a loss that is not finite stops the run with a TrainingError instead.
        dataloader_num_workers 2: decoding happens beside the step; features from the cache need no worker.
        remove_unused_columns False: batches hold exactly what the model reads.
        dataloader_pin_memory None: batches are pinned, and copied without waiting for them, where a GPU trains.
        report_to "none": "tensorboard" writes curves below `output_dir`/runs; nothing is pushed unless asked.
        seed 1: CoOp's and DPT's scripts number their seeds from 1.

    Ours:
        sgd_momentum: of `optim="sgd"`.
        views: fixed augmented views per training image that epochs take in turn (epoch e sees view e mod views), so
            that frozen features can be computed once and cached; 0: fresh views every epoch, as in the paper.
        augment: random resized crop and flip; False: the test transform, one view.
        cache_dir: folder of cached frozen features, shared by runs; None: kept in memory for this run alone.
        cache_gb: the folder's limit in GB; files least recently used go first.
        num_shots: images per class to draw from `data` with `shots_seed`; 0: train on all of `data.train`.
        shots_seed: of the few-shot draw; apart from `seed`, so that the same shots can be trained on twice.
        max_broken_share: images that cannot be read are named and skipped up to this share (0..1), then an error.
        gradient_checkpointing (transformers' own): work out the backbone's layers again in the backward pass instead of
            keeping what is inside them; on every backbone.
        metric_for_best: None: keep the last epoch. "accuracy" or "loss": evaluate on the validation images every
            epoch and end with the best one.
    """

    METRICS: ClassVar[tuple[str, ...]] = ("accuracy", "loss")

    num_train_epochs: float = field(default=60.0, metadata={"help": "Number of epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images per step and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images per evaluation step and device."})
    optim: str = field(default="sgd", metadata={"help": "Optimizer; the authors use SGD."})
    weight_decay: float = field(default=5e-4, metadata={"help": "Weight decay of every prompt."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0 does not clip."})
    logging_strategy: str = field(default="epoch", metadata={"help": "no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "no, steps, epoch or best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A NaN loss is an error here."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Processes that decode images."})
    dataloader_pin_memory: bool | None = field(
        default=None, metadata={"help": "Pin batches in memory; left out: where a GPU trains."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep False."})
    report_to: None | str | list[str] = field(default="none", metadata={"help": "none or tensorboard."})
    seed: int = field(default=1, metadata={"help": "Seed of order and augmentation."})

    sgd_momentum: float = field(default=0.9, metadata={"help": "Momentum of SGD."})
    views: int = field(default=0, metadata={"help": "Fixed augmented views per image; 0: fresh every epoch."})
    augment: bool = field(default=True, metadata={"help": "Random resized crop and flip."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of cached frozen features."})
    cache_gb: float = field(default=4.0, metadata={"help": "Limit of that folder in GB."})
    num_shots: int = field(default=0, metadata={"help": "Training images per class; 0: all."})
    shots_seed: int = field(default=1, metadata={"help": "Seed of the few-shot draw."})
    max_broken_share: float = field(default=0.01, metadata={"help": "Share of unreadable images to skip, 0..1."})
    metric_for_best: str | None = field(default=None, metadata={"help": "accuracy or loss: keep the best epoch."})

    def __post_init__(self):
        self._own_device: torch.device | None = None
        wrong = list(type_faults(self))  # of which no range can be asked
        if found := [*refused_faults(self), *(wrong or self.faults())]:
            raise ConfigError(*found)
        if self.metric_for_best:
            self.metric_for_best_model = self.metric_for_best
            self.greater_is_better = self.metric_for_best != "loss"
            self.load_best_model_at_end = True
            self.eval_strategy = self.save_strategy
        # accelerate would not let processes without an accelerator know each other, and transformers refuses bf16 there
        if must_use_cpu() or (self.bf16 and default_device() == "cpu"):
            self.use_cpu = True
        self._pin_is_open = self.dataloader_pin_memory is None
        try:
            super().__post_init__()
        except (ValueError, ImportError, RuntimeError) as error:  # what transformers itself finds unfit
            raise ConfigError(f"training arguments do not fit: {because(error)}") from error
        self._pin()

    def _pin(self) -> None:
        """Pin batches for a GPU if nothing else was said; what is pinned is copied beside the step before."""
        if self._pin_is_open:
            self.dataloader_pin_memory = self.device.type in PINNED_FOR
        if self.dataloader_pin_memory and self.accelerator_config.non_blocking is False:
            self.accelerator_config.non_blocking = True

    def train_on(self, device: torch.device) -> None:
        """Train on `device`, where the backbone lies, whatever else this machine has.

        Raises:
            ConfigError: of several processes, each has its own device, and this is another.
        """
        same = lambda other: (other.type, other.index or 0) == (device.type, device.index or 0)
        if same(self.device) and same(self.distributed_state.device):
            return
        if self.world_size > 1:
            raise ConfigError(
                f"process {self.process_index} trains on {self.device}, but its backbone lies on {device}; load it "
                f"with device={str(self.device)!r}"
            )
        self.use_cpu = device.type == "cpu"
        self.__dict__.pop("_setup_devices", None)  # what was set up for another device
        self._own_device = device
        _ = self.device  # asking sets it up
        self.distributed_state.device = device
        self._pin()

    @property
    def device(self) -> torch.device:
        found = super().device
        return self._own_device or found

    @property
    def n_gpu(self) -> int:
        """Accelerators of this process: 0 or 1. With several, transformers would copy the model to each in every step
        (`nn.DataParallel`), and such copies have no parameters that a method could hand out; several processes use
        all."""
        return min(super().n_gpu, 1)

    @property
    def gpus_left_out(self) -> int:
        """Accelerators that this process sees and does not use."""
        return super().n_gpu - self.n_gpu

    def faults(self) -> Iterator[str]:
        """One sentence per value that does not fit; see also `fields`."""
        yield from range_faults(self)
        if not 0 <= self.sgd_momentum < 1:
            yield f"sgd_momentum must be in 0..1 (1 left out), not {self.sgd_momentum}"
        reports = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in reports:
            if name not in ("none", "all", *INTEGRATION_TO_CALLBACK):
                yield f"report_to must be none, all or one of {', '.join(INTEGRATION_TO_CALLBACK)}, not {name!r}"
            elif name not in ("none", "all", *get_available_reporting_integrations()):
                yield f"report_to={name!r} needs the package {name}; pip install {name}"
        if self.views < 0:
            yield f"views must be 0 (fresh every epoch) or a number of fixed views, not {self.views}"
        if not self.cache_gb > 0:
            yield f"cache_gb must be above 0, not {self.cache_gb}; leave cache_dir out to have no cache"
        if self.num_shots < 0:
            yield f"num_shots must be 0 (all images) or more, not {self.num_shots}"
        if not 0 <= self.max_broken_share <= 1:
            yield f"max_broken_share must be a share in 0..1, not {self.max_broken_share}"
        if self.metric_for_best not in (None, *self.METRICS):
            names = ", ".join(map(repr, self.METRICS))
            yield f"metric_for_best must be {names} or left out, not {self.metric_for_best!r}"
        elif self.metric_for_best and self.save_strategy not in ("epoch", "steps", "best"):
            yield f"metric_for_best needs checkpoints, but save_strategy is {self.save_strategy!r}; use 'epoch'"
