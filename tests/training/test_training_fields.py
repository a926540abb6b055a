"""Every training argument of transformers works, or is refused in one line before anything is done."""

from __future__ import annotations

import dataclasses
import typing

import pytest
from transformers import TrainingArguments

from duotune import attach
from duotune.errors import ConfigError
from duotune.methods import METHODS
from duotune.recipes import Recipe
from duotune.recipes.running import FIXED, training_arguments
from duotune.training import DetectionTrainingArguments, PromptTrainer, PromptTrainingArguments, fields
from duotune.training.fields import OPTIMIZERS, REFUSED, WORKS

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
HINTS = typing.get_type_hints(TrainingArguments)


def test_every_field_is_in_exactly_one_table():
    assert not WORKS & set(REFUSED)
    assert WORKS | set(REFUSED) == set(FIELDS), "look at what is new, and say whether it works"
    assert set(FIXED) <= set(FIELDS)


def other_value(name: str):
    """A value that the field's type takes and that is not its default."""
    hint = str(HINTS[name])
    if "bool" in hint:
        return not getattr(PromptTrainingArguments, name)
    for kind, value in (("int", 3), ("float", 0.25), ("dict", {"a": 1}), ("str", "x")):
        if kind in hint:
            return value
    return object()


@pytest.mark.parametrize("kind", [PromptTrainingArguments, DetectionTrainingArguments])
def test_refused_fields_are_told_by_name_all_at_once(kind, tmp_path):
    wrong = {name: other_value(name) for name in REFUSED}
    with pytest.raises(ConfigError) as caught:
        kind(output_dir=str(tmp_path), **wrong)
    assert sorted(fault.split()[0] for fault in caught.value.faults) == sorted(REFUSED)
    assert all(REFUSED[fault.split()[0]] in fault for fault in caught.value.faults)
    for name in REFUSED:  # each alone, as a recipe has it; there its default is no reason to name it either
        for value in (wrong[name], None):
            recipe = Recipe(method="coop", backbone="tiny", data="tiny-styles", training={name: value})
            with pytest.raises(ConfigError, match=f"training argument {name} ") as caught:
                training_arguments(recipe, tmp_path)
            assert "\n" not in str(caught.value)


def test_a_field_that_is_new_is_refused_until_it_was_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "WORKS", WORKS - {"run_name"})
    with pytest.raises(ConfigError, match="run_name is not known to this version"):
        PromptTrainingArguments(output_dir=str(tmp_path), run_name="x")
    PromptTrainingArguments(output_dir=str(tmp_path))


HUGE = 10**5000
BAD = [
    *(("num_train_epochs", v) for v in (0, -1, float("nan"), float("inf"), HUGE, "many")),
    *(("max_steps", v) for v in (0, -2, HUGE, 1.5, True)),
    *(("per_device_train_batch_size", v) for v in (0, -1, HUGE, None, "8")),
    *(("per_device_eval_batch_size", v) for v in (0, HUGE)),
    *(("gradient_accumulation_steps", v) for v in (0, HUGE)),
    *(("seed", v) for v in (-1, 2**32, HUGE, 1.5)),
    *(("data_seed", v) for v in (-1, 2**32)),
    *(("weight_decay", v) for v in (-1.0, float("nan"), float("inf"))),
    *(("max_grad_norm", v) for v in (-1.0, float("inf"))),
    *(("adam_beta1", v) for v in (-0.1, 1.0, float("nan"))),
    ("adam_beta2", 1.0),
    *(("adam_epsilon", v) for v in (0.0, float("nan"))),
    *((name, v) for name in ("logging_steps", "save_steps", "eval_steps") for v in (0, -1, float("nan"), HUGE, "x")),
    *(("save_total_limit", v) for v in (0, -1)),
    *((name, "often") for name in ("logging_strategy", "save_strategy", "eval_strategy")),
    *(("optim", v) for v in ("foo", "adamw_bnb_8bit", "lomo", "schedule_free_adamw", "adamw_apex_fused")),
    *(("report_to", v) for v in ("foo", "wandb", ["tensorboard", "comet_ml"])),
    *(("log_level", v) for v in ("loud", 3)),
    ("eval_delay", -1),
    ("eval_accumulation_steps", 0),
    ("dataloader_num_workers", -1),
    ("dataloader_num_workers", HUGE),
    ("dataloader_prefetch_factor", 0),
    ("dataloader_multiprocessing_context", "clone"),
    ("ddp_backend", "pigeons"),
    ("ddp_backend", "gloo"),
    ("cache_gb", float("inf")),
    ("views", HUGE),
    ("ddp_timeout", 0),
    ("torch_empty_cache_steps", 0),
    ("sgd_momentum", float("nan")),
    ("views", -1),
    ("bf16", "yes"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: str(value)[:20] if value is not HUGE else "huge")
def test_values_that_mean_nothing_are_one_short_line(name, value, tmp_path):
    with pytest.raises(ConfigError) as caught:
        PromptTrainingArguments(output_dir=str(tmp_path), **{name: value})
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    assert name in line or "do not fit" in line


def test_what_does_not_fit_together(tiny_clip, picture_data, tmp_path):
    for values, said in (
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 0}, "dataloader_num_workers above 0"),
        ({"dataloader_prefetch_factor": 2, "dataloader_num_workers": 0}, "do not fit"),
        ({"bf16": True, "fp16": True}, "do not fit"),
    ):
        with pytest.raises(ConfigError, match=said):
            PromptTrainingArguments(output_dir=str(tmp_path), **values)
    data = dataclasses.replace(picture_data, val=())
    model = attach(tiny_clip, "coop", data.class_names, data.template)
    for values, said in (
        ({"eval_strategy": "epoch"}, "eval_strategy='epoch' needs validation images"),
        ({"eval_on_start": True}, "eval_on_start needs validation images"),
    ):
        args = PromptTrainingArguments(output_dir=str(tmp_path), views=1, disable_tqdm=True, **values)
        with pytest.raises(ConfigError, match=said):
            PromptTrainer(model, args, data)


