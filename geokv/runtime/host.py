"""Runs one node for as long as the process lives: recover, serve, and when an incarnation ends, begin anew from the disk.

    open (a thread) -> Run + Transport -> ended -> calls in progress are told -> pause 100 ms doubling to 5 s -> open ...

A failed append or sync, a refusal by a peer, or a bug in the machine ends the incarnation as a crash would: what is in
memory is dropped, and the next run knows only what the disk says.

Invariants: at most one run at a time; nothing of an older one reaches a newer one. A call that was in progress when a run
ended is never answered with what would allow a blind retry of a write.

Not here: any decision about stored values; the machine makes those.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from typing import Any, Final

import grpc
import grpc.aio

from geokv.core.limits import CALLS_MAX
from geokv.core.topology import Topology
from geokv.errors import GeokvError, Overloaded, Unavailable
from geokv.protocol.requests import (
    AdminReply,
    Detail,
    Outcome,
    ReadBatch,
    ReadReply,
    Reply,
    Request,
    WriteBatch,
    WriteReply,
)
from geokv.runtime.counters import Counters
from geokv.runtime.machine import Machine, Opener
from geokv.runtime.routes import Purpose
from geokv.runtime.run import Run
from geokv.runtime.supervisor import Supervisor
from geokv.runtime.transport import Transport
from geokv.runtime.wire.peer import Hello

RECOVER_S_MIN: Final = 0.1
RECOVER_S_MAX: Final = 5.0
STEADY_S: Final = 30.0  # a run that lasted this long was a good one: the next pause is short again
BUSY_S: Final = 0.3  # a node that was asked so lately has clients that will ask again
RETRY_AFTER_S: Final = 0.1
# A thread that comes back from fdatasync waits this long for a busy loop to hand over the interpreter; with the default
# of 5 ms a commit of 0.1 ms took 5.
SWITCH_INTERVAL_S: Final = 0.0005
# Most of what lives long is bytes in dictionaries, which can be in no cycle. The default of 700 new containers walks the
# young ones for each batch or two, and the old generation, all of the memtable's dictionaries, far too often.
GC_THRESHOLDS: Final = (50_000, 20, 100)
_log = logging.getLogger("geokv.runtime")


def tune_interpreter() -> None:
    """Settings of the whole process, for a process that is a node and nothing else."""
    if hasattr(os, "SCHED_BATCH"):
        # A woken thread of a node does not push another off its core: on a full machine a tenth more writes.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)


def reply_of_ended_run(request: Request, reason: str) -> Reply:
    """The truth about a call whose run ended: a write may have been numbered, a read was not answered."""
    why = f"the node began anew while this was in progress ({reason})"
    if isinstance(request, WriteBatch):
        count = len(request.keys)
        details = {index: Detail(message=why) for index in range(count)}
        zeros = [0] * count
        return WriteReply([Outcome.AMBIGUOUS] * count, zeros, zeros, zeros, "", 0, 0, details)
    if isinstance(request, ReadBatch):
        count = len(request.keys)
        details = {index: Detail(message=why) for index in range(count)}
        return ReadReply([Outcome.UNAVAILABLE] * count, [None] * count, [0] * count, [0] * count, "", 0, 0, details)
    return AdminReply(Outcome.AMBIGUOUS, message=why)


class Host:
    """The owner of runs. `failed` is set when it can go on no more: the process has to end."""

    def __init__(
        self,
        name: Hello,
        topology: Topology,
        opener: Opener,
        counters: Counters,
    ) -> None:
        self._name = name
        self._topology = topology
        self._opener = opener
        self.counters = counters
        self._run: Run | None = None
        self._transport: Transport | None = None
        self._supervisor = Supervisor(counters, self._loop_failed)
        self._is_draining = False
        self._asked_s = -BUSY_S  # when a client has asked last, by the loop's clock
        self._why_not = "the node is recovering from its disk"
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Recover and serve. Raises StorageError when the first recovery fails: an operator is there to read it."""
        await self._begin()
        self._supervisor.once("runs of the node", self._keep_running())

    async def drain(self, seconds: float) -> bool:
        """Take no new calls, wait for those in progress; True when all were answered in time.

        Where clients are at work, new calls go on being refused for a while: a client that has heard of it once goes
        elsewhere, while a call that meets the end of the connection is one of which nobody knows whether it began.
        """
        self._is_draining = True
        self._why_not = "the node is shutting down"
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        while self._run is not None and self._run.calls_waiting():
            if loop.time() > begun_s + seconds:
                return False
            await asyncio.sleep(0.01)
        while loop.time() < min(begun_s + seconds, self._asked_s + BUSY_S):  # noqa: ASYNC110  # calls move it on
            await asyncio.sleep(0.01)
        return True

    async def close(self, is_in_good_order: bool = False) -> None:
        """End the run, with its log synced; in good order with a last flush."""
        self._is_draining = True
        await self._supervisor.close()
        if self._run is not None and is_in_good_order:
            await self._run.finish()
        await self._end("the node is shutting down")

    # --- what others ask of it

    @property
    def machine(self) -> Machine | None:
        return self._run.machine if self._run is not None else None

    @property
    def why_not_serving(self) -> str:
        """Empty while the node takes calls."""
        if self._run is None or self._is_draining:
            return self._why_not
        return self._run.machine.is_refusing

    @property
    def takes_calls(self) -> bool:
        return self._run is not None and not self._is_draining

    def ask(self, request: Request) -> tuple[int, asyncio.Future[Reply]]:
        """Give a client's batch to the node. Raises Unavailable or Overloaded where it was not even begun."""
        run = self._run
        self._asked_s = asyncio.get_running_loop().time()
        if run is None or not self.takes_calls:
            raise Unavailable(self._why_not)
        if run.calls_waiting() >= CALLS_MAX:
            self.counters.add("calls.refused_full")
            raise Overloaded(f"{CALLS_MAX} calls are in progress here", retry_after=RETRY_AFTER_S)
        return run.ask(request)

    async def read_snapshot(self, name: str, path: str, offset: int, length: int) -> bytes:
        """Bytes of a file of a snapshot. Raises Unavailable, StorageError, InvalidRequest."""
        run = self._run
        if run is None:
            raise Unavailable(self._why_not)
        return await asyncio.to_thread(run.read_snapshot, name, path, offset, length)

    def call_gone(self, call: int) -> None:
        if self._run is not None:
            self._run.call_gone(call)

    async def accept(self, purpose: Purpose, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """A peer's stream."""
        if self._transport is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._name.node}: {self._why_not}")
        await self._transport.accept(purpose, context)

    def keys_rotated(self) -> None:
        """New files are to be written with another key: the log goes on in a new one soon."""
        if self._run is not None:
            self._run.make_room()

    def metrics(self) -> dict[str, int | float]:
        """All counters: the machine's and the host's."""
        found: dict[str, int | float] = dict(self.counters.as_dict())
        if self._transport is not None:
            found["transport.queued_bytes"] = self._transport.queued_bytes()
            found["transport.peers_connected"] = len(self._transport.connected())
        if self._run is not None:
            found["calls.in_progress"] = self._run.calls_waiting()
            found.update(self._run.machine.metrics())
        return found

    # --- one run after the other

    async def _begin(self) -> None:
        opened = await asyncio.to_thread(self._opener)
        # What recovery made lives as long as the run; out of the collector's sight it costs nothing any more.
        gc.collect()
        gc.freeze()
        run = Run(opened, self.counters, self._send)
        own = Hello(self._name.cluster, self._name.dc, self._name.node, run.machine.incarnation)
        transport = Transport(self._topology, own, run, self.counters)
        self._run, self._transport = run, transport
        self.counters.add("node.runs")
        run.start()
        transport.start()

    def _send(self, peer: str, message: object) -> None:
        if self._transport is not None:
            self._transport.send(peer, message)

    async def _end(self, reason: str) -> None:
        run, transport = self._run, self._transport
        self._run = self._transport = None
        if run is None or transport is None:
            return
        run.end(reason)
        for request, future in run.take_calls():
            future.set_result(reply_of_ended_run(request, reason))
        await transport.close()
        await run.close()
        gc.unfreeze()

    async def _keep_running(self) -> None:
        pause_s = RECOVER_S_MIN
        while self._run is not None:
            begun = asyncio.get_running_loop().time()
            reason = await asyncio.shield(self._run.ended)
            _log.error("this incarnation has ended, a new one begins from the disk: %s", reason)
            self._why_not = f"the node begins anew from its disk: {reason}"
            await self._end(reason)
            if asyncio.get_running_loop().time() - begun > STEADY_S:
                pause_s = RECOVER_S_MIN
            pause_s = await self._recover(pause_s)

    async def _recover(self, pause_s: float) -> float:
        """Begin anew, with growing pauses until it works; the pause that the next time begins with."""
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(RECOVER_S_MAX, pause_s * 2)
            try:
                await self._begin()
                return pause_s
            except GeokvError as error:
                self.counters.add("node.recoveries_failed")
                self._why_not = f"the node cannot recover from its disk: {error}"
                _log.error("%s", self._why_not)

    def _loop_failed(self, name: str, error: BaseException) -> None:
        """Nobody would begin a new run any more: the process has to end."""
        _log.critical("%s ended: %r", name, error)
        if not self.failed.done():
            self.failed.set_result(error)
