"""Signals: one line that says how to go on, the shell's status, nothing half-written; never a traceback, never silence.

Commands run in forked children that have imported everything: a signal is sent by the command's own code at a chosen
place, so no machine is too slow for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass

import pytest

from duotune import endings, writing
from duotune.artifacts import load
from duotune.cli import main
from duotune.recipes import running
from duotune.training import PromptTrainer, checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
ARTIFACT = {"prompt.json", "prompt.safetensors"}


@dataclass
class Ended:
    status: int  # negative: by a signal
    err: str


@pytest.fixture
def forked(tmp_path):
    """forked(do) -> how a child that did it ended."""

    def run(do) -> Ended:
        path = tmp_path / "stderr.txt"
        child = os.fork()
        if not child:
            status = 99
            try:
                for number in endings.SIGNALS:  # pytest's own, and those of whoever started it in the background
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(target, 2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
                status = do()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return Ended(status, path.read_text())

    return run


def sends(name: str, function, when=lambda *_: True, times: int = 1):
    """The function, with a signal sent to its own process after it."""

    def wrapped(self, *args, **kwargs):
        result = function(self, *args, **kwargs)
        if when(self):
            for _ in range(times):
                os.kill(os.getpid(), getattr(signal, name))
        return result

    return wrapped


@pytest.fixture(scope="module")
def command(few_steps, tmp_path_factory):
    """`train` of a short run, and what it ends with if nothing disturbs it."""
    argv = ["train", "--method", "coop", *few_steps, "--epochs", "4"]
    folder = tmp_path_factory.mktemp("endings") / "whole"
    assert main([*argv, "--out", str(folder)]) == 0
    return argv, (folder / "prompt.safetensors").read_bytes()


@pytest.mark.parametrize("name", STATUS)
def test_in_training_it_says_how_to_go_on_and_that_is_so(name, command, forked, tmp_path, monkeypatch, left_behind):
    argv, whole = command
    out = tmp_path / "a run"
    third = lambda trainer: trainer.state.epoch >= 3
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "_save_checkpoint", sends(name, PromptTrainer._save_checkpoint, third))
        ended = forked(lambda: main([*argv, "--out", str(out)]))
    assert ended.err == f"duotune: error: interrupted; `duotune train --resume --out '{out}'` goes on\n"
    assert ended.status == STATUS[name]
    left = left_behind(out)
    assert not [p for p in left if p in ARTIFACT or ".part" in p or ".lock" in p], left
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "prompt.safetensors").read_bytes() == whole


def test_before_the_first_checkpoint_nothing_is_left(command, forked, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "load_data", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(60))
    ended = forked(lambda: main([*command[0], "--out", str(tmp_path / "run")]))
    assert (ended.status, ended.err) == (
        143,
        "duotune: error: interrupted; there is no checkpoint yet, run the command again\n",
    )
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_to_be_replaced_is_untouched(command, forked, tmp_path, monkeypatch, left_behind):
    out = tmp_path / "run"
    assert main([*command[0], "--out", str(out)]) == 0
    before = {name: (out / name).read_bytes() for name in left_behind(out)}
    monkeypatch.setattr(running, "load_data", lambda *_: os.kill(os.getpid(), signal.SIGINT) or time.sleep(60))
    ended = forked(lambda: main([*command[0], "--overwrite", "--out", str(out)]))
    assert "is untouched, run the command again" in ended.err and ended.status == 130
    assert {name: (out / name).read_bytes() for name in left_behind(out)} == before


def test_between_the_two_files_of_an_artifact(command, forked, tmp_path, monkeypatch):
    """The first is in its place: it goes again, or both are there."""
    out, replace = tmp_path / "run", os.replace

    def replace_and_interrupt(source, target):
        replace(source, target)
        if str(target).endswith("prompt.safetensors"):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_interrupt)
        ended = forked(lambda: main([*command[0], "--out", str(out)]))
    assert ended.status == 130 and len(ended.err.splitlines()) == 1
    assert not ARTIFACT & set(os.listdir(out))
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "prompt.safetensors").read_bytes() == command[1] and load(out)


def kills_in(place: str, patch) -> None:
    """SIGKILL at a chosen place of the third epoch or of what follows; `scripts/kill/run.py` takes any moment."""
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
    seal, write, replace = checkpoints.seal, writing._write, os.replace

    def seal_some(folder, step):
        if step > 4 and place == "before the manifest":
            kill()
        seal(folder, step)
        if step > 4 and place == "removing an older one":
            patch.setattr(shutil, "rmtree", lambda *_, **__: kill())

    def write_half(path, content, lasting):
        if place == "in a file" and "prompt.safetensors" in path.name:
            path.write_bytes(content[:50])
            kill()
        write(path, content, lasting)

    def replace_one(source, target):
        replace(source, target)
        if place == "between two files" and str(target).endswith("prompt.safetensors"):
            kill()

    patch.setattr(checkpoints, "seal", seal_some)
    patch.setattr(writing, "_write", write_half)
    patch.setattr(os, "replace", replace_one)


@pytest.mark.parametrize("place", ["before the manifest", "removing an older one", "in a file", "between two files"])
def test_killed_at_the_worst_places_it_resumes_to_the_same_file(place, command, forked, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        kills_in(place, patch)
        ended = forked(lambda: main([*command[0], "--training", "save_total_limit=1", "--out", str(out)]))
    assert ended == Ended(-signal.SIGKILL, "") and "prompt.json" not in os.listdir(out)
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "prompt.safetensors").read_bytes() == command[1] and load(out)
    assert not [name for name in os.listdir(out) if name.startswith(".")]


def test_a_limit_of_file_sizes_is_one_line_and_checkpoints_stay(command, forked, tmp_path, monkeypatch):
    """The kernel's own refusal, as of a full disk, in the middle of a run: torch tells of it in words of its own."""
    resource = pytest.importorskip("resource")
    out, seal = tmp_path / "run", checkpoints.seal

    def limit_later(folder, step):
        seal(folder, step)
        if folder.name == "checkpoint-4":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "seal", limit_later)
        ended = forked(lambda: main([*command[0], "--out", str(out)]))
    assert ended.status == 2 and len(ended.err.splitlines()) == 1
    assert f"cannot write the checkpoint {out}/checkpoints/checkpoint-6" in ended.err
    assert "the last good checkpoint is" in ended.err and "enforce fail" not in ended.err
    assert sorted(os.listdir(out / "checkpoints")) == ["checkpoint-2", "checkpoint-4"]
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert (out / "prompt.safetensors").read_bytes() == command[1]


