"""PromptTrainer: transformers' Trainer for a frozen backbone and kilobytes of prompts.

What it changes, hook by hook:

    data          ClassificationData in; features of frozen towers from the cache, pixels where they are needed
    order         a function of seed and epoch alone, so that resuming needs no generator's history
    optimizer     one group per kind of prompt, a rate per epoch (`schedule`)
    compute_loss  hands `Progress` to the method
    checkpoints   the method's state alone, kilobytes, beside optimizer, schedule and generators
    faults        NaN, no space, Ctrl-C: one line, and checkpoints from before stay usable
"""

from __future__ import annotations

import contextlib
import copy
import errno
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalPrediction, TrainOutput

from .. import artifacts
from ..backbones.base import Backbone
from ..data.base import ClassificationData, ImageItem, in_order_of
from ..data.sampling import check_every_class, spread
from ..data.torch_dataset import ImageDataset, check_images
from ..data.transforms import Transform
from ..errors import ArtifactError, ConfigError, DataError, TrainingError
from ..methods.base import Progress
from ..model import PromptedDetector, PromptedModel
from ..names import differences
from ..processes import lost, of_this_run
from ..reading import because
from .arguments import PromptTrainingArguments
from .cache import FeatureCache
from .callbacks import RunBar, TellEpoch
from .checkpoints import items_identity, last_checkpoint
from .features import FeatureDataset, PixelsAndFeatures, collate, evaluation_transform, frozen_features, train_transform
from .loss_scale import LossScale
from .order import EpochSampler
from .resumable import ResumableTrainer
from .schedule import epoch_schedule, learning_rate, optimizer_groups

logger = logging.getLogger(__name__)

PROBE_IMAGES = 1024


