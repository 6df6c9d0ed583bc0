"""The trace of a run: a running digest over everything that happened, and the last lines of it for whoever looks for a bug.

A line is `time place kind fields`. Fields are numbers, short texts and checksums of bytes; nothing whose order or text depends
on hashing or on addresses in memory. Two runs with equal digests did the same.
"""

from __future__ import annotations

from collections import deque
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from typing import Final
from zlib import crc32

from geokv.sim.schedule import Schedule

TAIL_LINES: Final = 4_000
_FLUSH_LINES: Final = 512
_FIELDS: dict[type, tuple[str, ...]] = {}


def described(value: object) -> str:
    """A message, event or effect in a few characters: its class, its plain fields, checksums of its bytes, lengths of its lists."""
    kind = type(value)
    names = _FIELDS.get(kind)
    if names is None:
        names = tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()
        _FIELDS[kind] = names
    parts = [kind.__name__]
    for name in names:
        content = getattr(value, name)
        if content.__class__ is bytes:
            parts.append(f"{name}={len(content)}:{crc32(content):x}")
        elif isinstance(content, int | str | None):
            parts.append(f"{name}={content!s}")
        elif isinstance(content, list | tuple | dict):
            parts.append(f"{name}=[{len(content)}]")
        else:
            parts.append(f"{name}={type(content).__name__}")
    return " ".join(parts)


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
