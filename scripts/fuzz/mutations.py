"""Seeded damage: to bytes, and to values that are written as JSON or YAML."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

HUGE = "\ue000HUGE\ue000"  # written as a whole number of 5,000 digits
DEEP = "\ue000DEEP\ue000"  # written as lists nested 5,000 deep
OVERFLOW = "\ue000OVER\ue000"  # written as 1e999
_WRITTEN = {HUGE: "9" * 5000, DEEP: "[" * 5000 + "]" * 5000, OVERFLOW: "1e999"}

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, "", " ", "x", "x" * 5000, "a\nb\x1b[31m", "\x00", "\ud800", "../../x", "/etc/passwd", "nan"),
    *(-1, 0, 1, 2, 7, 2**31, 2**63, 10**12, 10**29, -(10**12), 0.5, -0.5, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), HUGE, DEEP, OVERFLOW),
    *([], {}, [[]], [None], {"a": 1}, [0] * 1000, ["x"] * 3, {"": ""}),
)


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """`content` with one to three faults: bits, cuts, repetitions, runs of one byte, foreign bytes."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(data)
        place = rng.randrange(size + 1)
        if rng.random() < 0.3:
            place = min(place, rng.randrange(64))  # headers
        length = min(size - place, rng.choice((1, 2, 4, 16, 256, size)))
        kind = rng.randrange(9)
        if kind == 0 and size:
            for _ in range(rng.choice((1, 3, 20))):
                data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + min(length, 4096)]
        elif kind == 4:
            data[place : place + length] = bytes([rng.choice((0, 0xFF, 0x7F, 0x20))]) * length
        elif kind == 5:
            data[place : place + min(length, 16)] = rng.randbytes(min(length, 16))
        elif kind == 6:
            data[place:place] = rng.choice(
                (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"9" * 5000, b"[" * 5000, b"\r\n", b'"')
            )
        elif kind == 7:
            data += rng.randbytes(rng.choice((1, 100, 10_000)))
        elif rng.random() < 0.2:
            data = bytearray(rng.choice((b"", b"\0" * 1000, b"PK\3\4", b"{}", b"[]", b"null", b"\x80\x02.")))
    return bytes(data)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return found
    if len(items) > 30:  # vocabularies: some stand for all
        items = items[:10] + items[-10:]
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def damaged_value(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one to three places changed: another value or type, gone, renamed, repeated."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.choice(_places(value))
        if not place:
            if rng.random() < 0.05:
                return rng.choice(HOSTILE)
            continue
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        key, old = place[-1], parent[place[-1]]
        kind = rng.randrange(8)
        if kind <= 3:
            parent[key] = copy.deepcopy(rng.choice(HOSTILE))
        elif kind == 4:
            del parent[key]
        elif kind == 5:
            parent[key] = rng.choice(([old], str(old), {"x": old}, [old, old]))
            if isinstance(old, (int, float)) and not isinstance(old, bool):
                try:
                    parent[key] = rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, float(old), str(old)))
                except OverflowError:
                    parent[key] = HUGE
        elif kind == 6 and isinstance(parent, dict):
            parent[f"{key}_" if rng.random() < 0.5 else rng.choice(("", "\ud800", "x" * 3000, "id"))] = parent.pop(key)
        elif isinstance(parent, list):
            parent.extend(copy.deepcopy([old] * rng.choice((1, 50))))
    return value


def written(rng: random.Random, value: Any) -> bytes:
    """The value as JSON text; now and then in another encoding, with a key twice, or with a tail."""
    text = json.dumps(value)
    for mark, number in _WRITTEN.items():
        text = text.replace(json.dumps(mark), number)
    if rng.random() < 0.03:
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32", "utf-16-le")))
    if rng.random() < 0.02 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + ', "format": 7, "model_type": "x", "images": []}'
    return (text + rng.choice(("", "", "", "", "\n", " x", "}"))).encode()