class PromptTrainer(ResumableTrainer):
    """Trains the method of a `PromptedModel`; its backbone stays frozen, in eval mode, and on its device.

    Of a `PromptedDetector` this makes a `training.detection.DetectionTrainer`.

    Args:
        model: from `attach`.
        args: see `PromptTrainingArguments`.
        data: train on `data.train`, validate on `data.val`; its classes are the model's, in any order. Draws
            `args.num_shots` per class if that is not 0.
        train_dataset, eval_dataset: instead of `data`: torch datasets of {"pixel_values", "labels"} or
            {"frozen_features", "labels"}; one with a `set_epoch(epoch)` is told the epoch.
        transform: of training images; None for the authors' augmentation.
        others: as in `transformers.Trainer`.

    Attributes:
        cache: the `FeatureCache`, or None.
        bar: the `RunBar`, shown unless `args.disable_tqdm`; `remove_callback(ProgressCallback)` takes it away.
        processes: all that train this model.
        drawn: how the training images were drawn ("num_shots", "shots_seed"); part of what checkpoints are known by.
            Whoever draws them before handing `data` in may say so here.
        broken: name of each image that was skipped -> why.

    Raises:
        ConfigError: neither or both of `data` and `train_dataset`, or no validation images to select by.
        DataError: too many images cannot be read.
    """

    def __new__(cls, model: PromptedModel | None = None, *_: Any, **__: Any) -> PromptTrainer:
        if cls is PromptTrainer and isinstance(model, PromptedDetector):
            from .detection import DetectionTrainer

            cls = DetectionTrainer
        return super().__new__(cls)

    def __init__(
        self,
        model: PromptedModel,
        args: PromptTrainingArguments,
        data: ClassificationData | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        transform: Transform | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        **others: Any,
    ):
        if (data is None) == (train_dataset is None):
            raise ConfigError("PromptTrainer trains on data (ClassificationData) or on a train_dataset; give one")
        args = copy.copy(args)
        args.train_on(model.backbone.device)
        self.processes = of_this_run()
        # transformers would look for its own switch on the model, whose name changes between its releases
        self._checkpointing = bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", None))
        args.gradient_checkpointing = args.activation_checkpointing = False
        if self._checkpointing:
            with self._recomputing(model.backbone):
                pass  # tells before anything is done that it cannot
        if args.data_seed is None:
            args.data_seed = args.seed
        self._scale: LossScale | None = None
        self.broken: dict[str, str] = {}
        self.drawn = {"num_shots": args.num_shots, "shots_seed": args.shots_seed} if args.num_shots else {}
        self.cache = FeatureCache(args.cache_dir, int(args.cache_gb * 1e9)) if args.cache_dir else None
        if data is not None:
            data = in_order_of(model.class_names, data)
            self._check_classes(model, data)
            data = data.few_shot(args.num_shots, args.shots_seed) if args.num_shots else data
            if not data.train:
                raise ConfigError(f"{data.name} has no training images")
            check_every_class(data, data.train)
            with self.processes.together():
                train_dataset = self._make_dataset(model, args, data.train, transform, training=True)
                if data.val:
                    eval_dataset = self._make_dataset(model, args, data.val, None, training=False)
                good = [item for item in data.train if item.key not in self.broken]
                check_every_class(data, good)
                self._data = items_identity(good, self._label_bytes)
                for rank, theirs in enumerate(self.processes.gather(self._data)):
                    if theirs != self._data:
                        raise DataError(f"process {rank} has other training images than process {self.processes.rank}")
        else:
            self._data = {"training_images": len(train_dataset)} if hasattr(train_dataset, "__len__") else {}
        if transform is not None:
            self._data["transform"] = transform.key()
        self._check_length(args, train_dataset)
        if eval_dataset is None and args.metric_for_best:
            raise ConfigError(f"metric_for_best={args.metric_for_best!r} needs validation images, and there are none")
        if eval_dataset is None and (args.eval_strategy != "no" or args.eval_on_start):
            asked = "eval_on_start" if args.eval_on_start else f"eval_strategy={args.eval_strategy.value!r}"
            raise ConfigError(f"{asked} needs validation images, and there are none")
        if isinstance(train_dataset, FeatureDataset):
            args.dataloader_num_workers, args.dataloader_prefetch_factor = 0, None  # nothing to decode
            args.dataloader_persistent_workers = False
        try:
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                data_collator=others.pop("data_collator", collate),
                compute_metrics=compute_metrics or accuracy_metric,
                **others,
            )
        except (ValueError, ImportError, RuntimeError) as error:  # what transformers and accelerate find unfit
            raise ConfigError(f"training arguments do not fit: {because(error)}") from error
        self.add_callback(TellEpoch(self))
        self.bar = RunBar()
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(self.bar)

    @staticmethod
    def _check_classes(model: PromptedModel, data: Any) -> None:
        """Raises ConfigError if the data has other classes than the model."""
        if tuple(data.class_names) != model.class_names:
            raise ConfigError(
                f"the model has {len(model.class_names)} classes, {data.name} has other {len(data.class_names)} "
                f"({differences(model.class_names, data.class_names)}); attach with data.class_names, or call "
                "set_classes"
            )

    @staticmethod
    def _label_bytes(item: Any) -> bytes:
        """What checkpoints know an image's label by."""
        return str(item.label).encode()

    def _make_dataset(
        self,
        model: PromptedModel,
        args: PromptTrainingArguments,
        items: tuple[ImageItem, ...],
        transform: Transform | None,
        training: bool,
    ) -> Dataset:
        """The cheapest dataset that holds what the method reads."""
        method, backbone = model.method, model.backbone
        if training and args.augment:
            transform, views = transform or train_transform(backbone), args.views
        else:
            transform, views = transform or evaluation_transform(backbone), 1
        progress = not args.disable_tqdm and self.processes.first
        if views and method.needs_frozen_features:
            frozen = frozen_features(
                backbone,
                items,
                transform,
                views,
                args.seed,
                self.cache,
                args.per_device_eval_batch_size,
                args.dataloader_num_workers,
                progress,
                args.max_broken_share,
                self.processes,
            )
            self._skip(frozen.broken)
            if not method.needs_pixels:
                return FeatureDataset(frozen)
            return PixelsAndFeatures(ImageDataset(frozen.items, transform, views, args.seed), frozen.features)
        workers, share = args.dataloader_num_workers, args.max_broken_share
        items, report = check_images(items, workers, share, processes=self.processes)
        self._skip(report.broken)
        return ImageDataset(items, transform, views, args.seed)

    def _skip(self, broken: dict[str, str]) -> None:
        self.broken.update(broken)
        for reason in broken.values():
            logger.warning("skipped: %s", reason)

    # where training stands

    @property
    def progress(self) -> Progress:
        """The epoch of the coming step, and how many there are."""
        return Progress(min(self.state.global_step // self.steps_per_epoch, self.num_epochs - 1), self.num_epochs)

    @property
    def num_epochs(self) -> int:
        if self.args.max_steps > 0:
            return math.ceil(self.args.max_steps / self.steps_per_epoch)
        return math.ceil(self.args.num_train_epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer in which every training image is seen once; 1 if that length is not known."""
        if not hasattr(self.train_dataset, "__len__"):
            return 1
        args, per_step = self.args, self._train_batch_size
        if not args.accelerator_config.split_batches:
            per_step *= args.world_size
        batches = len(self.train_dataset) / per_step
        batches = math.floor(batches) if args.dataloader_drop_last else math.ceil(batches)
        return max(1, math.ceil(batches / args.gradient_accumulation_steps))

    @staticmethod
    def _check_length(args: Any, dataset: Any) -> None:
        """Raises ConfigError if all training images together are dropped as a batch that is not full."""
        if args.dataloader_drop_last and hasattr(dataset, "__len__") and len(dataset) < args.train_batch_size:
            raise ConfigError(
                f"dataloader_drop_last leaves nothing of {len(dataset)} training images, which are fewer than a batch "
                f"({args.train_batch_size}); take smaller batches, or leave it out"
            )

    # data

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        return EpochSampler(len(dataset), self.args.data_seed, lambda: self.progress.epoch)

    # optimisation

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = optimizer_groups(self.model.method.param_groups(), self.model, self.args.weight_decay)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            if kind is torch.optim.SGD:
                settings = {"momentum": self.args.sgd_momentum, **settings}
            self.optimizer = kind(groups, **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            groups = self.model.method.param_groups()
            self.lr_scheduler = epoch_schedule(optimizer, groups, self.num_epochs, self.steps_per_epoch)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        outputs = model(**inputs, progress=self.progress)
        loss = outputs["loss"] if self._scale is None else self._scale(outputs["loss"])
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        told = self.model.method.tells  # predictions are logits; what a method tells beside them would join them
        return super().prediction_step(model, inputs, prediction_loss_only, [*(ignore_keys or ()), *told])

    def training_step(self, *args, **kwargs) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.processes.somewhere(~torch.isfinite(loss)):
            step = self.state.global_step + 1
            rates = ", ".join(f"{g.name} {g.lr:g}" for g in self.model.method.param_groups())
            with self.processes.together():
                if not torch.isfinite(loss):
                    raise TrainingError(
                        f"the loss is {loss.item()} at step {step} (epoch {self.progress.epoch + 1} of "
                        f"{self.num_epochs}); {self._where_to_go_on()}; try lower learning rates ({rates})"
                    )
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            epoch = max(0, self.state.global_step - 1) // self.steps_per_epoch  # of the step just made
            groups = self.model.method.param_groups()
            logs = {**logs, **{f"learning_rate_{g.name}": learning_rate(g, epoch, self.num_epochs) for g in groups}}
        super().log(logs, *args, **kwargs)

    # a run

    def train(self, resume_from_checkpoint: str | bool | None = None, **others: Any) -> TrainOutput:
        """As `Trainer.train`; the model is left in eval mode.

        Args:
            resume_from_checkpoint: True: go on from the last complete checkpoint in `args.output_dir`; or its folder.

        Raises:
            TrainingError: the loss is not finite, or a checkpoint cannot be written. ArtifactError: no checkpoint to
                resume from, or one of another method or backbone.
        """
        if not self.model.method.param_groups():
            logger.info("%s learns nothing; there is nothing to train", self.model.method_name)
            self.model.eval()
            return TrainOutput(0, 0.0, {})
        for remark in self.remarks():
            logger.warning("%s", remark)
        if resume_from_checkpoint is True:
            with self.processes.together():
                resume_from_checkpoint = last_checkpoint(self.args.output_dir)
                if resume_from_checkpoint is None:
                    raise ArtifactError(
                        f"no complete checkpoint in {self.args.output_dir} to resume from; train without it"
                    )
        try:
            with self._recomputing(self.model.backbone), self._scaling():
                return super().train(resume_from_checkpoint=resume_from_checkpoint or None, **others)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                where = f"of {error.filename}" if error.filename else "that is written to"
                raise TrainingError(
                    f"no space left on the disk {where}; {self._where_to_go_on()}; free some space"
                ) from error
            raise
        except RuntimeError as error:
            if self.processes.count > 1 and (gone := lost(error)):
                raise gone from error
            raise
        finally:
            self.bar.close()
            # accelerate leaves an autocast wrapper around forward (bf16); predictions are to be the model's own
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.model_wrapped = self.model
            self.model.eval()

    @contextlib.contextmanager
    def _recomputing(self, backbone: Backbone) -> Iterator[None]:
        """`gradient_checkpointing` as the arguments have it; afterwards as the backbone had it."""
        before = backbone.gradient_checkpointing
        backbone.gradient_checkpointing = before or self._checkpointing
        try:
            yield
        finally:
            backbone.gradient_checkpointing = before

    @contextlib.contextmanager
    def _scaling(self) -> Iterator[None]:
        """Gradients that float16 weights can carry; with `fp16`, accelerate sees to that."""
        half = next(self.model.backbone.model.parameters()).dtype == torch.float16
        if half and not self.args.fp16:
            self._scale = LossScale(self.model.method.parameters())
        try:
            yield
        finally:
            if self._scale is not None:
                self._scale.remove()
            self._scale = None

    def remarks(self) -> list[str]:
        """A sentence for everything that is allowed and probably not meant, given how long training is."""
        epochs = self.num_epochs
        found = [
            f"all {epochs} epochs are warm-up at the rate {group.warmup_lr:g} for the {group.name} parameters "
            f"({group.warmup_epochs} epochs); train longer, or lower their warmup_epochs"
            for group in self.model.method.param_groups()
            if group.warmup_epochs >= epochs
        ]
        if (seen := self.args.gpus_left_out) and self.args.world_size == 1:
            found.append(
                f"this process trains on one of the {seen + 1} GPUs that it sees; "
                f"`torchrun --nproc_per_node {seen + 1} -m duotune train` trains on all"
            )
        return [*found, *self.model.method.config.remarks(epochs)]

    # the artifact

    def save_artifact(self, folder: str | Path, dtype: str = "auto") -> Path:
        """Write the artifact, in float16 where that changes no prediction on training and validation images.

        Afterwards the model holds the stored weights: what is evaluated from now on is what was stored.

        Args:
            dtype: as in `artifacts.save`. Up to 1,024 images are compared under "auto".
        """
        with self.processes.together():
            if self.processes.first:
                artifacts.save(self.model, folder, dtype=dtype, probe=list(self._probe()) if dtype == "auto" else None)
            self.processes.gather(None)
            artifacts.restore(self.model, folder)
        return Path(folder)

    def _probe(self) -> Iterator[Mapping[str, Tensor]]:
        for dataset in (self.train_dataset, self.eval_dataset):
            if dataset is None or isinstance(dataset, dict):
                continue
            order = spread(range(len(dataset)), PROBE_IMAGES)
            workers = 0 if isinstance(dataset, FeatureDataset) else min(2, self.args.dataloader_num_workers)
            size = self.args.per_device_eval_batch_size
            loader = DataLoader(dataset, size, sampler=order, num_workers=workers, collate_fn=self.data_collator)
            yield from loader


def accuracy_metric(prediction: EvalPrediction) -> dict[str, float]:
    """{"accuracy": % of images whose highest logit is their class}."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": 100 * float((logits.argmax(-1) == prediction.label_ids).mean())}
