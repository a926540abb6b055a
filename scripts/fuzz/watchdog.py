"""Runs inputs in a forked child that imported everything once, and sees it hang, die, or take too much memory."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SECONDS = 60.0  # for one input, on a busy machine; the slowest takes about two
MEMORY_KB = 3 * 2**20  # more than before the input
ADDRESS_SPACE = 12 * 2**30  # beyond what the process has: a last stop, torch reserves more than it touches
LONGEST_LINE = 400  # characters of a fault, less those of the path that it names


@dataclass(frozen=True)
class Verdict:
    """kind: "ok", "refused" or "FAILED"; text: the error line, or why it failed."""

    kind: str
    text: str = ""


def judged(run: Callable[[int], str | None], index: int, folder: str) -> Verdict:
    """Run one input. `run` returns None, or what is wrong with its result; it raises as duotune does."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = _verdict(run, index, folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MEMORY_KB:
        return Verdict("FAILED", f"took {grown / 2**20:.1f} GB of memory; then: {verdict.kind} {verdict.text}")
    return verdict


def _verdict(run: Callable[[int], str | None], index: int, folder: str) -> Verdict:
    from duotune.errors import MAX_MESSAGE, DuotuneError, one_line

    try:
        wrong = run(index)
    except DuotuneError as error:
        line = str(error)
        if not line.isprintable():
            return Verdict("FAILED", f"not one printable line: {line!r}")
        faults = [one_line(fault, MAX_MESSAGE) for fault in getattr(error, "faults", [line])]
        longest = max((len(fault.replace(folder, "")) for fault in faults), default=0)
        if longest > LONGEST_LINE:
            return Verdict("FAILED", f"a line of {len(line)} characters: {line}")
        return Verdict("refused", line)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if f"{os.sep}duotune{os.sep}" in f.filename]
        at = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}" if ours else "-"
        return Verdict("FAILED", f"{type(error).__name__}: {str(error)[:300]!r} at {at} ({frames[-1].name})")
    return Verdict("FAILED", wrong) if wrong else Verdict("ok")


def alone(run: Callable[[int], str | None], indices: list[int], folder: str) -> Iterator[tuple[int, Verdict]]:
    """As `watched`, in this process, for few inputs: what hangs in Python is ended by an alarm."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"still busy after {SECONDS:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for index in indices:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            verdict = judged(run, index, folder)
            signal.setitimer(signal.ITIMER_REAL, 0)
            yield index, verdict
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _child(run: Callable[[int], str | None], indices: list[int], folder: str, out: int) -> None:
    limit = _address_space() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    for index in indices:
        os.write(out, json.dumps(["start", index]).encode() + b"\n")
        verdict = judged(run, index, folder)
        os.write(out, json.dumps([verdict.kind, index, verdict.text[:2000]]).encode() + b"\n")


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def watched(run: Callable[[int], str | None], indices: list[int], folder: str) -> Iterator[tuple[int, Verdict]]:
    """(index, verdict) of every input; a child that hangs or dies is replaced, and goes on with the next input."""
    left = list(indices)
    while left:
        out, into = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                os.close(out)
                _child(run, left, folder, into)
            finally:
                os._exit(0)
        os.close(into)
        buffer, current, last = b"", None, time.monotonic()
        fate = None
        while fate is None:
            ready, _, _ = select.select([out], [], [], 1.0)
            if ready:
                block = os.read(out, 65536)
                last = time.monotonic()
                buffer += block
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    kind, index, *text = json.loads(line)
                    if kind == "start":
                        current = index
                    else:
                        left.remove(index)
                        current = None
                        yield index, Verdict(kind, *text)
                if not block:
                    fate = "died"
            elif time.monotonic() - last > SECONDS:
                fate = f"still busy after {SECONDS:.0f} s"
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(out)
        if current is not None:
            left.remove(current)
            yield current, Verdict("FAILED", fate if fate != "died" else f"the process ended (status {status})")