COMMON = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "views": 1, "disable_tqdm": True}
COMMON |= {"dataloader_num_workers": 0}
RUNS = [
    {"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "max_grad_norm": 1.0}
    | {"weight_decay": 0.1, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "seed": 3}
    | {"data_seed": 4, "gradient_checkpointing": True},
    {"optim": "adafactor", "gradient_accumulation_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    | {"logging_first_step": True, "logging_nan_inf_filter": True, "log_level": "error", "log_level_replica": "error"}
    | {"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 1, "eval_on_start": True, "eval_accumulation_steps": 1},
    {"optim": "adagrad", "max_steps": 3, "report_to": ["tensorboard"], "run_name": "x", "project": "x"}
    | {"log_on_each_node": False, "torch_empty_cache_steps": 1, "use_cpu": True, "dataloader_drop_last": True}
    | {"per_device_eval_batch_size": 3, "eval_strategy": "epoch", "bf16": True, "tf32": False},
    {"optim": "rmsprop", "num_train_epochs": 1, "views": 0, "dataloader_num_workers": 1}
    | {"dataloader_prefetch_factor": 1, "dataloader_persistent_workers": True}
    | {"dataloader_multiprocessing_context": "fork", "dataloader_pin_memory": False}
    | {"ddp_find_unused_parameters": False, "ddp_bucket_cap_mb": 5}
    | {"ddp_broadcast_buffers": False, "ddp_static_graph": False, "ddp_timeout": 60},
    {"optim": "adamw_torch_fused", "activation_checkpointing": True},
]
UNTRIED = {
    "fp16": "needs an accelerator",
    "full_determinism": "changes the whole process",
    "ddp_backend": "needs several processes",
}


def test_the_runs_below_set_every_field_that_works():
    tried = {name for run in RUNS for name in {**COMMON, **run}} | set(UNTRIED)
    assert WORKS - tried == {"output_dir"}
    assert {run["optim"] for run in RUNS} == set(OPTIMIZERS) - {"sgd"}


@pytest.mark.parametrize("number", range(len(RUNS)))
def test_fields_that_work(tiny_clip, picture_data, tmp_path, number):
    run = {**COMMON, "save_strategy": "epoch", **RUNS[number]}
    model = attach(tiny_clip, "coop", picture_data.class_names, picture_data.template)
    trainer = PromptTrainer(model, PromptTrainingArguments(output_dir=tmp_path, **run), picture_data)
    steps = trainer.train().global_step
    assert steps > 0 and list(tmp_path.glob("checkpoint-*"))
    resumed = PromptTrainer(
        attach(tiny_clip, "coop", picture_data.class_names, picture_data.template),
        PromptTrainingArguments(output_dir=tmp_path, **run),
        picture_data,
    )
    assert resumed.train(resume_from_checkpoint=True).global_step == steps


def test_rates_are_the_methods_own():
    """A guard of the table: what it says of the rate is so."""
    assert "text_lr" in {field.name for field in dataclasses.fields(METHODS.get("coop").Config)}
    assert "--set text_lr" in REFUSED["learning_rate"]
