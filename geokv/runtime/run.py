"""One run of a node: events in, effects performed in order, from recovery to the end of the incarnation.

    rpc, transport, threads, timers  -- event -->  machine.handle  -- effects -->  rpc, transport, threads, timers

The machine decides, this performs. Everything here happens on the loop's thread; what may wait for a disk goes to a
thread of its own and comes back as an event.

Invariants: effects are performed in list order. After the end of a run nothing reaches its machine any more: not a
message, not a disk's report. An exception out of the machine ends the run as a crash would: its memory is not to be trusted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from geokv.errors import DiskFull, StorageError
from geokv.protocol.effects import (
    Answer,
    Asked,
    Build,
    Built,
    CallGone,
    Delivered,
    EndIncarnation,
    Event,
    KeepSnapshots,
    Load,
    Loaded,
    Log,
    LogRead,
    Note,
    Pace,
    PeerConnected,
    PeerLost,
    Persist,
    Persisted,
    PersistFailed,
    ReadLog,
    RoomChanged,
    Send,
    SnapshotsKept,
    Stopping,
    Trim,
    WallClockRead,
    Woken,
)
from geokv.protocol.requests import Reply, Request
from geokv.protocol.table import Cells
from geokv.runtime.clock import monotonic_us, wall_us
from geokv.runtime.counters import Counters
from geokv.runtime.machine import Opened
from geokv.runtime.threads import WorkThread

TICK_S: Final = 0.05  # the wall clock is read this often, and stalls of the loop are measured against it
PREPARE_RETRY_S: Final = 1.0
_LEVELS: Final = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_log = logging.getLogger("geokv.node")


class Run:
    """The machine, its log, its threads and its calls. `ended` is set once, with the reason."""

    def __init__(self, opened: Opened, counters: Counters, send: Callable[[str, object], None]) -> None:
        loop = asyncio.get_running_loop()
        self.machine = opened.machine
        self.ended: asyncio.Future[str] = loop.create_future()
        self._opened = opened
        self._counters = counters
        self._send = send
        self._loop = loop
        self._calls: dict[int, tuple[Request, asyncio.Future[Reply]]] = {}
        self._next_call = 0
        self._threads = {name: WorkThread(name, loop) for name in ("commit", "read", "load", "prepare", "build")}
        self._commit = self._threads["commit"].submit
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us: int | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._tick_due_s = 0.0
        self._is_settling = False
        self._is_preparing = False
        self._perform: dict[type, Callable[[Any], None]] = {
            Send: self._on_send,
            Answer: self._on_answer,
            Persist: self._on_persist,
            ReadLog: self._on_read_log,
            Load: self._on_load,
            Build: self._on_build,
            KeepSnapshots: self._on_keep_snapshots,
            Pace: self._on_pace,
            Trim: self._on_trim,
            Note: self._on_note,
            Log: self._on_log,
            EndIncarnation: self._on_end_incarnation,
        }

    def start(self) -> None:
        """Give the machine its first event and begin to keep time."""
        self._tick_due_s = self._loop.time()
        self._on_tick()
        self._commit(self._opened.log.room_bytes, self._room_measured)

    async def finish(self) -> None:
        """Before the end in good order: let the engine flush what it holds in memory, where that is soon done."""
        if self._threads["build"].waiting:
            self.handle(Stopping())  # the job under way fails, and that is no error
        await asyncio.to_thread(self._opened.stop_building)
        await self._built()
        self.handle(Stopping())
        await self._built()

    async def _built(self) -> None:
        while self._threads["build"].waiting and not self.ended.done():  # noqa: ASYNC110  # once in the life of a process
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """Stop, and let what the threads are doing come to its end. The last sync is the caller's."""
        self.end("the run is closed")
        await asyncio.to_thread(self._opened.stop_building)
        for thread in self._threads.values():
            await thread.close()
        await asyncio.to_thread(self._opened.close)

    def end(self, reason: str) -> None:
        """Nothing reaches the machine from here on. Calls in progress are left to `take_calls`."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        for timer in (self._timer, self._tick):
            if timer is not None:
                timer.cancel()

    def take_calls(self) -> list[tuple[Request, asyncio.Future[Reply]]]:
        """The calls that will get no answer from this run."""
        calls = [(request, future) for request, future in self._calls.values() if not future.done()]
        self._calls.clear()
        return calls

    # --- events

    def ask(self, request: Request) -> tuple[int, asyncio.Future[Reply]]:
        """Give the machine a client's batch. The future is resolved by its Answer."""
        self._next_call += 1
        call = self._next_call
        future: asyncio.Future[Reply] = self._loop.create_future()
        self._calls[call] = (request, future)
        self.handle(Asked(call, request))
        return call, future

    def call_gone(self, call: int) -> None:
        if self._calls.pop(call, None) is not None:
            self.handle(CallGone(call))

    def calls_waiting(self) -> int:
        return len(self._calls)

    def delivered(self, peer: str, message: object) -> None:
        self.handle(Delivered(peer, message))

    def peer_connected(self, peer: str, incarnation: int) -> None:
        self.handle(PeerConnected(peer, incarnation))

    def peer_lost(self, peer: str, is_refused: bool) -> None:
        self.handle(PeerLost(peer, is_refused))

    def handle(self, event: Event) -> None:
        """One event through the machine, and its effects, in order. Never raises."""
        if self.ended.done():
            return
        try:
            for effect in self.machine.handle(event, monotonic_us()):
                self._perform[type(effect)](effect)
                if self.ended.done():
                    return
        except Exception as error:
            _log.exception("the node failed at %s", type(event).__name__)
            self._counters.add("node.crashes")
            self.end(f"crashed: {error!r}")
            return
        if not self._is_settling:
            self._is_settling = True
            self._loop.call_soon(self._settle)

    # --- time

    def _settle(self) -> None:
        """Once per round of the loop, whatever came in during it: when does the machine want to be woken?"""
        self._is_settling = False
        if self.ended.done():
            return
        wake_us = self.machine.wake_at_us()
        if wake_us == self._timer_us:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_us = None, wake_us
        if wake_us is not None:
            self._timer = self._loop.call_later(max(0, wake_us - monotonic_us()) / 1e6, self._wake)

    def _wake(self) -> None:
        wake_us, self._timer, self._timer_us = self._timer_us, None, None
        if wake_us is not None and monotonic_us() < wake_us:
            self._settle()  # the loop's timers are coarser than ours and may fire early
            return
        self.handle(WallClockRead(wall_us()))
        self.handle(Woken())

    def _on_tick(self) -> None:
        now_s = self._loop.time()
        self._counters.stall_ms.add(max(0.0, now_s - self._tick_due_s) * 1e3)
        self._tick_due_s = now_s + TICK_S
        self._tick = self._loop.call_later(TICK_S, self._on_tick)
        self.handle(WallClockRead(wall_us()))

    # --- effects

    def _on_send(self, effect: Send) -> None:
        self._send(effect.peer, effect.message)

    def _on_answer(self, effect: Answer) -> None:
        call = self._calls.pop(effect.call, None)
        if call is not None and not call[1].done():
            call[1].set_result(effect.reply)

    def _on_persist(self, effect: Persist) -> None:
        log, payload, is_sync, token = self._opened.log, effect.payload, effect.sync, effect.token

        def append() -> tuple[int, int, int]:
            segment, offset = log.append(payload)
            if is_sync:
                log.sync()
            return segment, offset, log.room_bytes()

        def done(place: tuple[int, int, int], error: Exception | None) -> None:
            if error is not None:
                self._counters.add("log.failures")
                self.handle(PersistFailed(token, str(error)))
            else:
                self.handle(Persisted(token, *place))
                self._keep_room(place[2])

        self._commit(append, done)

    def _on_read_log(self, effect: ReadLog) -> None:
        log, places, token = self._opened.log, effect.places, effect.token

        def read() -> bytes:
            return b"".join([log.read(segment, offset, length) for segment, offset, length in places])

        def done(records: bytes | None, error: Exception | None) -> None:
            self.handle(LogRead(token, None if error else records, str(error) if error else ""))

        self._threads["read"].submit(read, done)

    def _on_load(self, effect: Load) -> None:
        def load() -> list[str]:
            return [_loaded(cells, keys) for cells, keys in effect.parts]

        def done(errors: list[str] | None, error: Exception | None) -> None:
            self.handle(Loaded(effect.token, [str(error)] * len(effect.parts) if errors is None else errors))

        self._threads["load"].submit(load, done)

    def _on_build(self, effect: Build) -> None:
        def done(_: None, error: Exception | None) -> None:
            self.handle(Built(effect.token, "" if error is None else str(error) or type(error).__name__))

        self._threads["build"].submit(lambda: self._opened.build(effect.job), done)

    def _on_keep_snapshots(self, effect: KeepSnapshots) -> None:
        def done(found: list[Any] | None, error: Exception | None) -> None:
            self.handle(SnapshotsKept(effect.token, found or [], error))

        # On the thread that installs: what stands is then exactly what stood when the machine wanted this.
        self._threads["build"].submit(lambda: self._opened.snapshots.do(effect.order), done)

    def read_snapshot(self, name: str, path: str, offset: int, length: int) -> bytes:
        """Bytes of a file of a snapshot. Waits for the disk. Raises StorageError, InvalidRequest."""
        return self._opened.snapshots.read(name, path, offset, length)

    def _on_pace(self, effect: Pace) -> None:
        self._opened.pace(effect.bytes_per_s, effect.is_paused)

    def _on_trim(self, effect: Trim) -> None:
        # Removing a large file may take tens of milliseconds: not where commits wait.
        self._threads["prepare"].submit(lambda: self._opened.log.trim(effect.segment), self._trimmed)

    def _on_note(self, effect: Note) -> None:
        self._counters.add(effect.name, effect.count)

    def _on_log(self, effect: Log) -> None:
        _log.log(_LEVELS.get(effect.level, logging.ERROR), "%s", effect.text)

    def _on_end_incarnation(self, effect: EndIncarnation) -> None:
        self.end(effect.reason)

    # --- room in the log

    def _trimmed(self, _: None, error: Exception | None) -> None:
        if error is not None:
            _log.error("old log segments were not removed: %s", error)
            self._counters.add("log.trim_failures")
            return
        self._commit(self._opened.log.room_bytes, self._room_measured)

    def _keep_room(self, room_bytes: int) -> None:
        """Have the next segment made before it is needed."""
        if room_bytes < self._opened.room_bytes_low and not self._is_preparing and not self.ended.done():
            self._is_preparing = True
            self._threads["prepare"].submit(self._opened.log.prepare, self._prepared)

    def _prepared(self, _: None, error: Exception | None) -> None:
        # Measured on the commit thread, so that the answer stands in order with those of the appends.
        if error is None:
            self._is_preparing = False
            self._commit(self._opened.log.room_bytes, self._room_measured)
            return
        reason = str(error)
        self._counters.add("log.full" if isinstance(error, DiskFull) else "log.prepare_failures")
        self._commit(self._opened.log.room_bytes, lambda room, _: self._room_measured(room, None, reason))
        self._loop.call_later(PREPARE_RETRY_S, self._prepare_again)

    def _prepare_again(self) -> None:
        self._is_preparing = False
        self._keep_room(0)

    def make_room(self) -> None:
        """Have the log's next segment made now, where it wants one."""
        self._keep_room(0)

    def _room_measured(self, room_bytes: int, error: Exception | None, reason: str = "") -> None:
        if error is not None:
            _log.error("the room in the log cannot be told: %s", error)
            return
        self.handle(RoomChanged(room_bytes, reason))
        if not reason:
            self._keep_room(room_bytes)


def _loaded(cells: Cells, keys: list[bytes]) -> str:
    """Load; why that failed, empty where it did not."""
    try:
        cells.load(keys)
    except StorageError as error:
        return str(error)
    return ""
