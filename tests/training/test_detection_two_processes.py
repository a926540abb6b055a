"""torchrun with two processes (gloo, CPU): a detector learns, is measured and chosen as in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[1] / "detection"))
from coco_folder import write_folder  # noqa: E402
from tiny_glip import save_tiny_glip  # noqa: E402

SCRIPT = """
import json, sys
from safetensors.torch import save_file
from duotune import DetectionTrainingArguments, PromptTrainer, attach, load_backbone, load_detection
from duotune.training import detection

glip, folder, out, batch = sys.argv[1:]
data = load_detection(folder)
model = attach(load_backbone(glip, device="cpu"), "sdpt", data.class_names, lr=1.0)
start = model.method.prototypes.tokens.detach().clone()
args = DetectionTrainingArguments(
    output_dir=out, num_train_epochs=2, per_device_train_batch_size=int(batch), per_device_eval_batch_size=2, views=0,
    optim="sgd", short_sides=[128], score_threshold=0.01, dataloader_num_workers=0, disable_tqdm=True, use_cpu=True,
    metric_for_best="ap" if out.endswith("best") else None, save_strategy="epoch",
)
trainer = PromptTrainer(model, args, data=data)
counted = []
measure = detection.DetectionMetrics.measure

def spy(items, found, *rest):
    counted.append((len(items), sum(len(p.scores) for p in found)))
    return measure(items, found, *rest)

detection.DetectionMetrics.measure = spy
seen, find = [], detection.find_boxes

def spy_find(model, batch, **limits):
    seen.append(len(batch["image_sizes"]))
    return find(model, batch, **limits)

detection.find_boxes = spy_find
before = trainer.evaluate()
pictures = sum(seen)
trainer.train()
trainer.save_artifact(out + "/artifact")
with open(f"{out}/numbers-{args.process_index}.json", "w") as file:
    save_file({"tokens": start}, f"{out}/start.safetensors")
    json.dump({"before": before, "counted": counted, "pictures": pictures, "after": trainer.evaluate()}, file)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "best"])
def test_two_processes_measure_and_learn_as_one(tmp_path, kind):
    """Five validation pictures in batches of two: three batches, shared unevenly."""
    folder = write_folder(tmp_path / "things", splits={"train": 4, "val": 5}, sizes=((64, 64),))
    glip = save_tiny_glip(tmp_path / "glip")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def run(launcher, name, batch):
        out = tmp_path / f"{name}-{kind}"
        command = [*launcher, str(script), str(glip), str(folder), str(out), batch]
        subprocess.run(command, check=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return out

    one, two = run([sys.executable], "one", "2"), run(torchrun, "two", "1")
    alone = json.loads((one / "numbers-0.json").read_text())
    shared = [json.loads((two / f"numbers-{rank}.json").read_text()) for rank in (0, 1)]
    assert alone["pictures"] == 5 and [row["pictures"] for row in shared] == [3, 2]
    assert alone["before"]["eval_ap"] >= 0 and alone["counted"][0][1] > 0
    for row in shared:
        assert row["before"] == pytest.approx(alone["before"], rel=1e-6)
        assert row["counted"][0] == alone["counted"][0] == [5, alone["counted"][0][1]]
        assert row["after"] == shared[0]["after"]
    assert ("eval_loss" in alone["before"]) == (kind == "plain")
    learnt, expected = (load_file(f / "artifact" / "prompt.safetensors")["prototypes.tokens"] for f in (two, one))
    moved = (expected - load_file(one / "start.safetensors")["tokens"]).abs().max().item()
    assert moved > 1e-3
    assert_close(learnt, expected, rtol=0, atol=0.02 * moved)
