"""Kill trainings at random moments, resume them, and compare with undisturbed ones, bit for bit.

    python scripts/kill/run.py --count 50 --seed 1

Each kill starts `python -m duotune train` anew (CoOp and DPT on the embedded CLIP, SDPT on the embedded GLIP, drawn
pictures) and sends SIGKILL, SIGTERM or SIGINT (also twice): a third of them between its start and its end, most of which
is imports, the others while it trains, tests and writes. Checked of each:

    status    by SIGKILL; 143 after SIGTERM, 130 after SIGINT; 0 if it was through
    words     one line that says how to go on; none after SIGKILL or a success
    files     an artifact is whole or not there; nothing half-written after SIGTERM and SIGINT
    result    what the line says (`--resume`, or the command again) ends with status 0 and the artifact and test result of
              the undisturbed run; no half-written file is left then

A signal that finds the interpreter before the package's first line cannot be told; such kills are counted apart.
Prints one line per kill and a table of counts; the exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

from duotune.artifacts import describe  # noqa: E402
from duotune.cli import main as duotune  # noqa: E402
from duotune.errors import DuotuneError  # noqa: E402

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 210)}
SHORT = ["--training", "dataloader_num_workers=0"]
COMMANDS = {
    "coop": ["--method", "coop", "--backbone", "tiny", "--shots", "4", "--epochs", "6", "--batch-size", "4", *SHORT],
    "dpt": ["--method", "dpt", "--backbone", "tiny", "--shots", "4", "--epochs", "4", "--batch-size", "4", *SHORT]
    + ["--set", "num_candidates=2"],
    "sdpt": ["--method", "sdpt", "--backbone", "tiny-glip", "--epochs", "3", *SHORT],
}
SIGNALS = {"SIGKILL": -9, "SIGTERM": 143, "SIGINT": 130}
SAID = "duotune: error: interrupted; "


def draw_classes(root: Path) -> Path:
    """train/ and test/ with a folder of 4 noisy pictures for each colour."""
    draws = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = draws.normal(colour, 30, (48, 48, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def draw_boxes(root: Path) -> Path:
    """train/ and valid/ in COCO's layout: 4 pictures with a square of each colour."""
    draws = np.random.default_rng(1)
    categories = [{"id": number, "name": f"{name} square"} for number, name in enumerate(COLOURS, 1)]
    for split in ("train", "valid"):
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for image in range(1, 5):
            pixels = draws.normal(230, 10, (96, 96, 3))
            for label, colour in enumerate(COLOURS.values(), 1):
                x, y = (int(v) for v in draws.integers(0, 60, 2))
                pixels[y : y + 24, x : x + 24] = colour
                box = {"image_id": image, "category_id": label, "bbox": [x, y, 24, 24], "area": 576, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **box})
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / f"{image}.png")
            images.append({"id": image, "file_name": f"{image}.png", "width": 96, "height": 96})
        table = {"images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(table))
    return root


def start(argv: list[str], work: Path) -> tuple[subprocess.Popen, Path]:
    """A fresh `python -m duotune`, with a group of its own, and the file of what it says on standard error."""
    said = work / "stderr.txt"
    command = [sys.executable, "-m", "duotune", *argv]
    with said.open("w") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True, preexec_fn=default_signals
        )
    return process, said


def default_signals() -> None:
    """A shell's background job has Ctrl-C ignored, and so have its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def go_on(argv: list[str], work: Path) -> tuple[int, str]:
    """The command in a forked child, which has imported everything; its status and what it says."""
    said = work / "stderr.txt"
    child = os.fork()
    if not child:
        status = 99
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            status = duotune(argv)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.read_text()


def result(folder: Path) -> dict[str, object]:
    """What must be the same: the artifact's bytes, and what was measured."""
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = [row for table in metrics.values() for row in table.values()]
    files = {name: (folder / name).read_bytes() for name in ("prompt.json", "prompt.safetensors")}
    return {**files, "metrics": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}


def half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".part" in path.name or path.name == ".lock"]


class Failed(Exception):
    """A kill whose outcome is not as promised."""


@dataclass
class Kill:
    """What is drawn for one of them."""

    method: str
    signal: str
    twice: bool
    training: bool  # the clock starts when training begins, and not with the process
    delay: float  # seconds

    def __str__(self) -> str:
        since = " of training" if self.training else ""
        return f"{self.method:4} {self.signal}{' twice' if self.twice else ''} after {self.delay:.2f} s{since}"


def wait_for_training(process: subprocess.Popen, out: Path) -> None:
    while process.poll() is None and not (out / "recipe.yaml").exists():
        time.sleep(0.005)


