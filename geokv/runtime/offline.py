"""A node on a folder, without a network: it starts, flushes what its log holds, and ends.

Only the node itself can say what its own state is at the end of its log (frontiers, promises, definitions), which a
flush has to put beside the tables. So a run of it begins, as it would in a process, and is told at once to stop.

Invariants: nothing is sent, nobody is served. The folder is the caller's, locked.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from geokv.errors import StorageError
from geokv.protocol.effects import (
    Build,
    Built,
    Effect,
    EndIncarnation,
    Event,
    Persist,
    Persisted,
    Stopping,
    WallClockRead,
    Woken,
)
from geokv.runtime.clock import monotonic_us, wall_us
from geokv.runtime.machine import Opener

STEPS_MAX: Final = 1000


def flush(opener: Opener) -> None:
    """Have everything in tables. Raises StorageError where that cannot be."""
    opened = opener()
    opened.stop_building()  # jobs run here
    events: deque[Event] = deque([WallClockRead(wall_us()), Woken()])
    failure = ""

    def perform(effect: Effect) -> None:
        nonlocal failure
        if isinstance(effect, Persist):
            segment, offset = opened.log.append(effect.payload)
            opened.log.sync()
            events.append(Persisted(effect.token, segment, offset, opened.log.room_bytes()))
            events.append(Stopping(flush_bytes_max=1 << 62))
        elif isinstance(effect, Build):
            opened.build(effect.job)
            events.append(Built(effect.token))
        elif isinstance(effect, EndIncarnation):
            failure = effect.reason

    for _ in range(STEPS_MAX):
        if not events:
            break
        for effect in opened.machine.handle(events.popleft(), monotonic_us()):
            perform(effect)
    opened.close()
    if failure:
        raise StorageError(f"the node's run ended: {failure}")
