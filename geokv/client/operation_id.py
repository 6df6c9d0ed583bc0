"""A name for one update, for callers who try it again themselves: later, or from another process.

    name = OperationId()                        keep str(name) where another process finds it, then
    likes.increment("post:1", 5, operation_id=name)
    ...                                         in doubt, or after a crash:
    likes.increment("post:1", 5, operation_id=OperationId.parse(kept))

The client tries writes in doubt again by itself as long as a call's time lasts; nothing of this is needed for that. An object
remembers which nodes were asked under its name. One that was parsed cannot know, so every owner of the key must answer for it.

Invariants: an object stands for the update that it was first used for, and for no other: an id that is found in a log is
answered with what was applied under it, whatever is asked for now. What was parsed is bound anew, where it is used first.
"""

from __future__ import annotations

import os
import time
from typing import Final, NamedTuple

from geokv.client.codecs import Codec
from geokv.errors import InvalidRequest
from geokv.protocol.client.operations import Given, Operation
from geokv.protocol.requests import ANYBODY

_ID_BYTES: Final = 16
_KEY_SHOWN: Final = 64


class Named(NamedTuple):
    """What an id stands for. `what`: the value of a put, None for a delete, of other updates (`is_update`) the operation."""

    namespace: str
    key: bytes
    what: bytes | None
    is_update: bool


class OperationId:
    """Names one update: the same key, operation and value each time. It counts from when it was made, for five minutes."""

    __slots__ = ("_asked", "_began_ms", "_name", "_stands_for", "_under_way")

    def __init__(self) -> None:
        self._name = os.urandom(_ID_BYTES)
        self._began_ms = time.time_ns() // 1_000_000
        self._asked: set[str] = set()
        self._under_way: list[Operation] = []
        self._stands_for: list[Named] = []  # the first of them, should two threads have used it at once

    @classmethod
    def parse(cls, text: str) -> OperationId:
        """From what str() of one was, perhaps in another process: any owner of the key may have been asked since."""
        name, _, began = text.partition("-")
        made = cls()
        try:
            made._name, made._began_ms = bytes.fromhex(name), int(began)
        except ValueError:
            made._name = b""
        if len(made._name) != _ID_BYTES or not any(made._name):
            raise InvalidRequest(f"{text!r} is no operation id: it is what str() of an OperationId returned")
        made._asked.add(ANYBODY)
        return made

    def __str__(self) -> str:
        return f"{self._name.hex()}-{self._began_ms}"

    def __repr__(self) -> str:
        return f"OperationId.parse({str(self)!r})"

    @property
    def asked(self) -> frozenset[str]:
        """The nodes that were asked under this name."""
        return frozenset(self._asked)

    def bind(self, update: Named, codec: Codec | None = None) -> None:
        """It is used for this. Raises InvalidRequest where it was used for something else before."""
        self._stands_for.append(update)
        first = self._stands_for[0]
        del self._stands_for[1:]
        if not _is_same(first, update, codec):
            raise InvalidRequest(
                f"operation id {self} stands for another operation already, on key {first.key[:_KEY_SHOWN]!r} of"
                f" {first.namespace!r}: it names one update, the same each time; give this one an OperationId of its own"
            )

    def given(self, now_us: int) -> Given:
        """As the client machine takes it. The set of nodes is one and the same for all tries."""
        age_ms = max(0, time.time_ns() // 1_000_000 - self._began_ms)
        return Given(self._name, self._asked, now_us - age_ms * 1000, self._under_way)


def _is_same(one: Named, other: Named, codec: Codec | None) -> bool:
    """A codec may encode one value in several ways (a date in a compressed one): then what it means counts."""
    if one == other or codec is None or one.what is None or other.what is None or one.is_update:
        return one == other
    try:
        return one._replace(what=None) == other._replace(what=None) and bool(codec.decode(one.what) == codec.decode(other.what))
    except Exception:
        return False  # the first was not of this codec
