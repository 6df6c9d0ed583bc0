"""Operations with whom to tell: one caller's future or lock, or one slot in the answer to a call with many."""

from __future__ import annotations

import asyncio
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from geokv.errors import GeokvError
from geokv.protocol.client.operations import Operation, Options


class FutureOperation(Operation):
    """One caller on the loop waits for `future`."""

    __slots__ = ("future",)

    def __init__(
        self,
        options: Options,
        key: bytes,
        value: Any,
        started_us: int,
        deadline_us: int,
        context: bytes,
        future: asyncio.Future[Any],
    ) -> None:
        # Operation.__init__ written out: the call alone is a tenth of what an operation costs here.
        self.options = options
        self.key = key
        self.value = value
        self.started_us = started_us
        self.deadline_us = deadline_us
        self.context = context
        self.trouble = None
        self.is_done = False
        self.future = future

    def succeed(self, result: Any) -> None:
        try:
            self.future.set_result(result)
        except asyncio.InvalidStateError:  # its caller was cancelled
            pass

    def fail(self, error: GeokvError) -> None:
        try:
            self.future.set_exception(error)
        except asyncio.InvalidStateError:
            pass


class LockOperation(Operation):
    """One thread waits for `lock`; then `result` or `error` is set."""

    __slots__ = ("error", "lock", "result")

    def __init__(
        self, options: Options, key: bytes, value: Any, started_us: int, deadline_us: int, context: bytes = b""
    ) -> None:
        super().__init__(options, key, value, started_us, deadline_us, context)
        self.result: Any = None
        self.error: GeokvError | None = None
        self.lock = allocate_lock()
        self.lock.acquire()

    def succeed(self, result: Any) -> None:
        self.result = result
        self.lock.release()

    def fail(self, error: GeokvError) -> None:
        self.error = error
        self.lock.release()


class Gathering:
    """Collects the results of many operations; `on_done` is called with the last of them."""

    __slots__ = ("items", "left", "on_done")

    def __init__(self, count: int, on_done: Callable[[], None]) -> None:
        self.items: list[Any] = [None] * count
        self.left = count
        self.on_done = on_done

    def put(self, index: int, item: Any) -> None:
        self.items[index] = item
        self.left -= 1
        if not self.left:
            self.on_done()


class ItemOperation(Operation):
    """One item of a call with many."""

    __slots__ = ("gathering", "index")

    def __init__(
        self,
        options: Options,
        key: bytes,
        value: Any,
        started_us: int,
        deadline_us: int,
        context: bytes,
        gathering: Gathering,
        index: int,
    ) -> None:
        super().__init__(options, key, value, started_us, deadline_us, context)
        self.gathering = gathering
        self.index = index

    def succeed(self, result: Any) -> None:
        self.gathering.put(self.index, result)

    def fail(self, error: GeokvError) -> None:
        self.gathering.put(self.index, error)
