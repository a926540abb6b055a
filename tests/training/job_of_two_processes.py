"""What `test_two_processes.py` starts with torchrun, and calls itself for one process: jobs, and what they leave in a
folder, `NAME.pt` of the first process, `NAME-RANK.json` of each."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from duotune import DetectionTrainingArguments, PromptTrainer, attach, load_backbone, load_detection
from duotune.cli import main
from duotune.data import load_dataset
from duotune.data.base import ImageItem
from duotune.detection_evaluation import evaluate_detector
from duotune.errors import DataError, DuotuneError
from duotune.evaluation import evaluate
from duotune.processes import known_to_all, of_this_run, start
from duotune.training import PromptTrainingArguments, detection_features, features

SETTINGS = {
    "coop": {"text_warmup_epochs": 0},
    "dpt": {"text_warmup_epochs": 0, "visual_warmup_epochs": 0, "guidance_epochs": 2, "num_visual_tokens": 2},
}
SETTINGS["few"] = {**SETTINGS["dpt"], "num_candidates": 2}  # of 4 classes: L_ca has some images, not all


class Stop(TrainerCallback):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_epoch_end(self, args, state, control, **_):
        control.should_training_stop = state.epoch >= self.epoch


def classifier(inputs: dict, out: Path, name: str, cache: str, epochs: int = 4, resume: bool = False, **changes):
    data, world = load_dataset(inputs["pictures"]), of_this_run()
    method = "dpt" if name == "few" else name
    model = attach(load_backbone(inputs["clip"], device="cpu"), method, data.class_names, data.template, SETTINGS[name])
    settings = {"num_train_epochs": 4, "per_device_train_batch_size": 8 // world.count, "dataloader_num_workers": 0}
    settings |= {
        "per_device_eval_batch_size": 4,
        "views": 2,
        "cache_dir": cache,
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "epoch",
    }
    args = PromptTrainingArguments(output_dir=str(out), **{**settings, **changes})
    trainer = PromptTrainer(model, args, data, callbacks=[Stop(epochs)])
    return trainer, functools.partial(trainer.train, resume_from_checkpoint=resume)


def detector(inputs: dict, out: Path, cache: str | None, views: int):
    data, world = load_detection(inputs["things"]), of_this_run()
    model = attach(load_backbone(inputs["glip"], device="cpu"), "sdpt", data.class_names, lr=1.0)
    args = DetectionTrainingArguments(
        output_dir=str(out), num_train_epochs=2, per_device_train_batch_size=4 // world.count, optim="sgd",
        views=views, short_sides=[48], dataloader_num_workers=0, disable_tqdm=True, use_cpu=True, cache_dir=cache,
        save_strategy="no", score_threshold=0.01,
    )  # fmt: skip
    return PromptTrainer(model, args, data)


@contextlib.contextmanager
def counted(module, name: str):
    """How often a function of a module is called."""
    calls, original = [], getattr(module, name)
    setattr(module, name, lambda *a, **k: calls.append(1) or original(*a, **k))
    yield calls
    setattr(module, name, original)


@contextlib.contextmanager
def no_step():
    """No collective of the run's own group, which has a time limit: data are made between steps."""
    saved = {name: getattr(torch.distributed, name) for name in ("barrier", "all_reduce", "all_gather_object")}

    def refuse(name, *args, group=None, **kwargs):
        assert group is not None, f"{name} within the time limit of a step"
        return saved[name](*args, group=group, **kwargs)

    for name in saved:
        setattr(torch.distributed, name, functools.partial(refuse, name))
    yield
    for name, function in saved.items():
        setattr(torch.distributed, name, function)


