"""Threads with a queue: whatever may wait for a disk runs on one of these, in order, and reports to the loop.

    commit    append + sync of the log, and what must not run beside them      the acknowledgement of writes waits for it
    read      the log's records for feeds                                      slow disks must not hold up commits
    load      cells that are on the disk only                                  reads wait for it, and writes over them
    prepare   zeros for the next segment                                       hundreds of milliseconds
    build     waiting for the engine's worker, and switching to what it made   seconds

A SimpleQueue and one `call_soon_threadsafe` per job, instead of an executor with its futures and locks: at a
thousand commits per second that is felt.

Invariants: jobs of one thread run one after the other, in the order given; each reports exactly once, on the
loop's thread, unless the loop is closed. `close` returns after the last job given before it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]
"""(what to run on the thread, what to call on the loop with its result or its error)."""


class WorkThread:
    """One thread, one queue. `waiting` counts jobs that have not reported yet."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting = 0
        self._loop = loop
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"geokv-{name}", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        self.waiting += 1
        self._jobs.put((work, done))

    async def close(self) -> None:
        """Let the jobs given so far end, then the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, done = job
            result, failure = None, None
            try:
                result = work()
            except Exception as error:
                failure = error
            try:
                self._loop.call_soon_threadsafe(self._report, done, result, failure)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _report(self, done: Callable[[Any, Exception | None], None], result: Any, failure: Exception | None) -> None:
        self.waiting -= 1
        done(result, failure)
