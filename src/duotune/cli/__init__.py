"""The command line: `duotune COMMAND`. One thin file per command; heavy imports wait until a command runs.

Exit status: 0 done, 1 unexpected failure, 2 an error the user can mend (one line on standard error),
130 interrupted (143 by `kill`, 129 by a closed terminal), 141 nobody reads the output any more (`duotune list | head`).
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

from ..endings import Watch, end, watching
from ..errors import MAX_MESSAGE, MAX_SHOWN, DuotuneError, one_line
from ..processes import known_to_all, launched, said_by
from .options import Parser, UsageError, add_options, given
from .output import print_anything

COMMANDS = {
    "list": "duotune.cli.list_names",
    "train": "duotune.cli.train",
    "evaluate": "duotune.cli.evaluate",
    "predict": "duotune.cli.predict",
    "show": "duotune.cli.show",
    "import": "duotune.cli.import_checkpoint",
    "convert": "duotune.cli.convert",
    "demo": "duotune.cli.demo",
}
"""Command -> module with `HELP` (one line), `Options` (a dataclass) and `run(options) -> exit status`.

A module may define `add_arguments(parser)` and `read(namespace)` where a dataclass alone does not say it. One that is
not in `SHARED` runs in one process.
"""
SHARED = frozenset({"train"})
"""Commands that several processes of a launcher do together."""

DESCRIPTION = "Adapt frozen vision-language models with kilobytes of prompts."
EPILOG = "`duotune COMMAND --help` says more. DUOTUNE_TRACEBACK=1 shows the full traceback of an error."


def build_parser() -> Parser:
    """The parser of all commands. Imports the commands' modules, which import nothing heavy themselves."""
    parser = Parser(prog="duotune", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="store_true", help="print the versions of duotune, torch and transformers")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    parser.commands = commands.choices
    for name, path in COMMANDS.items():
        module = importlib.import_module(path)
        sub = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        getattr(module, "add_arguments", lambda p, m=module: add_options(p, m.Options))(sub)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command line (`sys.argv` if None) and return the exit status. Prints errors, raises none."""
    with watching(alone=argv is None) as watch:
        try:
            print_anything()
            status = _told(argv, watch)
        except KeyboardInterrupt:  # one that came while an error was told
            status = watch.tell()
        if watch.received is not None and argv is None:  # the process has no other purpose
            end(status)
        return status


def _told(argv: list[str] | None, watch: Watch) -> int:
    traceback = bool(os.environ.get("DUOTUNE_TRACEBACK"))
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, not at the interpreter's end, where a closed pipe could not be told
        watch.over = True
        return status
    except KeyboardInterrupt as interrupt:
        watch.over = True
        if isinstance(fault := interrupt.__context__, Exception) and known_to_all(fault):
            return _failed(fault, traceback)  # a process that ends with it makes the launcher end all
        return watch.tell()
    except Exception as error:
        watch.over = True
        if watch.received is not None and not known_to_all(error):
            return watch.tell()  # a signal may reach other processes as well, and us as their failure
        return _failed(error, traceback)


def _failed(error: Exception, traceback: bool) -> int:
    who = said_by(error)
    if who is None and not traceback:
        return 2
    try:
        raise error
    except UsageError as error:
        return 2 if who else _fail(str(error), 2, traceback)  # all processes are started with the same words
    except DuotuneError as error:
        return _fail(f"process {who}: {error}" if who else str(error), 2, traceback)
    except BrokenPipeError:  # the reader of our output has gone, as in `duotune list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell says of a program that SIGPIPE ends, as it does `cat`
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"no space left on the disk of {error.filename or 'the output'}; free some", 2, traceback)
        if error.filename is not None and error.strerror:
            return _fail(f"{error.strerror}: {one_line(str(error.filename), MAX_SHOWN)}", 2, traceback)
        return _unexpected(error, traceback)
    except Exception as error:
        return _unexpected(error, traceback)


def _run(argv: list[str] | None) -> int:
    parser = build_parser()
    namespace, extra = parser.parse_known_args(argv)
    if extra:  # by the command's own parser, which knows its options and can name the nearest
        parser.commands.get(namespace.command, parser).error(f"unrecognized arguments: {' '.join(extra)}")
    if namespace.version:
        from importlib.metadata import version

        print(", ".join(f"{name} {version(name)}" for name in ("duotune", "torch", "transformers")))
        return 0
    if namespace.command is None:
        parser.print_help()
        return 0
    if namespace.command not in SHARED and (count := launched()[2]) > 1:
        parser.error(f"{count} processes were launched, each of which would do all of `{namespace.command}`; start one")
    module = importlib.import_module(COMMANDS[namespace.command])
    if hasattr(module, "read"):
        return module.run(module.read(namespace))
    return module.run(module.Options(**given(namespace, module.Options)))


def _fail(message: str, status: int, traceback: bool) -> int:
    if traceback:
        raise
    print(f"duotune: error: {one_line(message, 4 * MAX_MESSAGE)}", file=sys.stderr)
    return status


def _unexpected(error: Exception, traceback: bool) -> int:
    reason = f"{type(error).__name__}: {one_line(str(error), MAX_MESSAGE)}" if str(error) else type(error).__name__
    return _fail(f"unexpected {reason} (set DUOTUNE_TRACEBACK=1 to see where)", 1, traceback)


__all__ = ["COMMANDS", "UsageError", "build_parser", "main"]
