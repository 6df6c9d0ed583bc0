"""Owns asyncio tasks: one that ends with an exception is counted, told, and begun again, or ends what it belongs to.

A background task whose exception nobody awaits is a node that looks healthy and does nothing. So no module of the
runtime makes a task by itself.

Invariants: every task given to a supervisor is awaited by it; `close` leaves none behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from geokv.runtime.counters import Counters

RESTART_S_MIN: Final = 0.1
RESTART_S_MAX: Final = 5.0
CANCEL_AGAIN_S: Final = 0.2

_log = logging.getLogger("geokv.runtime")


class Supervisor:
    """The owner of some tasks. `on_failure(name, error)` is called for tasks that are not begun again."""

    def __init__(self, counters: Counters, on_failure: Callable[[str, BaseException], None]) -> None:
        self._counters = counters
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def keep(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `work` now, and again whenever it fails, with growing pauses; when it returns, that is the end of it."""
        self.once(name, self._restarting(name, work))

    def once(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`; if it fails, `on_failure` is told."""
        if self._is_closed:
            work.close()
            raise RuntimeError(f"{name}: begun after the end")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Cancel all tasks and wait until they are gone.

        Again and again: a cancellation that comes just as a call of a library fails may be taken for that failure.
        """
        self._is_closed = True
        own = asyncio.current_task()
        while tasks := {task for task in self._tasks if task is not own}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)

    async def _restarting(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        pause_s = RESTART_S_MIN
        while True:
            begun = asyncio.get_running_loop().time()
            try:
                return await work()
            except Exception:
                _log.exception("%s failed and is begun again", name)
                self._counters.add("supervisor.restarts")
            if asyncio.get_running_loop().time() - begun > RESTART_S_MAX:
                pause_s = RESTART_S_MIN
            await asyncio.sleep(pause_s)
            pause_s = min(RESTART_S_MAX, pause_s * 2)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._counters.add("supervisor.failures")
            self._on_failure(task.get_name(), error)
