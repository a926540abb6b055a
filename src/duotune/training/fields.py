"""Which of transformers' training arguments serve learning prompts on a frozen backbone, and why the others do not.

Every field of `transformers.TrainingArguments` is in one of two tables; one that a newer transformers adds is in none,
and refused until it was looked at. A field of `REFUSED` may hold transformers' own default and nothing else.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

from transformers import TrainingArguments

from ..reading import shown
from ..settings import fits, misfits

OPTIMIZERS = ("sgd", "adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop")
"""Those of torch and transformers that take a rate per group and need no further package."""

LOG_LEVELS = ("debug", "info", "warning", "error", "critical", "detail", "passive")
WORKS = frozenset(
    """
    output_dir per_device_train_batch_size per_device_eval_batch_size num_train_epochs max_steps
    gradient_accumulation_steps
    optim weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm
    bf16 fp16 tf32 gradient_checkpointing activation_checkpointing torch_empty_cache_steps use_cpu
    seed data_seed full_determinism
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
    log_level log_level_replica disable_tqdm report_to run_name project
    eval_strategy eval_steps eval_delay eval_on_start eval_accumulation_steps
    save_strategy save_steps save_total_limit
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    """.split()
)

_RATES = "has no effect; every kind of prompt has its own rate and warm-up, such as --set text_lr=0.002"
_LANGUAGE = "is of language models"
_HUB = "has no effect; nothing is uploaded"
_WHOLE = "cannot be taken; a backbone is frozen and lies whole on one device, what is learnt is kilobytes"
_ORDER = "cannot be taken; the order of images follows from seed and epoch alone, so that a resumed run is the same"
_BEST = "is set by metric_for_best"
_MEASURE = "cannot be taken; accuracy and AP are measured in one way"
_RESUME = "cannot be taken; a checkpoint must hold all that a run needs to go on as if it had never stopped"
_UNUSED = "has no effect here"
_COMPUTE = "is not offered"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"), _RATES),
    **dict.fromkeys(("optim_args", "optim_target_modules"), "is of optimizers that are not offered"),
    **dict.fromkeys(("average_tokens_across_devices", "include_num_input_tokens_seen", "use_cache"), _LANGUAGE),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha"), _LANGUAGE),
    **dict.fromkeys(("train_sampling_strategy", "length_column_name"), _ORDER),
    **dict.fromkeys(("dataloader_in_order", "accelerator_config", "ignore_data_skip"), _ORDER),
    "label_smoothing_factor": "has no effect; the method computes its own loss",
    "remove_unused_columns": "must stay false; batches hold exactly what the model reads",
    "label_names": "has no effect; batches hold exactly what the model reads",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "would cast what is learnt for good; bf16=true computes so"),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPUTE),
    **dict.fromkeys(("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"), _COMPUTE),
    **dict.fromkeys(("auto_find_batch_size",), "cannot be taken; the result depends on the batch size"),
    **dict.fromkeys(("debug", "skip_memory_metrics", "local_rank"), _UNUSED),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), _UNUSED),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _HUB),
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"), _HUB),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _HUB),
    **dict.fromkeys(("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"), _MEASURE),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics"), _MEASURE),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _BEST),
    **dict.fromkeys(("save_only_model", "restore_callback_states_from_checkpoint"), _RESUME),
    "save_on_each_node": "cannot be taken; all nodes see the one folder of checkpoints",
    "enable_jit_checkpoint": "cannot be taken; `kill` ends a run at its last checkpoint",
    "resume_from_checkpoint": "has no effect; give it to `train`, or --resume to the command",
    **dict.fromkeys(("parallelism_config", "fsdp", "fsdp_config", "deepspeed"), _WHOLE),
}
"""Field -> why it cannot be set."""

LEAST: dict[str, float] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"), 1),
    **dict.fromkeys(("eval_accumulation_steps", "dataloader_prefetch_factor", "torch_empty_cache_steps"), 1),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_timeout", "save_total_limit"), 1),
    **dict.fromkeys(("dataloader_num_workers", "data_seed", "seed", "weight_decay", "max_grad_norm"), 0),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "eval_delay"), 0),
}
MOST: dict[str, float] = {**dict.fromkeys(("seed", "data_seed"), 2**32 - 1), "dataloader_num_workers": 4096}
POSITIVE = {"num_train_epochs", "logging_steps", "save_steps", "eval_steps", "adam_epsilon"}
LARGEST = 2**53  # whole numbers that double precision holds


def why_refused(name: str) -> str | None:
    """Why a field cannot be set, or None. Names that are no field of transformers' are none of this module's."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    if name in WORKS or name not in known:
        return None
    return REFUSED.get(name, "is not known to this version; it may change what is trained")


def refused_faults(arguments: TrainingArguments) -> Iterator[str]:
    """One sentence per field that cannot be set, and is."""
    for field in dataclasses.fields(arguments):
        value, default = getattr(arguments, field.name), _default(field)
        if (value != default or type(value) is not type(default)) and (why := why_refused(field.name)):
            yield f"{field.name} {why}"


def type_faults(arguments: TrainingArguments) -> Iterator[str]:
    """One sentence per field of another type than it says; those that cannot be set are left out."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    judged = {n: v for n, v in values.items() if not isinstance(v, os.PathLike) and not why_refused(n)}
    yield from misfits(type(arguments), judged, "training argument")


def range_faults(arguments: TrainingArguments) -> Iterator[str]:
    """One sentence per number out of its range, and per word that stands for nothing; types are right."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    yield from _number_faults({name: value for name, value in values.items() if not why_refused(name)})
    yield from _word_faults(values)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _number_faults(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if not fits(value, float):
            continue
        least, most = LEAST.get(name, -LARGEST), MOST.get(name, LARGEST)
        if name in POSITIVE and not value > 0:
            yield f"{name} must be above 0, not {shown(value)}"
        elif name in LEAST and not value >= least:
            yield f"{name} must be at least {least}, not {shown(value)}"
        elif value > most or value < -LARGEST:
            yield f"{name} must be a number up to {most}, not {shown(value)}"
    if values["max_steps"] < 1 and values["max_steps"] != -1:
        yield f"max_steps must be at least 1, or -1 to count epochs, not {shown(values['max_steps'])}"
    for name in ("adam_beta1", "adam_beta2"):
        if values[name] >= 1:
            yield f"{name} must be below 1, not {shown(values[name])}"
    if values["dataloader_persistent_workers"] and not values["dataloader_num_workers"]:
        yield "dataloader_persistent_workers needs dataloader_num_workers above 0"
    if values["ddp_backend"] and os.environ.get("WORLD_SIZE", "1") == "1":
        yield "ddp_backend is of several processes, and this is one; see torchrun"


def _word_faults(values: dict[str, Any]) -> Iterator[str]:
    words = {
        "optim": OPTIMIZERS,
        "log_level": LOG_LEVELS,
        "log_level_replica": LOG_LEVELS,
        "dataloader_multiprocessing_context": (None, *multiprocessing.get_all_start_methods()),
        "ddp_backend": (None, "nccl", "gloo", "mpi"),
    }
    for name, allowed in words.items():
        if (value := getattr(values[name], "value", values[name])) not in allowed:
            known = ", ".join(word for word in allowed if word)
            yield f"training arguments do not fit: {name} must be one of {known}, not {shown(value)}"


__all__ = ["OPTIMIZERS", "REFUSED", "WORKS", "range_faults", "refused_faults", "type_faults", "why_refused"]