def library(inputs: dict, out: Path) -> dict:
    """Weights of every way to train, and numbers of every way to measure, by name."""
    world = of_this_run()
    left: dict = {"rank": world.rank}
    own = f"cache-{world.rank}"  # a folder that the other process does not see
    for name in ("coop", "dpt", "few"):
        with no_step(), counted(features, "open_image") as decoded:
            trainer, train = classifier(inputs, out / name, name, str(out / "shared"))
        left[f"decoded {name}"] = len(decoded)
        left[f"start {name}"] = {k: v.clone() for k, v in trainer.model.method.state_dict().items()}
        left[f"hits {name}"] = hits = []
        if name == "few":
            loss = trainer.model.method.auxiliary_loss

            def spy(attended, candidates, labels, hits=hits, loss=loss):
                hits.append(int((candidates == labels[:, None]).sum()))
                return loss(attended, candidates, labels)

            trainer.model.method.auxiliary_loss = spy
        train()
        left[name] = trainer.model.method.state_dict()
        trainer.save_artifact(out / f"{name}-artifact", dtype="float32")
        for resume in (False, True):
            trainer, train = classifier(
                inputs, out / f"{name}-parts", name, str(out / "shared"), 4 if resume else 2, resume
            )
            train()
        left[f"{name} in parts"] = trainer.model.method.state_dict()
    trainer, train = classifier(inputs, out / "apart", "coop", str(out / own))
    train()
    left["coop with caches of its own"] = trainer.model.method.state_dict()

    data = load_dataset(inputs["pictures"])
    items = (*data.test, ImageItem(Path(inputs["pictures"]) / "absent.png", 0))
    for name in ("coop", "few"):
        with counted(features, "open_image") as decoded:
            found = evaluate(
                trainer.model if name == "coop" else attach(trainer.model.backbone, "dpt", data.class_names),
                items, batch_size=3, workers=0, progress=False, max_broken_share=0.5, processes=world,
            )  # fmt: skip
        left[f"measured {name}"] = {
            "accuracy": found.accuracy, "predictions": found.predictions, "confidences": found.confidences,
            "items": [item.key for item in found.items], "broken": list(found.broken),
        }  # fmt: skip
        left[f"decoded to measure {name}"] = len(decoded)

    for name, cache, views in (("fresh", None, 0), ("held", None, 2), ("kept", "maps", 2), ("kept apart", own, 2)):
        before = dict(os.environ)
        if name == "kept apart" and world.count > 1:  # as if each were on a machine of its own
            os.environ.update({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
        with no_step(), counted(detection_features, "picture_maps") as encoded:
            trainer = detector(inputs, out / f"sdpt-{name}", str(out / cache) if cache else None, views)
        os.environ.update(before)
        left[f"encoded {name}"] = len(encoded)
        left[f"start {name}"] = {k: v.clone() for k, v in trainer.model.method.state_dict().items()}
        trainer.train()
        left[f"sdpt {name}"] = trainer.model.method.state_dict()
    with no_step():
        found = evaluate_detector(
            trainer.model, load_detection(inputs["things"]), workers=0, progress=False, out=out / "boxes",
            processes=world, score_threshold=0.01,
        )  # fmt: skip
    left["boxes"] = {
        "metrics": found.metrics.to_dict(), "items": [item.key for item in found.items],
        "scores": [p.scores.tolist() for p in found.predictions],
    }  # fmt: skip
    return left


def faults() -> dict:
    """How each of two processes ends, by what went wrong in which."""
    world, left = of_this_run(), {}

    class Odd(Exception):  # cannot be sent
        pass

    def fail(who, error, others=lambda: None):
        with world.together():
            if world.rank in who:
                raise error
            others()

    cases = {
        "of the second": ((1,), DataError("bad picture")),
        "of both": ((0, 1), DataError(f"of {world.rank}")),
        "while the first gathers": ((1,), DataError("meanwhile"), lambda: world.gather(1)),
        "that cannot be sent": ((1,), Odd("odd")),
    }
    for name, case in cases.items():
        try:
            fail(*case)
        except Exception as error:
            left[name] = [type(error).__name__, str(error), known_to_all(error), error.of_process]
    left["afterwards"] = world.gather(world.rank)
    return left


def commands(inputs: dict, out: Path) -> dict:
    """Status and output of `duotune train` in each process, by case."""
    rank, left = of_this_run().rank, {}
    common = ["--backbone", inputs["clip"], "--method", "coop", "--epochs", "2", "--batch-size", "4", "--shots", "0"]
    common += ["--training", "dataloader_num_workers=0"]
    bad = Path(inputs["pictures"]) / "train" / "absent"
    (out / "file").touch()
    cases = {
        "data that one does not see": ["--data", str(bad) if rank else inputs["pictures"], "--out", out / "a"],
        "data that none sees": ["--data", str(bad), "--out", out / "b"],
        "no folder": ["--data", inputs["pictures"], "--out", out / "file" / "c"],
        "a wrong setting": ["--data", inputs["pictures"], "--out", out / "d", "--training", "no_such=1"],
        "no such option": ["--dat", inputs["pictures"], "--out", out / "e"],
        "in use": ["--data", inputs["pictures"], "--out", out / "f"],
        "diverging": ["--data", inputs["pictures"], "--out", out / "g", "--set", "text_lr=1e38", "--set",
                      "text_warmup_epochs=1"],
    }  # fmt: skip
    for name, words in cases.items():
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.ExitStack() as held:
            if name == "in use" and rank == 0:
                from filelock import FileLock

                (out / "f").mkdir()
                held.enter_context(FileLock(out / "f" / ".lock"))
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                status = main(["train", *common, *map(str, words)])
        left[name] = [status, stdout.getvalue(), stderr.getvalue()]
    return left


def run(inputs: dict, out: Path) -> dict:
    out.mkdir(parents=True, exist_ok=True)
    return {"library": library(inputs, out)}


if __name__ == "__main__":
    given, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    world = start({})
    try:
        found = {**run(given, folder), "faults": faults(), "commands": commands(given, folder)}
    except DuotuneError as error:
        found = {"error": repr(error)}
        raise
    finally:
        torch.save(found, folder / f"{world.rank}.pt")
