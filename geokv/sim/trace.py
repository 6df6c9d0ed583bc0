"""The trace of a run: a running digest over everything that happened, and the last lines of it for whoever looks for a bug.

A line is `time place kind fields`. Fields are numbers, short texts and checksums of bytes; nothing whose order or text depends
on hashing or on addresses in memory. Two runs with equal digests did the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from operator import attrgetter
from typing import Any, Final
from zlib import crc32

from geokv.sim.schedule import Schedule

TAIL_LINES: Final = 4_000
_FLUSH_LINES: Final = 512
_DESCRIBERS: dict[type, Callable[[Any], str]] = {}
_PLAIN: Final = frozenset(("int", "str", "bool", "float", "int | None", "Ballot", "Consistency"))


def described(value: object) -> str:
    """A message, event or effect in short: its class, its plain fields, checksums of its bytes, lengths of its lists."""
    kind = type(value)
    describe = _DESCRIBERS.get(kind)
    if describe is None:
        describe = _DESCRIBERS[kind] = _describer(kind)
    return describe(value)


def _describer(kind: type) -> Callable[[Any], str]:
    """What describes instances of a dataclass; it is made once, since it runs for everything that happens."""
    name = kind.__name__
    if not is_dataclass(kind):
        return lambda value: name
    types = {field.name: str(field.type) for field in fields(kind)}
    plain = [field for field, text in types.items() if text in _PLAIN]
    raw = [field for field, text in types.items() if text.startswith("bytes")]
    sized = [field for field, text in types.items() if text.startswith(("list", "dict", "tuple"))]
    get = attrgetter(*plain) if plain else lambda value: ""

    def describe(value: Any) -> str:
        parts = [name, str(get(value))]
        for field in raw:
            content = getattr(value, field)
            parts.append("-" if content is None else f"{len(content)}:{crc32(content):x}")
        parts.extend([str(len(getattr(value, field))) for field in sized])
        return " ".join(parts)

    return describe


class Trace:
    """Collects lines. `watch` gets each of them as text (a file, a list); None costs nothing."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._hash = blake2b(digest_size=16)
        self._pending: list[str] = []
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.lines = 0

    def add(self, place: str, kind: str, text: str = "") -> None:
        line = f"{self._schedule.now_us} {place} {kind} {text}"
        self.lines += 1
        self.tail.append(line)
        self._pending.append(line)
        if len(self._pending) >= _FLUSH_LINES:
            self._flush()

    def _flush(self) -> None:
        self._hash.update("\n".join(self._pending).encode() + b"\n")
        self._pending.clear()

    def digest(self) -> str:
        self._flush()
        return self._hash.hexdigest()
