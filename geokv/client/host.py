"""The asyncio host of the client machine: sockets, timers, and telling the callers. It decides nothing.

    add(operation) --once per turn of the loop--> machine --effects--> gRPC calls, results, one timer

Invariants: everything here runs on one event loop. Each call is a task of this host; it ends as one event, or is
cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import Any, Final, Protocol, cast

import grpc.aio

from geokv.client import wire
from geokv.client.results import CallFacts, CellPutResult, CellResult, GetResult, PutResult
from geokv.errors import GeokvError, InvalidRequest, WireError
from geokv.protocol.client import ClientMachine, ClientSettings
from geokv.protocol.client.messages import (
    CallFailed,
    CancelCall,
    ClientEvent,
    Closed,
    Effect,
    Event,
    Failure,
    ForgetAddress,
    OperationsAbandoned,
    OperationsAdded,
    Resolve,
    RingAsk,
    SendBatch,
)
from geokv.protocol.client.operations import Operation
from geokv.protocol.effects import Note, Woken
from geokv.protocol.requests import ReadReply, Request, WriteReply
from geokv.runtime.credentials import open_channel
from geokv.runtime.methods import Method
from geokv.version import __version__

logger = logging.getLogger("geokv")
_TRANSPORT_SLACK_S: Final = 0.25  # the machine keeps the time; gRPC's own deadline only cleans up
_LEVELS: Final = {
    "failover": logging.WARNING,
    "failback": logging.INFO,
    "node_down": logging.WARNING,
    "node_up": logging.INFO,
}


class Told(Protocol):
    """What an operation of ours can do beside what the machine sees."""

    started_us: int

    def succeed(self, result: Any) -> None: ...

    def fail(self, error: GeokvError) -> None: ...


def now_us() -> int:
    return monotonic_ns() // 1000


class Host:
    """One client machine on the running loop. `on_event` is told of failovers and of nodes going down and up."""

    def __init__(self, settings: ClientSettings, on_event: Callable[[ClientEvent], object] | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.machine = ClientMachine(settings, random.Random())
        self.counters: dict[str, int] = {}
        self._on_event = on_event
        self._arrived: list[Operation] = []
        self._abandoned: list[Operation] = []
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._links: dict[str, _Link] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us = 0
        self._closing: set[asyncio.Task[None]] = set()
        metadata = [("geokv-client", f"geokv-python/{__version__}")]
        if settings.dc:
            metadata.append(("geokv-dc", settings.dc))
        self._metadata = tuple(metadata)
        self._is_closed = False

    # --- in ---------------------------------------------------------------------------------------------------------

    def add(self, operation: Operation) -> None:
        """Everything that is added in one turn of the loop reaches the machine together, at once."""
        arrived = self._arrived
        if not arrived:
            self.loop.call_soon(self._drain)
        arrived.append(operation)

    def add_many(self, operations: list[Operation]) -> None:
        """As `add`: many callers with one or two each make one batch."""
        if not self._arrived:
            self.loop.call_soon(self._drain)
        self._arrived.extend(operations)

    def add_all(self, operations: list[Operation]) -> None:
        """What was gathered already reaches the machine now."""
        self._handle(OperationsAdded(operations))

    def abandon(self, operation: Operation) -> None:
        if not self._abandoned:
            self.loop.call_soon(self._drain_abandoned)
        self._abandoned.append(operation)

    def _drain(self) -> None:
        operations, self._arrived = self._arrived, []
        self._handle(OperationsAdded(operations))

    def _drain_abandoned(self) -> None:
        operations, self._abandoned = self._abandoned, []
        self._handle(OperationsAbandoned(operations))

    def _wake(self) -> None:
        self._timer = None
        self._handle(Woken())

    # --- the machine
    # ----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        for effect in self.machine.handle(event, now_us()):
            self._perform(effect)
        due_us = self.machine.wake_at_us()
        if due_us is not None and (self._timer is None or due_us < self._timer_us):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_us = due_us
            self._timer = self.loop.call_later(max(0, due_us - now_us()) / 1e6, self._wake)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendBatch(number, address, request, timeout_us):
                self._send(number, address, request, timeout_us / 1e6)
            case Resolve():
                self._resolve(effect)
            case Note(name, count):
                self.counters[name] = self.counters.get(name, 0) + count
            case CancelCall(number):
                if number in self._tasks:
                    self._tasks.pop(number).cancel()
            case ClientEvent():
                self._tell_subscriber(effect)
            case ForgetAddress(address):
                if link := self._links.pop(address, None):
                    self._close_later(link)

    def _resolve(self, effect: Resolve) -> None:
        reply, errors = effect.reply, effect.errors
        operations = cast("list[Told | None]", effect.operations)
        if reply is None:
            for index, operation in enumerate(operations):
                if operation is not None:
                    operation.fail(errors[index])
            return
        if isinstance(reply, WriteReply | ReadReply):
            options = next(one for one in effect.operations if one is not None).options
            facts = CallFacts(reply.coordinator, effect.dc, effect.replicas, options.level)
            _tell(operations, reply, errors, facts, now_us())
            return
        for operation in operations:
            if operation is not None:
                operation.succeed(reply)

    def _tell_subscriber(self, event: ClientEvent) -> None:
        self.counters[f"client.{event.kind}"] = self.counters.get(f"client.{event.kind}", 0) + 1
        logger.log(_LEVELS[event.kind], "%s: dc=%s node=%s %s", event.kind, event.dc, event.node or "-", event.reason)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                logger.exception("on_event raised; the client goes on")

    # --- calls
    # ----------------------------------------------------------------------------------------------------------

    def _send(self, number: int, address: str, request: Request | RingAsk, timeout_s: float) -> None:
        """Begin a call now, and wait for it in a task of its own."""
        try:
            method, payload = wire.encode(request)
        except InvalidRequest as error:
            self.loop.call_soon(self._handle, CallFailed(number, Failure.UNWRITABLE, error.message))
            return
        try:
            link = self._links.get(address) or self._open(address)
            call = link.methods[method.path](payload, timeout=timeout_s + _TRANSPORT_SLACK_S, metadata=self._metadata)
        except Exception as error:
            self.loop.call_soon(self._handle, _fault(number, error))
            return
        task = self._tasks[number] = self.loop.create_task(self._answer(number, method, call))
        task.add_done_callback(self._call_done)

    async def _answer(self, number: int, method: Method, call: Awaitable[bytes]) -> None:
        try:
            event: Event = wire.decode(number, method, await call)
        except grpc.aio.AioRpcError as error:
            event = wire.failure_of(number, error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            event = _fault(number, error)
        self._tasks.pop(number, None)
        self._handle(event)

    def _call_done(self, task: asyncio.Task[None]) -> None:
        """A task that ended by an exception is a fault of this program: say so, it would be lost otherwise."""
        if not task.cancelled() and task.exception() is not None:
            logger.error("a call's task failed", exc_info=task.exception())

    def _open(self, address: str) -> _Link:
        link = self._links[address] = _Link(address)
        return link

    def _close_later(self, link: _Link) -> None:
        task = self.loop.create_task(link.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def close_soon(self) -> None:
        task = self.loop.create_task(self.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Tell everybody who still waits, and close the connections."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._arrived:
            self._drain()
        self._handle(Closed())
        if self._timer is not None:
            self._timer.cancel()
        links = list(self._links.values())
        self._links.clear()
        others = self._closing - {asyncio.current_task()}
        await asyncio.gather(*(link.channel.close() for link in links), *others, return_exceptions=True)


class _Link:
    """A channel and its methods, bytes in and bytes out."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.methods: dict[str, Any] = {method.path: self.channel.unary_unary(method.path) for method in wire.METHODS}


