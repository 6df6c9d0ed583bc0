"""The queue in front of one stream: bounded in bytes, and joined into large writes while one is under way.

    put(frame) ... put(frame)  ->  [frame, frame, frame]  ->  one write of all that waits, up to 1 MiB

The first message of a quiet stream leaves at once; what comes while it is being written leaves together with the next
write. So there is no timer, and the busier the stream, the fewer writes per message.

Invariants: order is kept; `queued_bytes` is what waits, and never above the budget that the streams of one peer share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from geokv.core.limits import PEER_WRITE_BYTES_MAX


class Budget:
    """Bytes that may wait for one peer, over all its streams."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0


class Outbound:
    """One stream's queue. `put` never blocks; `run` writes until it is cancelled or a write fails."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._frames: deque[bytes] = deque()
        self._wake: asyncio.Future[None] | None = None
        self.queued_bytes = 0
        self.writes = 0

    def put(self, frame: bytes) -> bool:
        """Queue a frame; False, and nothing done, when it does not fit."""
        size = len(frame)
        if self._budget.used + size > self._budget.bytes_max:
            return False
        self._budget.used += size
        self.queued_bytes += size
        self._frames.append(frame)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        return True

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._frames:
                self._wake = loop.create_future()
                await self._wake
                self._wake = None
            await write(self._take())
            self.writes += 1

    def clear(self) -> int:
        """Forget what waits; how many frames that were."""
        dropped = len(self._frames)
        self._frames.clear()
        self._budget.used -= self.queued_bytes
        self.queued_bytes = 0
        return dropped

    def _take(self) -> bytes:
        """The next write: at least one frame, and as many more as fit."""
        frames = [self._frames.popleft()]
        size = len(frames[0])
        while self._frames and size + len(self._frames[0]) <= PEER_WRITE_BYTES_MAX:
            frames.append(self._frames.popleft())
            size += len(frames[-1])
        self._budget.used -= size
        self.queued_bytes -= size
        return frames[0] if len(frames) == 1 else b"".join(frames)