def test_a_second_one_and_a_third_change_nothing(command, forked, tmp_path, monkeypatch):
    """Sent while the first is on its way out: nothing of the cleaning up is left out, and one line is told."""
    out = tmp_path / "run"

    def impatient(trainer, *_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PromptTrainer, "_save_checkpoint", impatient)
    ended = forked(lambda: main([*command[0], "--out", str(out)]))
    assert ended.status == 130 and len(ended.err.splitlines()) == 1, ended.err
    assert ".lock" not in os.listdir(out)


def test_what_others_make_of_it_is_still_an_interruption(command, forked, tmp_path, monkeypatch):
    """A library that turns it into another error, or a worker that it ended first."""

    def turned(*_):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly") from None

    monkeypatch.setattr(running, "load_data", turned)
    ended = forked(lambda: main([*command[0], "--out", str(tmp_path / "run")]))
    assert ended.status == 143 and ended.err.startswith("duotune: error: interrupted; ")


def test_one_line_of_all_processes(forked, monkeypatch):
    def interrupted():
        with endings.watching() as watch:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            except KeyboardInterrupt:
                return watch.tell()

    monkeypatch.setenv("RANK", "1")
    assert forked(interrupted) == Ended(143, "")
    monkeypatch.setenv("RANK", "0")
    assert forked(interrupted).err == "duotune: error: interrupted; run the command again\n"


def test_while_modules_are_imported(forked, tmp_path, monkeypatch):
    """At once, without an exception that the module swallows; but not where something is to be put in order."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "except BaseException:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def imports(holds):
        with endings.watching(alone=True) as watch:
            watch.holds = lambda: holds
            import slow_module  # noqa: F401

            return 7

    assert forked(lambda: imports(False)) == Ended(130, "duotune: error: interrupted; run the command again\n")
    assert forked(lambda: imports(True)) == Ended(7, "")


def test_processes_that_read_data_leave_it_to_their_parent(forked):
    """Forked from a command: Ctrl-C reaches them too, and torch ends them by SIGTERM."""

    def parent():
        with endings.watching():
            statuses = []
            for number in (signal.SIGINT, signal.SIGTERM):
                child = os.fork()
                if not child:
                    os.kill(os.getpid(), number)
                    time.sleep(0.1)
                    os._exit(5)
                statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            return 0 if statuses == [5, -signal.SIGTERM] else 1

    assert forked(parent) == Ended(0, "")


def test_what_was_ignored_stays_ignored_and_handlers_come_back(forked):
    """`nohup`, and background jobs of a shell; and a program that calls `main` has its own handlers afterwards."""

    def child():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        mine = lambda *_: None
        signal.signal(signal.SIGTERM, mine)
        with endings.watching():
            os.kill(os.getpid(), signal.SIGHUP)
            kept = signal.getsignal(signal.SIGTERM) is mine
        return 0 if kept and signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1

    assert forked(child) == Ended(0, "")


IN_TEXT = """
import sys
from duotune.cli import list_names, main
text = "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"
list_names.run = lambda options: exec(text)
sys.argv = ["duotune", "list"]
sys.exit(main())
"""


def test_in_code_made_from_text():
    """CPython kills itself by SIGINT at its end if an interrupt passed through `exec` of a text, handled or not."""
    ran = subprocess.run([sys.executable, "-c", IN_TEXT], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (143, "duotune: error: interrupted; run the command again\n")


AT_EXIT = """
import atexit, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: [os.kill(os.getpid(), s) for s in (signal.SIGINT, signal.SIGTERM)])
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT):
        kill(me, number)
sys.late = Late()
ended = threading.Event()
def after_main():
    ended.wait()
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=after_main).start()
sys.argv = ["duotune", "list", "methods"]
import runpy
try:
    runpy.run_module("duotune", run_name="__main__", alter_sys=False)
finally:
    ended.set()
"""


def test_while_the_interpreter_shuts_down():
    """Waiting for threads, at exit, and after the interpreter has taken its handlers away."""
    ran = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "") and "coop" in ran.stdout
