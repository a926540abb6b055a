"""Which class is which, by name: in what order two lists hold the same classes, and where they differ."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from .errors import shown


def clean_class_name(name: str) -> str:
    """A class name as prompts read it: underscores become spaces, outer and double spaces go, accents are stored in
    one way (NFC)."""
    return unicodedata.normalize("NFC", " ".join(name.replace("_", " ").split()))


def first_few(names: Sequence[str], limit: int = 5) -> str:
    """The names for a message: at most `limit`, then how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shown(str(name)) for name in names[:limit]) + more


def places(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """For each of `names` where it stands in `among`, as prompts read both; None unless each stands there once."""
    there: dict[str, int] = {}
    for place, name in enumerate(map(clean_class_name, among)):
        if name in there:
            return None
        there[name] = place
    wanted = [clean_class_name(name) for name in names]
    if len(set(wanted)) < len(wanted) or not set(wanted) <= set(there):
        return None
    return [there[name] for name in wanted]


def same_classes(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """`places` where both lists hold the same classes; None where one holds others."""
    return places(names, among) if len(names) == len(among) else None


def differences(known: Sequence[str], given: Sequence[str]) -> str:
    """ "'cat' is missing; 'dog', 'cow' are unknown": how the given class names differ from the known ones."""
    has, had = set(map(clean_class_name, given)), set(map(clean_class_name, known))
    parts = []
    for word, own, others in (("missing", known, has), ("unknown", given, had)):
        if apart := [name for name in own if clean_class_name(name) not in others]:
            parts.append(f"{first_few(apart)} {'is' if len(apart) == 1 else 'are'} {word}")
    return "; ".join(parts)
