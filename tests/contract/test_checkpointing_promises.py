"""One switch on every backbone: layers are worked out again in the backward pass, and gradients are the same."""

from __future__ import annotations

import pytest
import torch
from subjects import CASES, NAMES, inputs, labels

from closeness import close
from duotune import PromptTrainer, PromptTrainingArguments, attach
from duotune.backbones.base import Backbone
from duotune.errors import ConfigError

LEARNING = [case for case in CASES if case.method not in ("zero_shot", "linear_probe", "task_residual")]
"""The others have no gradient in the backbone."""


class Kept:
    """Bytes of what autograd keeps for the backward pass."""

    def __enter__(self):
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept)
        self.hooks.__enter__()
        return self

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor

    def __exit__(self, *args):
        self.hooks.__exit__(*args)


@pytest.mark.parametrize("case", LEARNING, ids=str)
def test_gradients_are_the_same_and_less_is_kept(backbones, case):
    backbone, found = backbones[case.folder], []
    model = attach(backbone, case.method, NAMES).eval()  # without the dropout of full fine-tuning
    try:
        for backbone.gradient_checkpointing in (False, True):
            model.zero_grad()
            with Kept() as kept:
                loss = model(**inputs(backbone), labels=labels(backbone))["loss"]
            loss.backward()
            grads = {name: p.grad.clone() for name, p in model.method.named_parameters() if p.grad is not None}
            found.append((kept.bytes, loss.detach(), grads))
    finally:
        backbone.gradient_checkpointing = False
    (all_kept, loss, grads), (less, same_loss, same_grads) = found
    assert close(loss, same_loss) and grads.keys() == same_grads.keys() and grads
    # what is below 1e-5 of the largest gradient is rounding of sums that cancel
    largest = max(g.abs().max() for g in grads.values())
    assert all((grads[name] - same_grads[name]).abs().max() <= 1e-5 * largest for name in grads)
    assert less < 0.9 * all_kept


def test_it_is_an_argument_of_training(tiny_clip, picture_data, tmp_path, monkeypatch):
    states, seen = [], []
    original = type(tiny_clip).checkpointed
    monkeypatch.setattr(
        type(tiny_clip), "checkpointed", lambda self, *a: seen.append(self.gradient_checkpointing) or original(self, *a)
    )
    for wanted in (False, True):
        model = attach(tiny_clip, "vpt", picture_data.class_names)
        arguments = PromptTrainingArguments(
            str(tmp_path / str(wanted)),
            num_train_epochs=1,
            augment=False,
            disable_tqdm=True,
            gradient_checkpointing=wanted,
            dataloader_num_workers=0,
            save_strategy="no",
        )
        seen.clear()
        PromptTrainer(model, arguments, picture_data).train()
        assert set(seen) == {wanted} and not tiny_clip.gradient_checkpointing  # as it was
        states.append(model.method.visual.prompts.tokens.detach())
    assert close(*states)


def test_glips_own_switch_is_the_same_one(backbones):
    backbone = backbones["glip"]
    backbone.model.gradient_checkpointing_enable()
    assert backbone.gradient_checkpointing
    backbone.gradient_checkpointing = False
    assert not backbone.model.model.tower.gradient_checkpointing


def test_a_backbone_without_such_layers_says_so(tiny_clip, picture_data, tmp_path, monkeypatch):
    class Mute(Backbone):
        ports = frozenset()

    mute = Mute("mute", torch.nn.Linear(1, 1))
    mute.gradient_checkpointing = False
    with pytest.raises(ConfigError, match="^nothing of mute can be worked out again.*leave out gradient_check"):
        mute.gradient_checkpointing = True
    monkeypatch.setattr(type(tiny_clip), "can_checkpoint", False)
    model = attach(tiny_clip, "coop", picture_data.class_names)
    with pytest.raises(ConfigError, match="leave out gradient_checkpointing"):
        PromptTrainer(model, PromptTrainingArguments(str(tmp_path), gradient_checkpointing=True), picture_data)
