"""One simulated machine: disk, clocks and the process on it that runs a node, exactly as the contract of the machines says.

    world ── deliver(event) ──> node.handle(event, now) ──> effects, performed in list order
                                        │
            Persist ── append now, sync after a while ──> Persisted   (a crash in between loses or tears what was not synced)
            EndIncarnation ──> the node is dropped and recovered from the disk after a back-off

What can befall it: `kill` (the process ends, the operating system keeps what was written), `cut_power` (what was not synced is
lost, kept or torn), `pause` and `go_on` (the process stands still; its socket keeps what came), another disk.

Invariants: an event of an earlier run of the process never reaches a later one. At most one Persist is under way.
Not here: what a disk loses (`storage.crash_disk`), connections (`peers`), when faults strike (`faults`).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from geokv.errors import GeokvError, StorageError
from geokv.node.recovery import Checkpoint
from geokv.protocol.effects import (
    Answer,
    Asked,
    Build,
    Built,
    CallGone,
    Delivered,
    Effect,
    EndIncarnation,
    Event,
    KeepSnapshots,
    Load,
    Loaded,
    Log,
    LogRead,
    Note,
    Pace,
    Persist,
    Persisted,
    PersistFailed,
    ReadLog,
    RoomChanged,
    Send,
    SnapshotsKept,
    Trim,
    WallClockRead,
    Woken,
)
from geokv.protocol.requests import Reply, Request
from geokv.sim.clocks import Clocks
from geokv.sim.disks import Storage, StorageOptions
from geokv.sim.schedule import MS, SECOND, Schedule, Timer
from geokv.sim.trace import Trace, described
from geokv.storage.lsm.engine import LsmEngine
from geokv.storage.lsm.jobs import Quarantine

INBOX_MAX: Final = 50_000  # what a paused process' sockets hold; beyond it packets are lost
WALL_CLOCK_US: Final = 100 * MS
BACK_OFF_US: Final = (100 * MS, 5 * SECOND)
HEALTHY_US: Final = 10 * SECOND  # a run that lasted so long starts the back-off anew


class Machine(Protocol):
    """What the host knows of a node."""

    @property
    def incarnation(self) -> int: ...

    @property
    def is_refusing(self) -> str: ...

    def handle(self, event: Event, now_us: int) -> list[Effect]: ...

    def wake_at_us(self) -> int | None: ...


class Recover(Protocol):
    """Makes the machine of a node from what its disk holds (`Node.recover` with its configuration bound)."""

    def __call__(
        self,
        name: str,
        rng: random.Random,
        now_us: int,
        wall_us: int,
        checkpoint: Checkpoint | None,
        frames: Iterable[tuple[int, int, bytes]],
        room_bytes: int,
        log_sequence: int,
        engine: LsmEngine,
    ) -> Machine: ...


@dataclass(frozen=True, slots=True)
class HostOptions:
    """How long things take on one machine, in microseconds (from, to)."""

    start_us: tuple[int, int] = (20_000, 150_000)  # a process start
    sync_us: tuple[int, int] = (80, 1_500)
    read_us: tuple[int, int] = (20, 400)
    build_us: tuple[int, int] = (5_000, 60_000)
    prepare_us: tuple[int, int] = (500, 20_000)
    room_retry_us: int = 1 * SECOND


class Observer(Protocol):
    """Sees everything a host does: checkers and tests. It may crash the host; then the rest of the effects is dropped."""

    def saw_event(self, host: Host, event: Event) -> None: ...

    def saw_effect(self, host: Host, effect: Effect) -> None: ...

    def saw_performed(self, host: Host, effect: Effect) -> None: ...

    def saw_written(self, host: Host, effect: Persist, segment: int, offset: int) -> None: ...  # not synced yet

    def saw_durable(self, host: Host) -> None: ...  # a Persist is about to be told as done

    def saw_disk(self, host: Host, what: str) -> None: ...


class Onlooker:
    """An observer that does nothing; others override what they need."""

    def saw_event(self, host: Host, event: Event) -> None:
        pass

    def saw_effect(self, host: Host, effect: Effect) -> None:
        pass

    def saw_performed(self, host: Host, effect: Effect) -> None:
        pass

    def saw_written(self, host: Host, effect: Persist, segment: int, offset: int) -> None:
        pass

    def saw_durable(self, host: Host) -> None:
        pass

    def saw_disk(self, host: Host, what: str) -> None:
        pass


class Host:
    """One machine named `name`. `boot` counts the runs of its process; 0 before the first."""

    def __init__(
        self,
        name: str,
        dc: str,
        schedule: Schedule,
        trace: Trace,
        rng: random.Random,
        clocks: Clocks,
        options: HostOptions,
        storage_options: StorageOptions,
        recover: Recover,
        send: Callable[[str, str, object], object],
        changed: Callable[[str], None],
        observers: list[Observer],
        notes: dict[str, int],
    ) -> None:
        self.name = name
        self.dc = dc
        self.boot = 0
        self.clocks = clocks
        self.node: Machine | None = None
        self.engine: LsmEngine | None = None
        self.storage = Storage(rng, storage_options)
        self.is_paused = False
        self.is_machine_up = True
        self.extra_sync_us = 0  # a disk that is slow
        self.last_end = ""
        self.runs_ended = 0
        self._schedule = schedule
        self._trace = trace
        self._rng = rng
        self._options = options
        self._recover = recover
        self._send = send
        self._changed = changed
        self._observers = observers
        self._notes = notes
        self._inbox: deque[Event] = deque()
        self._calls: dict[int, Callable[[Reply | None], None]] = {}
        self._next_call = 0
        self._wake: Timer | None = None
        self._node_wake_us: int | None = None
        self._wall_read_us = 0
        self._started_us = 0
        self._back_off_us = BACK_OFF_US[0]
        self._persisting: Persist | None = None
        self._building: Build | None = None
        self._is_preparing = False
        self._perform: dict[type, Callable[..., None]] = {
            Send: self._do_send,
            Answer: self._do_answer,
            Persist: self._do_persist,
            ReadLog: self._do_read,
            Load: self._do_load,
            Build: self._do_build,
            KeepSnapshots: self._do_keep_snapshots,
            Pace: lambda effect: None,
            Trim: self._do_trim,
            Note: self._do_note,
            Log: self._do_log,
            EndIncarnation: self._do_end,
        }

    # --- what others ask --------------------------------------------------------------------------------------------

    @property
    def is_listening(self) -> bool:
        return self.node is not None

    @property
    def is_responsive(self) -> bool:
        return self.node is not None and not self.is_paused

    @property
    def incarnation(self) -> int:
        return self.node.incarnation if self.node is not None else 0

    def tables(self) -> dict[int, dict[bytes, bytes]]:
        """Every namespace's cells, as the engine has them now."""
        engine = self.engine
        return {} if engine is None else {namespace: dict(engine.scan(namespace)) for namespace in engine.namespaces()}

    # --- starting and ending ----------------------------------------------------------------------------------------

    def start(self, delay_us: int | None = None) -> None:
        """Start the process; nothing where it runs already."""
        if self.node is not None:
            return
        self.is_machine_up = True
        self.boot += 1
        delay = self._rng.randint(*self._options.start_us) if delay_us is None else delay_us
        self._schedule.after(delay, self._recover_now, self.boot)

    def _recover_now(self, boot: int) -> None:
        if boot != self.boot or self.node is not None:
            return
        try:
            node = self._recovered()
        except (StorageError, OSError) as error:
            self._trace.add(self.name, "unrecovered", f"{type(error).__name__}")
            self.last_end = f"cannot recover: {error}"
            self._start_later()
            return
        self.node = node
        self._started_us = self._schedule.now_us
        self._trace.add(self.name, "recovered", f"boot={boot} incarnation={node.incarnation:x}")
        self._read_wall()
        self._prepare_if_needed()
        self._changed(self.name)

    def _recovered(self) -> Machine:
        checkpoint, engine, log = self.storage.open()
        self.engine = engine
        node = self._recover(
            self.name,
            self._rng,
            self.clocks.monotonic_us(),
            self.clocks.wall_us(),
            checkpoint,
            log.replay(0),
            log.room_bytes(),
            log.sequence,
            engine,
        )
        self.storage.opened()
        return node

    def _start_later(self) -> None:
        """Start a new run after the back-off."""
        if self._schedule.now_us - self._started_us > HEALTHY_US:
            self._back_off_us = BACK_OFF_US[0]
        delay_us, self._back_off_us = self._back_off_us, min(self._back_off_us * 2, BACK_OFF_US[1])
        self.boot += 1
        self._schedule.after(delay_us, self._recover_now, self.boot)

    def _drop_node(self, reason: str) -> None:
        """The process, or the run in it, is over."""
        self._trace.add(self.name, "ended", reason)
        self.last_end = reason
        self.runs_ended += 1
        self.node = None
        self.boot += 1
        self._inbox.clear()
        self._persisting = None
        self._is_preparing = False
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None

    def _drop_calls(self, is_told: bool) -> None:
        calls, self._calls = self._calls, {}
        if is_told:
            for done in calls.values():
                done(None)

    def kill(self) -> None:
        """The process ends at once; what it wrote is with the operating system."""
        if self.node is not None:
            self._drop_node("killed")
        self.boot += 1
        self.is_paused = False
        self._interrupt_build()
        self._drop_calls(is_told=True)
        self._changed(self.name)

    def cut_power(self, is_all_lost: bool = False) -> None:
        """The machine is off; what was not synced is lost, kept or torn (or surely lost)."""
        if self.node is not None:
            self._drop_node("power cut")
        self.boot += 1
        self.is_paused = False
        self.is_machine_up = False
        self._interrupt_build()
        self.storage.lose_power(is_all_lost)
        for observer in self._observers:
            observer.saw_disk(self, "power")
        self._drop_calls(is_told=False)
        self._changed(self.name)

    def replace_disk(self, storage: Storage, what: str) -> None:
        """Another disk is in the machine (an old copy, an empty one). Only while the process does not run."""
        assert self.node is None, "the disk is changed while the process runs"
        self.storage = storage
        self._trace.add(self.name, "disk", what)
        for observer in self._observers:
            observer.saw_disk(self, what)

    def rot(self) -> str:
        """A bit of one of its tables flips; which one, empty where it has none."""
        what = self.storage.rot()
        if what:
            self._trace.add(self.name, "bit rot", what)
            for observer in self._observers:
                observer.saw_disk(self, "bit rot")
        return what

    def pause(self) -> None:
        """The process stands still (SIGSTOP, a swapping machine, a long collection)."""
        if self.node is not None and not self.is_paused:
            self.is_paused = True
            self._trace.add(self.name, "paused")
            self._changed(self.name)

    def go_on(self) -> None:
        if not self.is_paused:
            return
        self.is_paused = False
        self._trace.add(self.name, "goes on")
        waiting, self._inbox = self._inbox, deque()
        boot = self.boot
        self._read_wall()
        for event in waiting:
            if self.boot == boot:
                self._handle(event)
        self._changed(self.name)

    # --- events -----------------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Give the node an event; one that is paused gets it when it goes on."""
        if self.node is None:
            return
        if self.is_paused:
            if len(self._inbox) < INBOX_MAX:
                self._inbox.append(event)
            return
        self._handle(event)

    def ask(self, request: Request, done: Callable[[Reply | None], None]) -> int | None:
        """A client's batch arrived. `done` gets the reply, or None where the process ended; None: nobody listens."""
        if self.node is None:
            return None
        self._next_call += 1
        self._calls[self._next_call] = done
        self.deliver(Asked(self._next_call, request))
        return self._next_call

    def call_gone(self, call: int) -> None:
        if self._calls.pop(call, None) is not None:
            self.deliver(CallGone(call))

    def _read_wall(self, is_last: bool = True) -> None:
        self._wall_read_us = self._schedule.now_us
        self._handle(WallClockRead(self.clocks.wall_us()), is_last)

    def _handle(self, event: Event, is_last: bool = True) -> None:
        """Give the node an event and do what it wants. `is_last`: no other event follows at once, so look at the time."""
        node = self.node
        if node is None:
            return
        boot = self.boot
        if event.__class__ is Delivered:
            self._trace.add(self.name, "<", f"{event.peer} {described(event.message)}")
        else:
            self._trace.add(self.name, "<", described(event))
        for observer in self._observers:
            observer.saw_event(self, event)
            if self.boot != boot:
                return
        for effect in self._effects_of(node, event):
            for observer in self._observers:
                observer.saw_effect(self, effect)
            if self.boot != boot:
                return
            self._perform[effect.__class__](effect)
            if self.boot != boot:
                return
            for observer in self._observers:
                observer.saw_performed(self, effect)
            if self.boot != boot:
                return
        if is_last:
            self._arm(node)

    def _effects_of(self, node: Machine, event: Event) -> list[Effect]:
        reads = self.storage.disk.calls.get("read_at", 0)
        effects = node.handle(event, self.clocks.monotonic_us())
        if self.storage.disk.calls.get("read_at", 0) != reads:
            self._count("host.read_in_step")  # rare: caches have let go of what was loaded a moment ago
        return effects

    def _arm(self, node: Machine) -> None:
        """See to it that the node is woken in time, and reads the wall clock at least each 100 ms."""
        due_us = self._wall_read_us + WALL_CLOCK_US
        wake_us = self._node_wake_us = node.wake_at_us()
        if wake_us is not None:
            due_us = min(due_us, max(self.clocks.true_us(wake_us), self._schedule.now_us + 1))
        if self._wake is not None:
            if self._wake.when_us <= due_us:
                return
            self._wake.cancel()
        self._wake = self._schedule.at(due_us, self._wake_up, self.boot)

    def _wake_up(self, boot: int) -> None:
        if boot != self.boot or self.node is None:
            return
        self._wake = None
        if self.is_paused:
            return
        is_due = self._node_wake_us is not None and self._node_wake_us <= self.clocks.monotonic_us()
        if is_due or self._schedule.now_us - self._wall_read_us >= WALL_CLOCK_US:
            self._read_wall(is_last=not is_due)
            if is_due and boot == self.boot:
                self._handle(Woken())
        else:
            self._arm(self.node)

    # --- effects ----------------------------------------------------------------------------------------------------

    def _do_send(self, effect: Send) -> None:
        is_sent = self._send(self.name, effect.peer, effect.message)
        if not is_sent:
            self._trace.add(self.name, "unsent", effect.peer)

    def _do_answer(self, effect: Answer) -> None:
        done = self._calls.pop(effect.call, None)
        self._trace.add(self.name, "answer", f"{effect.call} {described(effect.reply)}")
        if done is not None:
            done(effect.reply)

    def _do_persist(self, effect: Persist) -> None:
        assert self._persisting is None, "a second Persist while one is under way"
        self._persisting = effect
        log = self.storage.log
        try:
            segment, offset = log.append(effect.payload)
        except (StorageError, OSError) as error:
            self._schedule.after(100, self._persist_failed, self.boot, effect, f"append: {error}")
            return
        for observer in self._observers:
            observer.saw_written(self, effect, segment, offset)
        delay_us = self._rng.randint(*self._options.sync_us) + self.extra_sync_us if effect.sync else 20
        self._schedule.after(delay_us, self._finish_persist, self.boot, effect, segment, offset)

    def _finish_persist(self, boot: int, effect: Persist, segment: int, offset: int) -> None:
        if boot != self.boot:
            return
        if effect.sync:
            try:
                self.storage.log.sync()
            except (StorageError, OSError) as error:
                self._persist_failed(boot, effect, f"sync: {error}")
                return
        self._persisting = None
        for observer in self._observers:
            observer.saw_durable(self)
        self.deliver(Persisted(effect.token, segment, offset, self.storage.log.room_bytes()))
        if boot == self.boot:
            self._prepare_if_needed()

    def _persist_failed(self, boot: int, effect: Persist, reason: str) -> None:
        if boot == self.boot:
            self._persisting = None
            self.deliver(PersistFailed(effect.token, reason))

    def _do_read(self, effect: ReadLog) -> None:
        self._schedule.after(self._rng.randint(*self._options.read_us), self._finish_read, self.boot, effect)

    def _finish_read(self, boot: int, effect: ReadLog) -> None:
        if boot != self.boot:
            return
        try:
            read = self.storage.log.read
            records = b"".join([read(*place) for place in effect.places])
        except (StorageError, OSError) as error:
            self.deliver(LogRead(effect.token, None, str(error)))
            return
        self.deliver(LogRead(effect.token, records))

    def _do_build(self, effect: Build) -> None:
        self._building = effect
        self._schedule.after(self._rng.randint(*self._options.build_us), self._finish_build, self.boot, effect)

    def _finish_build(self, boot: int, effect: Build) -> None:
        if boot != self.boot:
            return
        self._building = None
        try:
            self.storage.build(self._engine(), effect.job)
        except (StorageError, OSError) as error:
            self.deliver(Built(effect.token, str(error) or type(error).__name__))
            return
        if isinstance(effect.job, Quarantine):
            for observer in self._observers:
                observer.saw_disk(self, "quarantine")
        self.deliver(Built(effect.token))

    def _engine(self) -> LsmEngine:
        assert self.engine is not None, "a node runs"
        return self.engine

    def _interrupt_build(self) -> None:
        """A process that ends in the middle of a flush or compaction leaves part of it on the disk."""
        effect, self._building = self._building, None
        if effect is not None:
            self.storage.build_in_part(self._engine(), effect.job)

    def _do_load(self, effect: Load) -> None:
        self._schedule.after(self._rng.randint(*self._options.read_us), self._finish_load, self.boot, effect)

    def _finish_load(self, boot: int, effect: Load) -> None:
        if boot != self.boot:
            return
        errors: list[str] = []
        for cells, keys in effect.parts:
            try:
                cells.load(keys)
                errors.append("")
            except (StorageError, OSError) as error:
                errors.append(str(error) or type(error).__name__)
        self.deliver(Loaded(effect.token, errors))

    def _do_keep_snapshots(self, effect: KeepSnapshots) -> None:
        """At once, so that it stands between the builds before it and those behind it; told as late as a read."""
        found: list[Any] = []
        failure: GeokvError | None = None
        try:
            found = self.storage.keep_snapshots(self._engine(), effect.order)
        except GeokvError as error:
            failure = error
        kept = SnapshotsKept(effect.token, found, failure)
        self._schedule.after(self._rng.randint(*self._options.read_us), self._snapshots_kept, self.boot, kept)

    def _snapshots_kept(self, boot: int, kept: SnapshotsKept) -> None:
        if boot == self.boot:
            self.deliver(kept)

    def _do_trim(self, effect: Trim) -> None:
        try:
            self.storage.log.trim(effect.segment)
        except (StorageError, OSError):
            self._count("host.trim_failed")

    def _do_note(self, effect: Note) -> None:
        self._count(effect.name, effect.count)
        self._trace.add(self.name, "note", effect.name)

    def _do_log(self, effect: Log) -> None:
        self._trace.add(self.name, "log", f"{effect.level} {effect.text}")

    def _do_end(self, effect: EndIncarnation) -> None:
        self._drop_node(effect.reason)
        self._interrupt_build()
        self._drop_calls(is_told=True)
        self._start_later()
        self._changed(self.name)

    def _count(self, name: str, count: int = 1) -> None:
        self._notes[name] = self._notes.get(name, 0) + count

    # --- room in the log --------------------------------------------------------------------------------------------

    def _prepare_if_needed(self) -> None:
        if not self._is_preparing and self.storage.wants_room():
            self._is_preparing = True
            self._schedule.after(self._rng.randint(*self._options.prepare_us), self._prepare, self.boot, False)

    def _prepare(self, boot: int, was_full: bool) -> None:
        if boot != self.boot:
            return
        log = self.storage.log
        try:
            log.prepare()
        except (StorageError, OSError) as error:
            self._count("host.no_room")
            self._schedule.after(self._options.room_retry_us, self._prepare, boot, True)
            if not was_full:
                self.deliver(RoomChanged(log.room_bytes(), str(error) or type(error).__name__))
            return
        self._is_preparing = False
        self.deliver(RoomChanged(log.room_bytes()))