def _fault(number: int, error: Exception) -> CallFailed:
    logger.error("a call failed in the client itself", exc_info=error)
    return CallFailed(number, Failure.FAILED, f"{type(error).__name__}: {error}")


def _tell(
    operations: list[Told | None],
    reply: WriteReply | ReadReply,
    errors: dict[int, GeokvError],
    facts: CallFacts,
    at_us: int,
) -> None:
    """One result per operation. The loops stand here twice because they are most of what an operation costs."""
    if errors or None in operations or reply.contexts:
        for index, operation in enumerate(operations):
            if operation is not None:
                error = errors.get(index)
                if error is not None:
                    operation.fail(error)
                    continue
                try:
                    result = _result(reply, index, facts, at_us - operation.started_us)
                except WireError as fault:
                    operation.fail(fault)
                else:
                    operation.succeed(result)
        return
    all_of_them = cast("list[Told]", operations)
    if isinstance(reply, WriteReply):
        columns = zip(all_of_them, reply.outcomes, reply.versions, reply.replicas, reply.dcs, strict=True)
        for told, outcome, version, replicas, dcs in columns:
            told.succeed(PutResult(outcome, version, replicas, dcs, facts, at_us - told.started_us))
    else:
        found = zip(all_of_them, reply.values, reply.versions, reply.replicas, strict=True)
        for told, value, version, replicas in found:
            told.succeed(GetResult(value, value is not None, version, replicas, facts, at_us - told.started_us))


def _result(reply: WriteReply | ReadReply, index: int, facts: CallFacts, elapsed_us: int) -> PutResult | GetResult:
    version, replicas = reply.versions[index], reply.replicas[index]
    if reply.contexts:
        context = reply.contexts[index]
        if isinstance(reply, ReadReply):
            return CellResult(reply.policy, reply.values[index], context, replicas, facts, elapsed_us)
        return CellPutResult(reply.outcomes[index], version, replicas, reply.dcs[index], facts, elapsed_us, context)
    if isinstance(reply, WriteReply):
        return PutResult(reply.outcomes[index], version, replicas, reply.dcs[index], facts, elapsed_us)
    value = reply.values[index]
    return GetResult(value, value is not None, version, replicas, facts, elapsed_us)
