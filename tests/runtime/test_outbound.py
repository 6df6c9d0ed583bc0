"""The queue in front of a stream: order, bound, and joining while a write is under way."""

from __future__ import annotations

import asyncio

from geokv.core.limits import PEER_WRITE_BYTES_MAX
from geokv.runtime.outbound import Budget, Outbound
from tests.runtime.waiting import until


class SlowStream:
    """A write that ends when told to."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.gate = asyncio.Event()

    async def write(self, payload: bytes) -> None:
        self.written.append(payload)
        await self.gate.wait()


async def test_first_frame_leaves_at_once_and_the_rest_together() -> None:
    """What is queued while a write is under way leaves in one write, in order."""
    queue, stream = Outbound(Budget(1000)), SlowStream()
    task = asyncio.ensure_future(queue.run(stream.write))
    assert queue.put(b"a")
    await until(lambda: stream.written == [b"a"], "the first write")
    assert all(queue.put(b"%d" % number) for number in range(9))
    stream.gate.set()
    await until(lambda: len(stream.written) == 2, "the second write")
    assert stream.written[1] == b"012345678"
    task.cancel()


async def test_one_write_has_an_upper_bound() -> None:
    """Joined writes stay below PEER_WRITE_BYTES_MAX; one larger frame goes alone."""
    queue, stream = Outbound(Budget(10 * PEER_WRITE_BYTES_MAX)), SlowStream()
    stream.gate.set()
    sizes = [PEER_WRITE_BYTES_MAX // 2, PEER_WRITE_BYTES_MAX // 2, 1, PEER_WRITE_BYTES_MAX * 2, 5]
    for size in sizes:
        assert queue.put(bytes(size))
    task = asyncio.ensure_future(queue.run(stream.write))
    await until(lambda: sum(map(len, stream.written)) == sum(sizes), "all writes")
    assert list(map(len, stream.written)) == [PEER_WRITE_BYTES_MAX, 1, PEER_WRITE_BYTES_MAX * 2, 5]
    task.cancel()


async def test_full_queue_takes_nothing_and_loses_nothing() -> None:
    """Beyond the budget, which a peer's streams share, `put` refuses; `clear` gives the room back."""
    budget = Budget(10)
    one, other = Outbound(budget), Outbound(budget)
    assert one.put(b"123456")
    assert not other.put(b"12345")
    assert other.put(b"1234")
    assert (budget.used, one.queued_bytes, other.queued_bytes) == (10, 6, 4)
    assert one.clear() == 1
    assert other.put(b"12345")
    assert budget.used == 9
