"""Command-line options from dataclasses: one field, one argument; its help is the field's own."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import logging
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, NoReturn

from ..errors import DuotuneError


class UsageError(DuotuneError):
    """The command line itself is not as expected."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and whose help keeps line breaks of the description.

    Attributes:
        commands: command -> its parser, of a parser that has commands.
    """

    commands: Mapping[str, argparse.ArgumentParser]

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}{self._nearest(message)}; see `{self.prog} --help`")

    def _nearest(self, message: str) -> str:
        _, _, rest = message.partition("unrecognized arguments: ")
        words = [w.partition("=")[0] for w in rest.split() if w.startswith("-")]
        known = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(words[0], known, n=1, cutoff=0.6) if words else []
        return f"; did you mean {near[0]}?" if near else ""


def option(default: Any = dataclasses.MISSING, *, help: str, **settings: Any) -> Any:
    """A dataclass field that becomes an argument.

    Args:
        default: as in a dataclass; a list, dict or the like is copied. Left out: the argument is required.
        help: one line, shown by `--help`.
        settings: `positional=True`, `flag="--other-name"`, `metavar=...`, `choices=...`, `nargs=...`.
    """
    metadata = {"help": help, **settings}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def add_options(parser: argparse._ActionsContainer, options: type) -> None:
    """One argument per field of the dataclass `options` that has a help text.

    An argument that is not given leaves no trace in the namespace, so that a recipe's value can stand.
    """
    types_of = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        if "help" not in field.metadata:
            continue
        meta, kind = dict(field.metadata), types_of[field.name]
        arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": meta["help"].replace("%", "%%")}
        arguments |= {key: meta[key] for key in ("metavar", "choices", "nargs") if key in meta}
        if isinstance(kind, types.UnionType):  # "str | None"
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        many = typing.get_origin(kind) in (list, dict)
        if kind is bool:
            arguments["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        elif many and not meta.get("positional"):
            arguments["action"] = "append"
        elif kind in (int, float):
            arguments["type"] = kind
            arguments.setdefault("metavar", "N" if kind is int else "X")
        if not many and kind is not bool and field.default not in (None, "", dataclasses.MISSING):
            arguments["help"] += f" (default: {field.default})"
        if meta.get("positional"):
            if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING:
                arguments["default"] = None  # argparse would hold SUPPRESS against the choices
                arguments.setdefault("nargs", "*" if many else "?")
            elif many:
                arguments.setdefault("nargs", "+")
            arguments.setdefault("metavar", field.name.upper())
            parser.add_argument(field.name, **arguments)
        else:
            arguments["required"] = (
                field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            )
            flag = meta.get("flag", "--" + field.name.replace("_", "-"))
            parser.add_argument(flag, dest=field.name, **arguments)


def given(namespace: argparse.Namespace, options: type) -> dict[str, Any]:
    """The arguments of `options` that stand on the command line."""
    names = {field.name for field in dataclasses.fields(options) if "help" in field.metadata}
    return {key: value for key, value in vars(namespace).items() if key in names and value is not None}


# what a cache cannot do costs time that nobody expects; fewer shots than were asked for are another experiment
WARNED_OF = ("training.cache", "training.detection_features", "data.detection.sampling")


class _OneLine(logging.Handler):
    """A warning as one line on standard error, like an error's."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"duotune: warning: {' '.join(record.getMessage().split())}", file=sys.stderr)


def quiet(warn: bool = True) -> None:
    """Keep the libraries' chatter off the terminal; a command's own lines are what the user reads.

    DUOTUNE_TRACEBACK=1 leaves it on, to look for causes.

    Args:
        warn: say what takes time or is another experiment; of several processes one does.
    """
    import os
    import warnings

    if os.environ.get("DUOTUNE_TRACEBACK"):
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("duotune").addHandler(logging.NullHandler())  # commands print what matters of it themselves
    for name in WARNED_OF if warn else ():
        told = logging.getLogger(f"duotune.{name}")
        if not any(isinstance(handler, _OneLine) for handler in told.handlers):
            told.addHandler(_OneLine(logging.WARNING))
    for name in ("matplotlib", "accelerate", "datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
