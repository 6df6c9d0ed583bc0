"""Clients of the simulated world: the SDK's own machine in virtual time, and a plain one for tests that want to name the node.

Both write what they ask and what they are told into the history. A batch's `done` is called when each of its items was told
something; what a call brought to nobody (timed out, lost) stays without an outcome: it may have happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from geokv.core.cells.operation import Operation as CellOperation
from geokv.core.cells.wire import decode_value, encode_operation
from geokv.core.quorum import Consistency
from geokv.errors import GeokvError
from geokv.protocol.client import ClientMachine, ClientSettings
from geokv.protocol.client.messages import (
    CallFailed,
    CallReturned,
    CancelCall,
    ClientEvent,
    Effect,
    Event,
    Failure,
    ForgetAddress,
    OperationsAdded,
    Resolve,
    RingTold,
    SendBatch,
)
from geokv.protocol.client.operations import Kind, Operation, OptionsTable
from geokv.protocol.effects import Note, Woken
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Outcome,
    ReadBatch,
    ReadReply,
    Reply,
    WriteBatch,
    WriteReply,
)
from geokv.sim import history
from geokv.sim.calls import Call
from geokv.sim.clocks import Clocks
from geokv.sim.schedule import SECOND, Timer

if TYPE_CHECKING:
    from geokv.sim.world import World

Items = Sequence[tuple[bytes, bytes | None]]
TIMEOUT_US = 2 * SECOND


@dataclass(frozen=True, slots=True)
class Ask:
    """The options of a batch, as a caller of the SDK states them. `replicas`: explicit w or r."""

    namespace: str = "default"
    level: Consistency = Consistency.QUORUM
    replicas: int = 0
    ttl_ms: int = 0
    replicated_to: int = 0
    repair_before: bool = False
    timeout_us: int = TIMEOUT_US


QUORUM = Ask()


@dataclass(frozen=True, slots=True)
class Update:
    """One update of a namespace whose policy is not `lww`: `name` is the operation of its type, or "put" and "delete".

    `context` is what is handed back, `saw` the values that were read with it (None: no context).
    """

    key: bytes
    name: str
    value: bytes | None = None
    amount: int = 0
    context: bytes = b""
    saw: frozenset[bytes] | None = None

    @property
    def is_plain(self) -> bool:
        return self.name in ("put", "delete")

    def packed(self) -> bytes | None:
        """What travels as the value."""
        if self.is_plain:
            return self.value
        arguments = (self.amount,) if self.amount else () if self.value is None else (self.value,)
        return encode_operation(CellOperation(self.name, arguments))


class Batch:
    """Operations asked together. `errors[i]` where the SDK raised for item i."""

    def __init__(self, operations: list[history.Operation], done: Callable[[Batch], None] | None) -> None:
        self.operations = operations
        self.errors: dict[int, GeokvError] = {}
        self.left = len(operations)
        self._done = done

    @property
    def is_done(self) -> bool:
        return self.left == 0

    @property
    def outcomes(self) -> list[Outcome | None]:
        return [operation.outcome for operation in self.operations]

    @property
    def values(self) -> list[bytes | None]:
        return [operation.value for operation in self.operations]

    def told(self) -> None:
        self.left -= 1
        if not self.left and self._done is not None:
            self._done(self)


class Client(Protocol):
    """What a workload asks."""

    name: str
    dc: str

    def write(self, items: Items, ask: Ask = QUORUM, done: Callable[[Batch], None] | None = None) -> Batch: ...

    def read(self, keys: Sequence[bytes], ask: Ask = QUORUM, done: Callable[[Batch], None] | None = None) -> Batch: ...


class _Recorder:
    """What both clients share: the history."""

    def __init__(self, world: World, name: str, dc: str) -> None:
        self.world = world
        self.name = name
        self.dc = dc
        world.network.attach(name, dc)

    def _began_writes(self, items: Items, ask: Ask) -> list[history.Operation]:
        begin, now_us = self.world.history.begin, self.world.now_us
        return [
            begin(
                self.name,
                self.dc,
                "delete" if value is None else "put",
                ask.namespace,
                key,
                ask.level,
                now_us,
                value,
                ask.ttl_ms,
                ask.replicas,
            )
            for key, value in items
        ]

    def _began_reads(self, keys: Sequence[bytes], ask: Ask) -> list[history.Operation]:
        begin, now_us = self.world.history.begin, self.world.now_us
        return [begin(self.name, self.dc, "get", ask.namespace, key, ask.level, now_us, explicit=ask.replicas) for key in keys]

    def _told(self, operation: history.Operation, reply: WriteReply | ReadReply | None, index: int) -> None:
        operation.ended_us = self.world.now_us
        if reply is None:
            return
        operation.outcome = Outcome(reply.outcomes[index])
        operation.version = reply.versions[index]
        operation.replicas = reply.replicas[index]
        operation.coordinator = reply.coordinator
        operation.coordinator_dc = self.world.dc_of.get(reply.coordinator, "")
        if isinstance(reply, ReadReply):
            operation.value = value = reply.values[index]
            if reply.policy and value is not None:
                operation.shown = decode_value(reply.policy, value)
            operation.answered_as = reply.policy
            if reply.contexts:
                operation.context = reply.contexts[index]
        else:
            operation.answered_as = operation.policy if reply.contexts else ""
            operation.dcs = reply.dcs[index]
        self.world.trace.add(self.name, "told", f"{operation.index} {operation.outcome.name} {operation.version:x}")


# --- the SDK --------------------------------------------------------------------------------------------------------


class _SdkOperation(Operation):
    """An operation of the SDK that knows which item of which batch it is."""

    __slots__ = ("batch", "index", "tell")
    batch: Batch
    index: int
    tell: Callable[[Reply | None, GeokvError | None], None] | None


class SdkClient(_Recorder):
    """The SDK: `ClientMachine` hosted in virtual time."""

    def __init__(
        self, world: World, name: str, dc: str, addresses: Sequence[str], failover: Sequence[str], rng: random.Random
    ) -> None:
        super().__init__(world, name, dc)
        self.machine = ClientMachine(ClientSettings(tuple(addresses), dc, tuple(failover)), rng)
        self.notes: dict[str, int] = {}
        self.events: list[ClientEvent] = []
        self._clocks = Clocks(world.schedule, rng, world.options.clocks)
        self._options = OptionsTable()
        self._calls: dict[int, Call] = {}
        self._wake: Timer | None = None

    # --- asking -----------------------------------------------------------------------------------------------------

    def write(self, items: Items, ask: Ask = QUORUM, done: Callable[[Batch], None] | None = None) -> Batch:
        batch = Batch(self._began_writes(items, ask), done)
        self._add(Kind.WRITE, ask, [(key, value) for key, value in items], batch)
        return batch

    def read(self, keys: Sequence[bytes], ask: Ask = QUORUM, done: Callable[[Batch], None] | None = None) -> Batch:
        batch = Batch(self._began_reads(keys, ask), done)
        self._add(Kind.READ, ask, [(key, None) for key in keys], batch)
        return batch

    def update(self, policy: str, updates: Sequence[Update], ask: Ask, done: Callable[[Batch], None] | None = None) -> Batch:
        """Ask for updates in a namespace of that policy, all of one kind: puts and deletes, or operations of its type."""
        operations = []
        for one in updates:
            began = self.world.history.begin(
                self.name, self.dc, one.name, ask.namespace, one.key, ask.level, self.world.now_us, one.value, 0, ask.replicas
            )
            began.policy, began.amount, began.saw = policy, one.amount, one.saw
            operations.append(began)
        batch = Batch(operations, done)
        contexts = [one.context for one in updates] if any(one.context for one in updates) else None
        items = [(one.key, one.packed()) for one in updates]
        self._add(Kind.WRITE, ask, items, batch, contexts, is_update=not updates[0].is_plain)
        return batch

    def show(self, policy: str, keys: Sequence[bytes], ask: Ask, done: Callable[[Batch], None] | None = None) -> Batch:
        """Read in a namespace of that policy."""
        batch = Batch(self._began_reads(keys, ask), done)
        for operation in batch.operations:
            operation.policy = policy
        self._add(Kind.READ, ask, [(key, None) for key in keys], batch)
        return batch

    def admin(
        self,
        request: AdminRequest,
        done: Callable[[Reply | None, GeokvError | None], None],
        timeout_us: int = TIMEOUT_US,
    ) -> None:
        """Ask a node of the datacenter in use."""
        now_us = self._clocks.monotonic_us()
        operation = _SdkOperation(self._options.get(Kind.ADMIN), b"", request, now_us, now_us + timeout_us)
        operation.batch, operation.index, operation.tell = Batch([], None), 0, done
        self._handle(OperationsAdded([operation]))

    def _add(
        self,
        kind: Kind,
        ask: Ask,
        items: Items,
        batch: Batch,
        contexts: Sequence[bytes] | None = None,
        is_update: bool = False,
    ) -> None:
        now_us = self._clocks.monotonic_us()
        is_far = ask.level is Consistency.EACH_QUORUM or ask.replicated_to > 1
        options = self._options.get(
            kind,
            ask.namespace,
            ask.level,
            ask.replicas,
            ask.ttl_ms,
            ask.replicated_to,
            ask.repair_before,
            contexts is not None,
            ask.timeout_us if is_far else 0,
            is_update,
        )
        operations: list[Operation] = []
        for index, (key, value) in enumerate(items):
            context = contexts[index] if contexts is not None else b""
            operation = _SdkOperation(options, key, value, now_us, now_us + ask.timeout_us, context)
            operation.batch, operation.index, operation.tell = batch, index, None
            operations.append(operation)
        self._handle(OperationsAdded(operations))

    # --- hosting ----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        for effect in self.machine.handle(event, self._clocks.monotonic_us()):
            self._perform(effect)
        self._arm()

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendBatch(call, address, request, timeout_us):
                self._calls[call] = self.world.calls.call(
                    self.name, address, request, timeout_us, lambda reply, failure: self._ended(call, reply, failure)
                )
            case CancelCall(call):
                under_way = self._calls.pop(call, None)
                if under_way is not None:
                    self.world.calls.cancel(self.name, under_way)
            case Resolve():
                self._resolve(effect)
            case Note(name, count):
                self.notes[name] = self.notes.get(name, 0) + count
            case ClientEvent():
                self.events.append(effect)
                self.world.trace.add(self.name, effect.kind, f"{effect.dc} {effect.node}")
            case ForgetAddress():
                pass  # there is no connection to close

    def _ended(self, call: int, reply: Reply | RingTold | None, failure: Failure | None) -> None:
        self._calls.pop(call, None)
        if failure is not None or reply is None:
            failed = failure if failure is not None else Failure.FAILED
            self._handle(CallFailed(call, failed, failed.name.lower()))
        else:
            self._handle(CallReturned(call, reply, 1))

    def _resolve(self, effect: Resolve) -> None:
        reply = effect.reply
        for index, operation in enumerate(effect.operations):
            if operation is None:
                continue
            assert isinstance(operation, _SdkOperation)
            error = effect.errors.get(index)
            if operation.tell is not None:
                operation.tell(reply, error)
                continue
            assert reply is None or not isinstance(reply, AdminReply)
            batch = operation.batch
            if error is not None:
                batch.errors[operation.index] = error
            is_refused = reply is not None and reply.outcomes[index] not in (Outcome.PARTIAL, Outcome.AMBIGUOUS)
            in_doubt = is_refused and getattr(error, "may_have_happened", False)  # by an earlier try: the last one was refused
            self._told(batch.operations[operation.index], None if in_doubt else reply, index)
            batch.told()

    def _arm(self) -> None:
        wake_us = self.machine.wake_at_us()
        if wake_us is None:
            return
        due_us = max(self._clocks.true_us(wake_us), self.world.now_us + 1)
        if self._wake is not None:
            if self._wake.when_us <= due_us:
                return
            self._wake.cancel()
        self._wake = self.world.schedule.at(due_us, self._wake_up)

    def _wake_up(self) -> None:
        self._wake = None
        self._handle(Woken())


# --- a plain one ----------------------------------------------------------------------------------------------------


class DirectClient(_Recorder):
    """Asks the node that `node` names, once, and takes what comes. It hands on the highest HLC that it was told."""

    def __init__(self, world: World, name: str, dc: str, node: str) -> None:
        super().__init__(world, name, dc)
        self.node = node
        self.seen_hlc = 0

    def write(self, items: Items, ask: Ask = QUORUM, done: Callable[[Batch], None] | None = None) -> Batch:
        batch = Batch(self._began_writes(items, ask), done)
        request = WriteBatch(
            ask.namespace,
            [key for key, _ in items],
            [value for _, value in items],
            ask.level,
            ask.replicas,
            ask.ttl_ms,
            ask.replicated_to,
            ask.timeout_us // 1_000,
            self.seen_hlc,
        )
        self._call(request, batch, ask)
        return batch

    def read(self, keys: Sequence[bytes], ask: Ask = QUORUM, done: Callable[[Batch], None] | None = None) -> Batch:
        batch = Batch(self._began_reads(keys, ask), done)
        request = ReadBatch(
            ask.namespace,
            list(keys),
            ask.level,
            ask.replicas,
            ask.timeout_us // 1_000,
            self.seen_hlc,
            ask.repair_before,
        )
        self._call(request, batch, ask)
        return batch

    def put(self, key: bytes, value: bytes, ask: Ask = QUORUM) -> history.Operation:
        """Put one key and wait, in virtual time, until something is told."""
        return self._awaited(self.write([(key, value)], ask))

    def get(self, key: bytes, ask: Ask = QUORUM) -> history.Operation:
        return self._awaited(self.read([key], ask))

    def delete(self, key: bytes, ask: Ask = QUORUM) -> history.Operation:
        return self._awaited(self.write([(key, None)], ask))

    def admin(self, verb: str, arguments: dict[str, object]) -> AdminReply | None:
        """Ask the node, and wait for what it says."""
        answers: list[AdminReply | None] = []

        def done(reply: Reply | RingTold | None, failure: Failure | None) -> None:
            answers.append(reply if isinstance(reply, AdminReply) else None)

        self.world.calls.call(self.name, self.node, AdminRequest(verb, arguments), TIMEOUT_US, done)
        self.world.run_until(lambda: bool(answers), TIMEOUT_US + SECOND)
        return answers[0] if answers else None

    def _awaited(self, batch: Batch) -> history.Operation:
        self.world.run_until(lambda: batch.is_done, 2 * TIMEOUT_US)
        return batch.operations[0]

    def _call(self, request: WriteBatch | ReadBatch, batch: Batch, ask: Ask) -> None:
        def done(reply: Reply | RingTold | None, failure: Failure | None) -> None:
            answered = reply if isinstance(reply, WriteReply | ReadReply) else None
            if answered is not None:
                self.seen_hlc = max(self.seen_hlc, answered.hlc)
            for index, operation in enumerate(batch.operations):
                self._told(operation, answered, index)
                batch.told()

        self.world.calls.call(self.name, self.node, request, ask.timeout_us, done)
