"""A plain lazy table "name -> module:attribute".

Tables are ordinary dictionaries in the source, so that they can be read and searched; `register`
adds to them from outside the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import ConfigError, UnknownNameError


class Registry:
    """Names of one kind of thing and where each lives; nothing is imported before `get`.

    Args:
        kind: what the names name, for error messages ("method").
        table: name -> "package.module:attribute", or the object itself.
    """

    def __init__(self, kind: str, table: Mapping[str, Any]):
        self.kind = kind
        self._table: dict[str, Any] = dict(table)
        self._loaded: dict[str, Any] = {}  # beside the table: `where` still answers after `get`

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._table))

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def __len__(self) -> int:
        return len(self._table)

    def get(self, name: str) -> Any:
        """The object called `name`. Raises UnknownNameError with the nearest known name."""
        if name not in self._table:
            raise UnknownNameError(self.kind, name, self._table)
        target = self._table[name]
        if isinstance(target, str):
            if name not in self._loaded:
                module, _, attribute = target.partition(":")
                self._loaded[name] = getattr(importlib.import_module(module), attribute)
            return self._loaded[name]
        return target

    def where(self, name: str) -> str:
        """ "module:attribute" of `name`, without importing it. Raises UnknownNameError."""
        if name not in self._table:
            raise UnknownNameError(self.kind, name, self._table)
        target = self._table[name]
        return target if isinstance(target, str) else f"{target.__module__}:{target.__qualname__}"

    def register(self, name: str, target: Any) -> Any:
        """Add `target` (an object, or "module:attribute") under a new name. Raises ConfigError if the name is taken."""
        if name in self._table and target is not self._table[name] and target is not self._loaded.get(name):
            raise ConfigError(f"{self.kind} {name!r} is already registered; choose another name")
        self._table[name] = target
        return target
