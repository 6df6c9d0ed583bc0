"""A world in virtual time for the client machine: nodes that answer after a delay, or do not, and callers that note
what they get.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from geokv.errors import GeokvError
from geokv.protocol.client import ClientMachine, ClientSettings
from geokv.protocol.client.messages import (
    CallFailed,
    CallReturned,
    CancelCall,
    ClientEvent,
    Event,
    Failure,
    ForgetAddress,
    OperationsAdded,
    Resolve,
    RingAsk,
    RingMember,
    RingTold,
    SendBatch,
)
from geokv.protocol.client.operations import Kind, Operation, Options, OptionsTable
from geokv.protocol.client.settings import MS, S
from geokv.protocol.effects import Note, Woken
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Detail,
    Outcome,
    ReadBatch,
    ReadReply,
    WriteBatch,
    WriteReply,
)

PARTITIONS = 16
Behaviour = Callable[[Any], Any]
"""Request -> reply, a CallFailed without its number (use `fails`), or None for silence."""


def fails(failure: Failure, message: str = "scripted", retry_after_ms: int = 0) -> Behaviour:
    return lambda request: CallFailed(0, failure, message, retry_after_ms)


def silent(request: Any) -> None:
    return None


def answers(outcome: Outcome, detail: Detail | None = None) -> Behaviour:
    """Each item gets this outcome; the ring is told as usual (see World)."""

    def behave(request: Any) -> Any:
        if isinstance(request, AdminRequest):
            return AdminReply(outcome, message=detail.message if detail else "")
        count = len(request.keys)
        zeros = [0] * count
        details = dict.fromkeys(range(count), detail) if detail else {}
        if isinstance(request, WriteBatch):
            return WriteReply([outcome] * count, zeros, zeros, zeros, "n", 0, 1, details)  # type: ignore[arg-type]
        return ReadReply([outcome] * count, [None] * count, zeros, zeros, "n", 0, 1, details)  # type: ignore[arg-type]

    return behave


class World:
    """Nodes by name, "eu-1" at address "eu-1:1". `behaviours` replaces what a node does with batches and admin
    requests, `ring_behaviours` what it does when it is asked for the ring.
    """

    def __init__(self, sizes: dict[str, int] | None = None, delay_us: int = 1 * MS, seed: int = 1, **settings: Any) -> None:
        self.sizes = sizes or {"eu": 3}
        self.delay_us = delay_us
        self.now_us = 10 * S
        self.ring_version = 5
        self.hlc = 1000
        self.members = [
            RingMember(f"{dc}-{number}", dc, "abc"[number % 3], 1.0, f"{dc}-{number}:1")
            for dc, count in self.sizes.items()
            for number in range(1, count + 1)
        ]
        first = next(iter(self.sizes))
        settings.setdefault("addresses", (f"{first}-1:1",))
        settings.setdefault("dc", first)
        self.machine = ClientMachine(ClientSettings(**settings), random.Random(seed))
        self.table = OptionsTable()
        self.behaviours: dict[str, Behaviour] = {}
        self.ring_behaviours: dict[str, Behaviour] = {}
        self.sent: list[tuple[int, SendBatch]] = []
        self.under_way: dict[int, SendBatch] = {}
        self.cancelled: list[int] = []
        self.forgotten: list[str] = []
        self.told: dict[int, Any] = {}
        self.told_at_us: dict[int, int] = {}
        self.events: list[ClientEvent] = []
        self.notes: Counter[str] = Counter()
        self._kept: list[Operation] = []  # so that no id is used twice
        self._queue: list[tuple[int, int, Event]] = []
        self._sequence = 0

    # --- what callers do
    # ------------------------------------------------------------------------------------------------

    def options(self, kind: Kind = Kind.WRITE, namespace: str = "default", **fields: Any) -> Options:
        names = ("level", "replicas", "ttl_ms", "replicated_to", "repair_before", "has_contexts", "timeout_us")
        defaults = Options(kind, namespace)
        return self.table.get(kind, namespace, *(fields.get(name, getattr(defaults, name)) for name in names))

    def operation(
        self,
        key: str = "k",
        value: Any = b"v",
        kind: Kind = Kind.WRITE,
        timeout_us: int = 5 * S,
        options: Options | None = None,
    ) -> Operation:
        value = value if kind in (Kind.WRITE, Kind.ADMIN) else None
        return Operation(options or self.options(kind), key.encode(), value, self.now_us, self.now_us + timeout_us)

    def put(self, *keys: str, **fields: Any) -> list[Operation]:
        return self.add([self.operation(key, **fields) for key in keys])

    def get(self, *keys: str, **fields: Any) -> list[Operation]:
        return self.add([self.operation(key, kind=Kind.READ, **fields) for key in keys])

    def add(self, operations: list[Operation]) -> list[Operation]:
        self.handle(OperationsAdded(operations))
        return operations

    def result(self, operation: Operation) -> Any:
        """("ok", entry of the reply), or the error; KeyError where it was not told yet."""
        return self.told[id(operation)]

    def is_told(self, operation: Operation) -> bool:
        return id(operation) in self.told

    # --- time
    # -----------------------------------------------------------------------------------------------------------

    def run(self, for_us: int) -> None:
        """Let time pass, delivering answers and waking the machine exactly when it asked to be woken."""
        until_us = self.now_us + for_us
        steps = 0
        while True:
            steps += 1
            assert steps < 200_000, "the machine does not come to rest"
            wake_us = self.machine.wake_at_us()
            answer_us = self._queue[0][0] if self._queue else None
            due = [at for at in (wake_us, answer_us) if at is not None]
            if not due or min(due) > until_us:
                break
            self.now_us = max(self.now_us, min(due))
            if answer_us is not None and answer_us <= self.now_us:
                self.handle(heappop(self._queue)[2])
            else:
                self.handle(Woken())
        self.now_us = until_us

    def run_until_told(self, *operations: Operation, limit_us: int = 60 * S) -> None:
        started_us = self.now_us
        while not all(map(self.is_told, operations)):
            assert self.now_us - started_us < limit_us, "not told in time"
            self.run(1 * MS)

    def handle(self, event: Event) -> None:
        if isinstance(event, CallReturned | CallFailed):
            self.under_way.pop(event.call, None)
        for effect in self.machine.handle(event, self.now_us):
            match effect:
                case SendBatch():
                    self._send(effect)
                case CancelCall(call):
                    self.cancelled.append(call)
                    self.under_way.pop(call, None)
                case Resolve():
                    self._resolve(effect)
                case ClientEvent():
                    self.events.append(effect)
                case Note(name, count):
                    self.notes[name] += count
                case ForgetAddress(address):
                    self.forgotten.append(address)

    # --- nodes
    # ------------------------------------------------------------------------------------------------------------

    def answer_later(self, event: Event, after_us: int) -> None:
        self._sequence += 1
        heappush(self._queue, (self.now_us + after_us, self._sequence, event))

    def dark(self, dc: str) -> None:
        """A black hole: nothing that goes to this datacenter is ever answered."""
        for member in self.members:
            if member.dc == dc:
                self.behaviours[member.name] = self.ring_behaviours[member.name] = silent

    def refuse(self, *names: str) -> None:
        for name in names:
            self.behaviours[name] = self.ring_behaviours[name] = fails(Failure.REFUSED, "connection refused")

    def heal(self) -> None:
        self.behaviours.clear()
        self.ring_behaviours.clear()

    def ring(self, answered_by: str) -> RingTold:
        return RingTold("test", PARTITIONS, self.ring_version, list(self.members), dict.fromkeys(self.sizes, 3), answered_by)

    def batches(self, kind: type = WriteBatch) -> list[SendBatch]:
        return [effect for _, effect in self.sent if isinstance(effect.request, kind)]

    def nodes_asked(self, kind: type = WriteBatch) -> list[str]:
        return [effect.address.split(":")[0] for effect in self.batches(kind)]

    def _send(self, effect: SendBatch) -> None:
        assert effect.timeout_us > 0
        self.sent.append((self.now_us, effect))
        self.under_way[effect.call] = effect
        name = effect.address.split(":")[0]
        is_ring = isinstance(effect.request, RingAsk)
        behave = (self.ring_behaviours if is_ring else self.behaviours).get(name)
        reply = behave(effect.request) if behave else self._serve(name, effect.request)
        if reply is None:
            return
        if isinstance(reply, CallFailed):
            event: Event = CallFailed(effect.call, reply.failure, reply.message, reply.retry_after_ms)
        else:
            event = CallReturned(effect.call, reply, 0 if is_ring else self.ring_version)
        self.answer_later(event, self.delay_us)

    def _serve(self, name: str, request: Any) -> Any:
        if isinstance(request, RingAsk):
            return self.ring(name)
        if isinstance(request, AdminRequest):
            return AdminReply(Outcome.APPLIED, {"node": name})
        count = len(request.keys)
        self.hlc += 1
        if isinstance(request, WriteBatch):
            return WriteReply([0] * count, [self.hlc] * count, [2] * count, [1] * count, name, self.hlc, 1)
        assert isinstance(request, ReadBatch)
        return ReadReply([0] * count, [b"v"] * count, [1] * count, [2] * count, name, self.hlc, 1)

    def _resolve(self, effect: Resolve) -> None:
        for operation, told in effect.pairs():
            assert id(operation) not in self.told, "an operation was told twice"
            self._kept.append(operation)
            self.told[id(operation)] = told if isinstance(told, GeokvError) else ("ok", effect.dc)
            self.told_at_us[id(operation)] = self.now_us
