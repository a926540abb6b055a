"""In what precision frozen weights are loaded, what is learnt is kept, and an accelerator is fed."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import transformers.training_args

from duotune import attach
from duotune.errors import ConfigError
from duotune.methods import METHODS
from duotune.recipes import Recipe, running
from duotune.training import PromptTrainingArguments


def recipe(folder, method="coop", data="tiny-squares", **values) -> Recipe:
    return Recipe(method=method, backbone=str(folder), data=data, **values)


def test_bf16_loads_bf16_weights_on_an_accelerator_alone(tiny_clip_folder):
    wanted = recipe(tiny_clip_folder, bf16=True)
    assert running.frozen_dtype(wanted, "cuda") == running.frozen_dtype(wanted, "cuda:1") == "bfloat16"
    assert running.frozen_dtype(wanted, "cpu") is None
    assert running.frozen_dtype(recipe(tiny_clip_folder), "cuda") is None


@pytest.mark.parametrize("method, dtype", [("sdpt", "bfloat16"), ("full", None), ("linear_probe", None)])
def test_a_copy_to_train_has_the_weights_as_stored(method, dtype):
    assert running.frozen_dtype(recipe("tiny-glip", method, "tiny-scenes", bf16=True), "cuda") == dtype


@pytest.mark.parametrize("use_cpu, loaded", [(False, ("bfloat16", "cuda:1")), (True, (None, "cpu"))])
def test_a_run_loads_its_backbone_so(tiny_clip_folder, picture_data, monkeypatch, use_cpu, loaded):
    class Loaded(Exception):
        pass

    def load(*arguments):
        raise Loaded(*arguments)

    monkeypatch.setattr(running, "load_backbone", load)
    arguments = SimpleNamespace(use_cpu=use_cpu)
    with pytest.raises(Loaded) as stopped:
        running._prepared(recipe(tiny_clip_folder, bf16=True), arguments, None, picture_data, "cuda:1", print)
    assert stopped.value.args == (str(tiny_clip_folder), *loaded)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_learnt_on_bf16_weights_is_float32(tiny_clip, method):
    half = copy.deepcopy(tiny_clip).to(torch.bfloat16)
    model = attach(half, method, ["cat", "dog", "red square"]).train()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.method.parameters()} <= {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2]))["loss"]
    assert loss.dtype == torch.float32
    if loss.requires_grad:
        loss.backward()
        assert {p.grad.dtype for p in model.method.parameters() if p.grad is not None} == {torch.float32}


def test_tf32_is_switched_on_where_there_is_some(tiny_clip_folder, monkeypatch, tmp_path):
    wanted, switched = recipe(tiny_clip_folder, tf32=True), []
    monkeypatch.setattr(transformers.training_args, "enable_tf32", switched.append)
    monkeypatch.setattr(transformers.training_args, "is_torch_tf32_available", lambda: True)
    assert running.training_arguments(wanted, tmp_path).tf32 and switched == [True]
    monkeypatch.setattr(transformers.training_args, "is_torch_tf32_available", lambda: False)
    with pytest.raises(ConfigError, match="tf32 requires Ampere") as refused:
        running.training_arguments(wanted, tmp_path)
    assert "\n" not in str(refused.value) and switched == [True]
    assert running.training_arguments(recipe(tiny_clip_folder), tmp_path).tf32 is None


@pytest.mark.parametrize(
    "device, given, pinned", [("cuda", None, True), ("cpu", None, False), ("mps", None, False), ("cuda", False, False)]
)
def test_batches_are_pinned_for_a_gpu_and_nobody_waits_for_them(monkeypatch, tmp_path, device, given, pinned):
    monkeypatch.setattr(PromptTrainingArguments, "device", property(lambda self: torch.device(device)))
    chosen = {} if given is None else {"dataloader_pin_memory": given}
    args = PromptTrainingArguments(output_dir=str(tmp_path), **chosen)
    assert args.dataloader_pin_memory is pinned and bool(args.accelerator_config.non_blocking) is pinned


def test_a_backbone_on_another_device_decides(tmp_path):
    args = PromptTrainingArguments(output_dir=str(tmp_path))
    args.train_on(torch.device("meta"))
    assert args.dataloader_pin_memory is False
