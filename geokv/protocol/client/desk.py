"""What the parts of one client share: settings, the calls under way, timers, and the list that effects are put on.

Invariants: `now_us` is set by the machine before each event. A call ends exactly once (`end`), and everything that
counts calls under way is counted there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, TypeVar

from geokv.protocol.client.batching import Call, Group
from geokv.protocol.client.messages import CancelCall, Effect, RingAsk, SendBatch
from geokv.protocol.client.nodes import NodeState
from geokv.protocol.client.operations import Operation
from geokv.protocol.client.settings import MS, ClientSettings
from geokv.protocol.effects import Note
from geokv.protocol.requests import Request

_LATE_US = 100 * MS
T = TypeVar("T")


class Desk:
    """Shared by the machine, its health and its bootstrap."""

    def __init__(self, settings: ClientSettings, rng: random.Random) -> None:
        self.settings = settings
        self.rng = rng
        self.effects: list[Effect] = []
        self.now_us = 0
        self.calls: dict[int, Call] = {}
        # No silence is held against a node before this: this process itself was late and may have answers unread.
        self.patience_us = 0
        self.watch: Callable[[Call], None] = lambda call: None
        self._next_call = 0
        self._timers: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._sequence = 0

    # --- effects ----------------------------------------------------------------------------------------------------

    def note(self, name: str, count: int = 1) -> None:
        self.effects.append(Note(name, count))

    def start(
        self,
        node: NodeState | None,
        address: str,
        group: Group | None,
        operations: list[Operation],
        request: Request | RingAsk,
        deadline_us: int,
    ) -> Call:
        """Send a call. The caller of this has already counted it in `group.calls`."""
        self._next_call = number = self._next_call + 1
        call = Call(number, node, address, group, operations, self.now_us, deadline_us)
        self.calls[number] = call
        if node is not None:
            node.calls[number] = call
        self.effects.append(SendBatch(number, address, request, deadline_us - self.now_us))
        self.watch(call)
        return call

    def end(self, call: Call) -> None:
        """The call is over, whatever became of it."""
        call.is_over = True
        del self.calls[call.number]
        if call.node is not None:
            del call.node.calls[call.number]
        if call.group is not None:
            call.group.calls -= 1

    def cancel(self, call: Call) -> None:
        self.end(call)
        self.effects.append(CancelCall(call.number))

    # --- time
    # -----------------------------------------------------------------------------------------------------------

    def at(self, when_us: int, act: Callable[[Any], None], subject: Any) -> None:
        """Call `act(subject)` at `when_us`. It cannot be taken back: `act` looks whether it is still wanted."""
        self._sequence += 1
        heappush(self._timers, (when_us, self._sequence, act, subject))

    def wake_at_us(self) -> int | None:
        timers = self._timers
        while timers:
            subject = timers[0][3]
            if subject.__class__ is Call and subject.is_over:
                heappop(timers)
                continue
            return timers[0][0]
        return None

    def begin(self, now_us: int) -> None:
        """An event begins. Where a timer is long overdue this process stood still, and the nodes are not to blame."""
        self.now_us = now_us
        due_us = self.wake_at_us()
        if due_us is not None and now_us - due_us > _LATE_US:
            self.patience_us = now_us + _LATE_US
            self.note("client.late")

    def run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now_us:
            _, _, act, subject = heappop(timers)
            act(subject)

    def planned(self, kind: type[T]) -> list[T]:
        """What timers were set for, of one kind."""
        return [subject for _, _, _, subject in self._timers if isinstance(subject, kind)]

    def clear(self) -> None:
        self._timers.clear()

    def backoff_us(self, base_us: int, limit_us: int, failures: int) -> int:
        """Doubled per failure up to the limit, less up to half at random, so that clients do not come back in step."""
        full = min(limit_us, base_us << min(failures, 16))
        return round(full * (1 - self.rng.random() / 2))
