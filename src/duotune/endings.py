"""How a command ends before its time: Ctrl-C, `kill`, a closed terminal.

    SIGINT 130    SIGTERM 143    SIGHUP 129    SIGBREAK 149 (Windows)        what exists on the system

Each becomes a KeyboardInterrupt, so that what is half-written is removed on the way out, and the command ends with one
line and the status above. A second one within a few seconds changes nothing; nor does one that comes when the command
has ended and the interpreter shuts down. Signals that were ignored when the process began (`nohup`, a background job)
stay ignored. Processes that were forked to read data leave it to their parent.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
ENDING_SECONDS = 5.0  # in which a second signal changes nothing: processes that read data may take so long to end


class Watch:
    """What is known of the signals of a running command.

    Attributes:
        received: the signal that ends the command, or None.
        over: the command has its status; whatever comes now changes nothing.
        hint: says in a few words how to go on.
        holds: whether something has to be put in order before the process may end.
    """

    def __init__(self, alone: bool):
        self.alone = alone
        self.received: int | None = None
        self.over = False
        self.hint: Callable[[], str] = lambda: "run the command again"
        self.holds: Callable[[], bool] = lambda: False
        self._process, self._since = os.getpid(), 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:  # how torch and multiprocessing end such processes
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.over or (self.received is not None and time.monotonic() - self._since < ENDING_SECONDS):
            return
        self.received, self._since = number, time.monotonic()
        if self.alone and not self.holds() and _is_importing(frame):
            # an exception would end up in the middle of others' modules, some of which swallow it or make it another
            self.over = True
            status = self.tell()
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            os._exit(status)
        raise KeyboardInterrupt

    def tell(self) -> int:
        """Print the line, once for all processes of a run, and return the exit status."""
        if os.environ.get("RANK", "0") == "0":
            hint = self.hint()
            print(f"duotune: error: interrupted{'; ' if hint else ''}{hint}", file=sys.stderr, flush=True)
        return 128 + (self.received or signal.SIGINT)


def end(status: int) -> NoReturn:
    """End a process that was interrupted, its handlers of the end included.

    Not by returning: where the KeyboardInterrupt passed through `exec` of a text, as that of a dataclass being made,
    CPython takes it for one that nobody handled and kills itself by SIGINT in the end, whatever the status.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


_watches: list[Watch] = []


def current() -> Watch:
    """The watch of the command that is running; one that nobody reads if there is none."""
    return _watches[-1] if _watches else Watch(alone=False)


@contextlib.contextmanager
def watching(alone: bool = False) -> Iterator[Watch]:
    """Until the block ends, the signals that nobody else handles are those of a command.

    Args:
        alone: the process has no other purpose: what comes after the block finds it shutting down, and is ignored.
    """
    if _watches or threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield current()
        return
    watch, replaced = Watch(alone), {}
    _watches.append(watch)
    try:
        for number in SIGNALS:
            if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler):
                replaced[number] = handler
                signal.signal(number, watch.handle)
        yield watch
    finally:
        watch.over = True
        for number, handler in replaced.items():
            signal.signal(number, signal.SIG_IGN if alone else handler)
        _watches.remove(watch)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


__all__ = ["SIGNALS", "Watch", "current", "end", "watching"]