def kill_once(kill: Kill, argv: list[str], out: Path, work: Path, expected: dict) -> str:
    """Start, kill, go on, compare. Returns what became of the killed one. Raises Failed."""
    name, twice, delay = kill.signal, kill.twice, kill.delay
    process, said = start([*argv, "--out", str(out)], work)
    if kill.training:
        wait_for_training(process, out)
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < delay:
        time.sleep(0.005)
    process.send_signal(getattr(signal, name))
    if twice:
        time.sleep(0.05)
        process.send_signal(getattr(signal, name))
    status, err = process.wait(timeout=300), said.read_text()

    what = "killed"
    if status == 0:
        what = "through"
        if err:
            raise Failed(f"status 0 and {err!r}")
    elif name == "SIGKILL":
        if status != -9 or err:
            raise Failed(f"status {status} and {err!r}")
    elif not out.exists() and not kill.training and delay < 1.5 and SAID not in err:
        what = "too early"
    elif status != SIGNALS[name] or not err.startswith(SAID) or len(err.splitlines()) != 1:
        raise Failed(f"status {status} and {err!r}")
    if what == "killed" and name != "SIGKILL" and (left := half_written(out)):
        raise Failed(f"left {left}")
    if (out / "prompt.json").exists():
        try:
            describe(out)
        except DuotuneError as error:
            if name != "SIGKILL":
                raise Failed(str(error)) from error
    if what != "through":
        resume = "--resume" in err if what == "killed" and name != "SIGKILL" else (out / "recipe.yaml").exists()
        again = ["train", "--resume", "--out", str(out)] if resume else [*argv, "--out", str(out)]
        status, err = go_on(again, work)
        if status != 0 or err:
            raise Failed(f"going on with {' '.join(again)} ended with status {status}: {err!r}")
        what += ", resumed" if resume else ", begun anew"
    if left := half_written(out):
        raise Failed(f"left {left} at the end")
    if other := [key for key, value in result(out).items() if value != expected[key]]:
        raise Failed(f"another {', '.join(other)} than undisturbed")
    return what


def run(count: int, seed: int, work: Path) -> int:
    """The whole campaign. Returns the number of failures."""
    classes, boxes = draw_classes(work / "classes"), draw_boxes(work / "boxes")
    commands = {
        name: ["train", "--data", str(boxes if name == "sdpt" else classes), *argv] for name, argv in COMMANDS.items()
    }
    expected, seconds, training = {}, {}, {}
    for name, argv in commands.items():
        begun = time.monotonic()
        process, said = start([*argv, "--out", str(work / name)], work)
        wait_for_training(process, work / name)
        trains = time.monotonic()
        if process.wait() != 0:
            raise SystemExit(f"{name} fails undisturbed: {said.read_text()}")
        seconds[name], training[name] = time.monotonic() - begun, time.monotonic() - trains
        expected[name] = result(work / name)
        if go_on([*argv, "--out", str(work / "again")], work)[0] or result(work / "again") != expected[name]:
            raise SystemExit(f"{name} differs between two undisturbed runs")
        shutil.rmtree(work / "again")
        print(
            f"{name}: {seconds[name]:.1f} s undisturbed, {training[name]:.1f} s from training on, twice the same",
            flush=True,
        )

    draws, counts = random.Random(seed), Counter()
    for number in range(1, count + 1):
        method, name = draws.choice(list(commands)), draws.choice(list(SIGNALS))
        twice, trains = name != "SIGKILL" and draws.random() < 0.3, draws.random() < 2 / 3
        delay = draws.uniform(0, 1.05 * (training if trains else seconds)[method])
        kill = Kill(method, name, twice, trains, delay)
        out = work / "killed" / str(number)
        try:
            what = kill_once(kill, commands[method], out, work, expected[method])
        except Failed as failure:
            what = "FAILED"
            print(failure, flush=True)
        counts[name, what] += 1
        print(f"{number:3} {kill}: {what}", flush=True)
        if what != "FAILED":
            shutil.rmtree(out)

    print(f"\n{count} kills, seed {seed}")
    for (name, what), number in sorted(counts.items()):
        print(f"{name:8} {what:22} {number:4}")
    failures = sum(number for (_, what), number in counts.items() if what == "FAILED")
    print(f"{failures} failures")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="kills (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="of methods, signals and moments (default: 1)")
    parser.add_argument("--keep", metavar="FOLDER", help="work there, and keep what failed")
    options = parser.parse_args()
    if options.keep:
        Path(options.keep).mkdir(parents=True)
        return int(run(options.count, options.seed, Path(options.keep)) > 0)
    with tempfile.TemporaryDirectory() as work:
        return int(run(options.count, options.seed, Path(work)) > 0)


if __name__ == "__main__":
    sys.exit(main())
