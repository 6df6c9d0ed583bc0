"""A name for one update, for callers who try it again themselves: later, or from another process.

    name = OperationId()                        keep str(name) where another process finds it, then
    likes.increment("post:1", 5, operation_id=name)
    ...                                         in doubt, or after a crash:
    likes.increment("post:1", 5, operation_id=OperationId.parse(kept))

The client tries writes in doubt again by itself as long as a call's time lasts; nothing of this is needed for that. An object
remembers which nodes were asked under its name. One that was parsed cannot know, so every owner of the key must answer for it.
"""

from __future__ import annotations

import os
import time
from typing import Final

from geokv.errors import InvalidRequest
from geokv.protocol.client.operations import Given
from geokv.protocol.requests import ANYBODY

_ID_BYTES: Final = 16


class OperationId:
    """Names one update: the same key, operation and value each time. It counts from when it was made, for five minutes."""

    __slots__ = ("_asked", "_began_ms", "_name")

    def __init__(self) -> None:
        self._name = os.urandom(_ID_BYTES)
        self._began_ms = time.time_ns() // 1_000_000
        self._asked: set[str] = set()

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

    def given(self, now_us: int) -> Given:
        """As the client machine takes it. The set of nodes is one and the same for all tries."""
        age_ms = max(0, time.time_ns() // 1_000_000 - self._began_ms)
        return Given(self._name, self._asked, now_us - age_ms * 1000)
