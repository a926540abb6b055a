"""One device: training takes place where the backbone lies, whatever else the machine has."""

import pytest
import torch
from accelerate import PartialState

from duotune import attach, load_backbone
from duotune.errors import ConfigError
from duotune.training import PromptTrainer, PromptTrainingArguments

SETTINGS = {"max_steps": 2, "dataloader_num_workers": 0, "disable_tqdm": True, "save_strategy": "no", "views": 1}


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine that says it has two GPUs. Tensors cannot be moved to them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)


def test_a_backbone_on_the_cpu_is_trained_there_although_there_are_gpus(tiny_clip, picture_data, tmp_path, two_gpus):
    model = attach(tiny_clip, "coop", picture_data.class_names, text_warmup_epochs=0)
    before = [t.clone() for t in model.method.state_dict().values()]
    args = PromptTrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    assert args.device == torch.device("cuda:0")  # what transformers takes by itself
    trainer = PromptTrainer(model, args, picture_data)
    assert trainer.args.device == trainer.accelerator.device == PartialState().device == torch.device("cpu")
    trainer.train()
    assert trainer.state.global_step == 2
    assert any((a != b).any() for a, b in zip(before, model.method.state_dict().values()))
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert args.device == torch.device("cuda:0") and not args.use_cpu  # the caller's are his


def test_the_second_gpu_is_as_good_as_the_first(two_gpus, tmp_path):
    args = PromptTrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    for name in ("cuda:1", "cuda:0", "cpu", "cuda:1"):
        args.train_on(torch.device(name))
        assert args.device == PartialState().device == torch.device(name) and args.n_gpu <= 1
        assert args.use_cpu == (name == "cpu")


def test_each_of_several_processes_has_its_own(two_gpus, tmp_path, monkeypatch):
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr("duotune.backbones.clip.ClipBackbone.load", lambda *a: seen.append(a[3]))
    load_backbone("tiny")
    monkeypatch.setenv("LOCAL_RANK", "2")  # more processes than GPUs: they share them, as accelerate has it
    load_backbone("tiny")
    load_backbone("tiny", device="cpu")
    monkeypatch.delenv("RANK")
    load_backbone("tiny")
    assert seen == ["cuda:1", "cuda:0", "cpu", "cuda"]


def test_a_backbone_on_another_device_than_its_process_is_refused(two_gpus, tmp_path, monkeypatch):
    args = PromptTrainingArguments(output_dir=str(tmp_path), **SETTINGS)
    monkeypatch.setattr(PromptTrainingArguments, "world_size", 2)
    with pytest.raises(ConfigError, match="process 0 trains on cuda:0, but its backbone lies on cpu; load it with dev"):
        args.train_on(torch.device("cpu"))


@pytest.mark.parametrize(("kind", "cpu"), [(None, True), ("mps", True), ("cuda", False)])
def test_processes_without_an_accelerator_talk_all_the_same(monkeypatch, kind, cpu):
    from duotune.processes import must_use_cpu

    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    assert not must_use_cpu()
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert must_use_cpu() == cpu
