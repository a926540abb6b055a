"""torchrun with two processes (gloo, CPU): the same result as one process with the doubled batch."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

SCRIPT = """
import sys
from duotune import attach, load_backbone
from duotune.data import load_dataset
from duotune.training import PromptTrainer, PromptTrainingArguments

backbone, pictures, out, method, batch, epochs, resume = sys.argv[1:]
data = load_dataset(pictures)
settings = {"text_warmup_epochs": 0, "visual_warmup_epochs": 0, "guidance_epochs": 2, "num_visual_tokens": 2}
settings = settings if method == "dpt" else {"text_warmup_epochs": 0}
model = attach(load_backbone(backbone, device="cpu"), method, data.class_names, data.template, settings)
args = PromptTrainingArguments(
    output_dir=out, num_train_epochs=4, per_device_train_batch_size=int(batch), dataloader_num_workers=0, views=2,
    cache_dir=out + "/cache", disable_tqdm=True, use_cpu=True, save_strategy="epoch",
)
trainer = PromptTrainer(model, args, data)

from transformers import TrainerCallback
class Stop(TrainerCallback):
    def on_epoch_end(self, args, state, control, **_):
        control.should_training_stop = state.epoch >= int(epochs)
trainer.add_callback(Stop())
trainer.train(resume_from_checkpoint=resume == "resume")
if int(epochs) == 4:
    trainer.save_artifact(out + "/artifact", dtype="float32")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["coop", "dpt"])
def test_two_processes_equal_one_and_resume(tiny_clip_folder, picture_folder, tmp_path, method):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    inputs = [str(tiny_clip_folder), str(picture_folder)]

    def run(launcher, name, *options):
        command = [*launcher, str(script), *inputs, str(tmp_path / name), method, *options]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})

    run([sys.executable], "one", "8", "4", "fresh")
    run(torchrun, "two", "4", "4", "fresh")
    run(torchrun, "parts", "4", "2", "fresh")
    run(torchrun, "parts", "4", "4", "resume")
    one, two, parts = (load_file(tmp_path / n / "artifact" / "prompt.safetensors") for n in ("one", "two", "parts"))
    for name, expected in one.items():
        size = expected.abs().max().item()
        assert_close(two[name], expected, rtol=0, atol=1e-5 * size)
        assert torch.equal(parts[name], two[name])
