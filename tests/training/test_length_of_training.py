"""How long training is, known before its first step; and one accelerator per process."""

import pytest
import torch

from duotune import attach
from duotune.errors import ConfigError
from duotune.training import PromptTrainer, PromptTrainingArguments


def trainer_of(backbone, data, folder, **changes):
    few = {"num_visual_tokens": 2, "guidance_epochs": 3, "visual_warmup_epochs": 0}
    model = attach(backbone, "dpt", data.class_names, data.template, few)
    settings = {"per_device_train_batch_size": 8, "dataloader_num_workers": 0, "disable_tqdm": True, "views": 1}
    settings |= {"save_strategy": "no", "logging_strategy": "steps", "logging_steps": 1, "augment": False}
    return PromptTrainer(model, PromptTrainingArguments(output_dir=str(folder), **{**settings, **changes}), data)


@pytest.mark.parametrize(
    ("changes", "steps", "epochs"),
    [
        ({"max_steps": 7}, 3, 3),
        ({"max_steps": 6}, 3, 2),
        ({"max_steps": 1}, 3, 1),
        ({"max_steps": 7, "gradient_accumulation_steps": 2}, 2, 4),
        ({"max_steps": 4, "per_device_train_batch_size": 7}, 4, 1),
        ({"max_steps": 4, "per_device_train_batch_size": 7, "dataloader_drop_last": True}, 3, 2),
        ({"max_steps": 3, "per_device_train_batch_size": 100}, 1, 3),
        ({"num_train_epochs": 2}, 3, 2),
    ],
)
def test_epochs_are_known_before_the_first_step_and_are_those_of_training(
    tiny_clip, picture_data, tmp_path, changes, steps, epochs
):
    """24 images. What is said of them, too: settings that take all epochs are told, others are not."""
    trainer = trainer_of(tiny_clip, picture_data, tmp_path, **changes)
    assert (trainer.steps_per_epoch, trainer.num_epochs, trainer.progress.num_epochs) == (steps, epochs, epochs)
    said = " ".join(trainer.remarks())
    assert (f"all {epochs} epochs are guided" in said) == (epochs <= 3)
    assert (f"all {epochs} epochs are warm-up" in said) == (epochs <= 1)
    if changes.get("max_steps") == 7:
        seen = []
        compute = trainer.compute_loss
        trainer.compute_loss = lambda *a, **k: seen.append(trainer.progress.epoch) or compute(*a, **k)
        trainer.train()
        each = trainer.args.gradient_accumulation_steps
        assert len(trainer.get_train_dataloader()) == 3 and trainer.state.global_step == 7
        assert seen == ([0, 0, 0, 1, 1, 1, 2] if each == 1 else [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3])


def test_a_batch_that_is_never_full_is_refused(tiny_clip, picture_data, tmp_path):
    with pytest.raises(ConfigError, match="dataloader_drop_last leaves nothing of 24 training images"):
        trainer_of(tiny_clip, picture_data, tmp_path, per_device_train_batch_size=25, dataloader_drop_last=True)


def test_several_gpus_of_one_process_are_not_copied_to(tiny_clip, picture_data, tmp_path, monkeypatch):
    """transformers would wrap the model in nn.DataParallel, whose copies have no parameters."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.nn.DataParallel, "__init__", lambda *_, **__: pytest.fail("the model was copied"))
    trainer = trainer_of(tiny_clip, picture_data, tmp_path, max_steps=2)
    assert trainer.args.n_gpu == 1 and trainer.args.train_batch_size == 8
    assert any("one of the 4 GPUs" in said and "--nproc_per_node 4" in said for said in trainer.remarks())
    trainer.train()
    assert trainer.state.global_step == 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert not any("GPUs" in said for said in trainer_of(tiny_clip, picture_data, tmp_path, max_steps=2).remarks())
