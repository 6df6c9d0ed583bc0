"""One node: the machines wired together behind the machine contract.

    event ──> Node.handle ──> the machine it concerns ──┐
                                                        ├──> effects, in order; Persist last (group commit)
    Woken ──> every machine whose time has come ────────┘

A node begins with noting its new incarnation in the log; until that is synced it says nothing to anybody. Then it
asks the owners of its partitions about what ran before it (protocol.closing), and serves once a majority of its
datacenter has not contradicted its disk.

Invariants: nothing here reads a clock, a socket or a disk. After EndIncarnation nothing more leaves this object.

Not here: recovery (node.recovery), administration and status (node.admin).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from geokv.core.hlc import hlc_ms
from geokv.core.limits import HLC_BOUND_AHEAD_MS
from geokv.core.namespace import NamespaceDefinition
from geokv.core.origin import Origin, unpack_origin
from geokv.core.ring import key_hash
from geokv.errors import RecordError
from geokv.node.admin import Admin
from geokv.node.assembly import Assembly
from geokv.node.collector import Collector
from geokv.node.config import NodeConfig
from geokv.node.recovery import Checkpoint, Recovered, restore
from geokv.node.snapshots import SnapshotKeeper
from geokv.node.upkeep import Upkeep
from geokv.protocol import control, messages
from geokv.protocol.closer import CloseRun, closing_item
from geokv.protocol.closing import RUNS_TOLD_MAX
from geokv.protocol.commit import Entry
from geokv.protocol.effects import (
    Answer,
    Asked,
    Built,
    CallGone,
    Delivered,
    Effect,
    EndIncarnation,
    Event,
    Loaded,
    LogRead,
    PeerConnected,
    PeerLost,
    Persisted,
    PersistFailed,
    ReadLog,
    RoomChanged,
    SnapshotsKept,
    Stopping,
    WallClockRead,
    Woken,
)
from geokv.protocol.requests import (
    AdminRequest,
    Detail,
    Outcome,
    ReadBatch,
    ReadReply,
    Reply,
    Request,
    WriteBatch,
    WriteReply,
)
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table
from geokv.storage.engine import Engine

Frames = Iterable[tuple[int, int, bytes]]

STARTING: Final = "this node has just started and asks its peers whether its disk is complete"


class Node:
    """One run of one node. See `geokv.protocol.effects` for the contract with its host."""

    def __init__(self, config: NodeConfig, assembly: Assembly, recovered: Recovered) -> None:
        self.config = config
        self._effects = assembly.effects
        self._recovered = recovered
        self._is_started = False
        self._is_over = False
        self._has_standing = False
        self._started_us: int | None = None
        self._bound_ms = recovered.bound_ms
        assembly.context.bound_ms = recovered.bound_ms
        self._loading: dict[int, tuple[int, WriteBatch, Callable[[Any], None]]] = {}  # writes that wait for the disk
        self._requests: dict[int, WriteBatch | ReadBatch] = {}  # of clients, not answered yet
        self._no_room = ""  # what was said of it last
        self._log_readers: dict[int, Callable[[bytes | None], None]] = {}
        self._seen_logged: dict[str, tuple[int, int]] = {}
        self._seen_at_us = 0
        self._runs: list[CloseRun] = []
        self.context = assembly.context
        self.assembly = assembly
        self.upkeep = Upkeep(assembly.context, assembly.engine, config, recovered.replayed_bytes)
        self.snapshots = SnapshotKeeper(assembly.context, self.upkeep, assembly.retention)
        self._wire(assembly)
        self.collector = Collector(
            assembly.context,
            assembly.engine,
            assembly.stability,
            assembly.sweeper,
            self.upkeep,
            self.log_control,
            config.collect_us,
        )
        self.admin = Admin(self)
        self._handlers: dict[type, Callable[[str, Any], None]] = self._message_handlers()

    @classmethod
    def recover(
        cls,
        config: NodeConfig,
        rng: random.Random,
        now_us: int,
        wall_us: int,
        checkpoint: Checkpoint | None,
        frames: Frames,
        room_bytes: int,
        log_sequence: int,
        engine: Engine,
    ) -> Node:
        """Read everything the disk holds and begin a new incarnation.

        `frames`: every frame of the log that is still there, oldest first. `checkpoint`: of a node of version 0.1 whose
        engine holds nothing yet. Raises StorageError for what cannot be read.
        """
        assembly = Assembly(config, rng, now_us, wall_us, room_bytes, log_sequence, engine)
        recovered = restore(assembly, checkpoint, frames)
        node = cls(config, assembly, recovered)
        node._begin()
        return node

    # --- what hosts ask ---------------------------------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        return self.context.origin

    @property
    def incarnation(self) -> int:
        return self.context.origin.incarnation

    @property
    def is_refusing(self) -> str:
        return self.context.is_refusing

    @property
    def started_us(self) -> int | None:
        """When this run's incarnation was synced; None: not yet."""
        return self._started_us

    @property
    def runs(self) -> list[CloseRun]:
        return self._runs

    @property
    def unserved(self) -> Mapping[int, frozenset[int]]:
        """Namespace -> the partitions that this node owns and cannot serve: it took its claim back."""
        return self.context.claims.all_mine()

    def status(self) -> dict[str, Any]:
        return self.admin.status()

    def metrics(self) -> dict[str, int | float]:
        return self.admin.metrics()

    def wake_at_us(self) -> int | None:
        """When `Woken` is due, in the host's monotonic time; None: nothing is waiting for time."""
        if self._is_over:
            return None
        if not self._is_started:
            return self.assembly.commit.wake_at_us()
        machines = self.assembly
        wakes = [
            machines.statements.wake_at_us(),
            machines.commit.wake_at_us(),
            machines.write.wake_at_us(),
            machines.rights.wake_at_us(),
            machines.rights_drain.wake_at_us(),
            machines.read.wake_at_us(),
            machines.forwarder.wake_at_us(),
            machines.retries.wake_at_us(),
            machines.sender.wake_at_us(),
            machines.receiver.wake_at_us(),
            machines.definitions.wake_at_us(),
            machines.closings.cells.wake_at_us(),
            machines.digests.wake_at_us(),
            min((until_us for until_us, _, _ in self._loading.values()), default=None),
        ]
        return min(wake for wake in wakes if wake is not None)

    def handle(self, event: Event, now_us: int) -> list[Effect]:
        """Take one event; returns what the host shall do, in order."""
        if self._is_over:
            return []
        self.context.wall_us += now_us - self.context.now_us
        self.context.now_us = now_us
        self._dispatch(event)
        if not self._is_over:
            if self.context.journal.fresh:
                self._log_conflicts()
            self.assembly.definitions.perform()
            self.assembly.commit.flush(now_us)
        effects = list(self._effects)
        self._effects.clear()
        ends = [at for at, effect in enumerate(effects) if isinstance(effect, EndIncarnation)]
        return effects[: ends[0] + 1] if ends else effects  # what callbacks of the same frame still wanted goes nowhere

    # --- wiring -----------------------------------------------------------------------------------------------------

    def _wire(self, assembly: Assembly) -> None:
        assembly.commit.on_landed = self._landed
        assembly.context.on_refused = self._end
        assembly.sender.on_covered = self._covered
        assembly.closings.on_closed = lambda: assembly.receiver.reopen("closing")
        assembly.closings.on_forgotten = self._forgotten
        assembly.closings.on_over = lambda pairs: assembly.definitions.forget_items(
            closing_item(origin, partition) for origin, partition in pairs
        )
        assembly.closings.read_log = self._read_log
        assembly.context.operation_ids.read_log = self._read_log
        assembly.context.operation_ids.is_settled = lambda partition: bool(self._runs) and self._runs[0].is_over(partition)
        assembly.closings.cells.on_covered = self._covered_by_cells
        assembly.receiver.fetch_cells = lambda fetch: assembly.closings.cells.fetch(fetch, lambda held: None)
        assembly.definitions.on_defined = self._defined
        assembly.definitions.on_decided = self._decided
        assembly.coordinate = self._coordinate
        assembly.rights.coordinate = self._coordinate
        assembly.rights.is_over = lambda origin, partition: assembly.closings.is_covered((origin, partition))
        assembly.rights.is_heir = self._is_heir
        assembly.quarantine.on_due = self.upkeep.set_aside
        self.upkeep.damaged = assembly.quarantine.due
        assembly.stability.unclosed = self._unclosed
        self.upkeep.meta = self._meta
        self.upkeep.on_flushed = self._flushed

    def _message_handlers(self) -> dict[type, Callable[[str, Any], None]]:
        m, a = messages, self.assembly
        definitions = self._on_agreement
        return {
            m.Replicate: self._on_replicate,
            m.Replicated: self._on_replicated,
            m.ReadCells: a.read.serve,
            m.CellsRead: a.read.answered,
            m.Forward: a.forwarder.asked,
            m.Forwarded: a.forwarder.answered,
            m.Statement: self._on_statement,
            m.TakenBack: self._on_taken_back,
            m.FeedOpen: a.sender.opened,
            m.FeedBatch: a.receiver.batch,
            m.FeedAck: a.sender.acknowledged,
            m.FeedClose: lambda peer, message: a.sender.closed(peer, message.feed),
            m.FeedRefused: a.receiver.refused,
            m.FeedHoles: a.receiver.holes,
            m.Prepare: self._on_vote_asked,
            m.Promised: definitions,
            m.Accept: self._on_vote_asked,
            m.Accepted: definitions,
            m.Chosen: definitions,
            m.CopyItems: definitions,
            m.ItemsCopied: definitions,
            m.DefinitionsWanted: definitions,
            m.Definitions: definitions,
            m.CloseAsk: lambda peer, message: a.closings.asked(peer, message, self._sender_to(peer)),
            m.CloseAnswer: self._on_close_answer,
            m.RecordsWanted: a.closings.wanted,
            m.CloseFill: self._on_close_fill,
            m.CloseFilled: self._on_close_filled,
            m.CellsFetch: self._on_cells_fetch,
            m.CellsWanted: a.closings.cells.wanted,
            m.CellsPage: a.closings.cells.page,
            m.CloseTell: lambda peer, message: a.closings.told(message, self._sender_to(peer)),
            m.CloseTold: self._on_close_told,
            m.CloseForget: lambda peer, message: a.closings.forget(message.closings),
            m.RightsAsk: a.rights.asked,
            m.RightsGiven: a.rights.answered,
            m.StabilityAsk: a.stability.asked,
            m.StabilityAnswer: a.stability.answered,
            m.OperationsAsk: self.context.operation_ids.asked,
            m.OperationsTold: a.retries.told,
        }

    def _sender_to(self, peer: str) -> Callable[[object], None]:
        return lambda message: self.context.send(peer, message)

    # --- events -----------------------------------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:  # noqa: C901  # one branch per event, the frequent ones first
        kind = type(event)
        if kind is Delivered:
            self._delivered(event.peer, event.message)  # type: ignore[union-attr]
        elif kind is Asked:
            self._asked(event.call, event.request)  # type: ignore[union-attr]
        elif kind is Persisted:
            self._persisted(event)  # type: ignore[arg-type]
        elif kind is Woken:
            self._tick()
        elif kind is WallClockRead:
            self.context.wall_us = event.wall_us  # type: ignore[union-attr]
        elif kind is LogRead:
            self._log_read(event)  # type: ignore[arg-type]
        elif kind is PeerConnected:
            self._connected(event.peer, event.incarnation)  # type: ignore[union-attr]
        elif kind is PeerLost:
            self._lost(event.peer)  # type: ignore[union-attr]
        elif kind is RoomChanged:
            self._room(event)  # type: ignore[arg-type]
        elif kind is PersistFailed:
            self._end(f"the log failed: {event.reason}")  # type: ignore[union-attr]
        elif kind is Loaded:
            self._loads_done(event)  # type: ignore[arg-type]
        elif kind is Built:
            self._built(event)  # type: ignore[arg-type]
        elif kind is SnapshotsKept:
            self.snapshots.kept(event)  # type: ignore[arg-type]
        elif kind is Stopping:
            self._stopping(event)  # type: ignore[arg-type]
        else:
            assert kind is CallGone, f"unknown event {kind}"
            gone = self._requests.pop(event.call, None)  # type: ignore[union-attr]
            if gone is not None:
                gone.is_gone = True

    def _delivered(self, peer: str, message: object) -> None:
        if not self._is_started or peer not in self.context.peers:
            return
        self.context.peers[peer].heard_us = self.context.now_us
        handler = self._handlers.get(type(message))
        if handler is None:
            self.context.note("message.unknown")
            return
        handler(peer, message)

    def _asked(self, call: int, request: Request) -> None:
        if isinstance(request, AdminRequest):
            self.admin.asked(request, lambda reply: self._answer(call, reply))
            return
        if not self._is_started or self.context.is_refusing:
            why = self.context.is_refusing or "this node is starting"
            self._answer(call, unavailable(request, why, self.config.node))
            return
        self._requests[call] = request
        self.assembly.forwarder.start(request, lambda reply: self._answer(call, reply))

    def _answer(self, call: int, reply: Reply) -> None:
        self._requests.pop(call, None)
        self._effects.append(Answer(call, reply))

    def _coordinate(self, batch: WriteBatch | ReadBatch, respond: Callable[[Any], None]) -> None:
        self.context.clock.observe(batch.seen_hlc, self.context.wall_ms)
        if not isinstance(batch, WriteBatch):
            self.assembly.read.start(batch, respond)
            return
        if batch.tried:
            self.assembly.retries.start(batch, respond)
            return
        table = self.assembly.table_named(batch.namespace)
        missing = table.missing(batch.keys) if table is not None and self._is_served(table, batch.keys) else []
        if table is None or not missing:
            self._start_write(batch, respond)
            return
        self.context.count("write.loaded", len(missing))
        until_us = self.context.now_us + batch.timeout_ms * 1000
        write = self.context.next_id()
        self._loading[write] = (until_us, batch, respond)
        is_wanted = partial(self._is_wanted, write, batch)
        self.context.loading.load(table.cells, missing, partial(self._loaded, write), is_wanted)

    def _is_served(self, table: Table, keys: list[bytes]) -> bool:
        """False where this node coordinates none of these keys: then nothing need be read to say so."""
        lost = self.context.claims.mine(table.definition.id)
        return not lost or any(key_hash(key) >> table.placement.shift not in lost for key in keys)

    def _is_wanted(self, write: int, batch: WriteBatch) -> bool:
        return write in self._loading and not batch.is_gone

    def _loads_done(self, event: Loaded) -> None:
        if any(event.errors):
            self.assembly.quarantine.look()
        self.context.loading.loaded(event.token, event.errors)

    def _give_up_loading(self) -> None:
        """Writes whose cells do not come from the disk in time are told so."""
        now_us = self.context.now_us
        for write in [write for write, (until_us, _, _) in self._loading.items() if until_us <= now_us]:
            self._loaded(write, "")

    def _loaded(self, write: int, error: str) -> None:
        """What a write builds upon is in memory, or its time has passed."""
        if write not in self._loading:
            return
        until_us, batch, respond = self._loading.pop(write)
        if error:
            why = f"{self.config.node} cannot read what it holds of these keys ({error}); nothing was numbered"
            respond(unavailable(batch, why, self.config.node))
        elif self.context.now_us >= until_us or self.context.is_refusing:
            why = self.context.is_refusing or "the disk did not answer in time; nothing was numbered"
            respond(unavailable(batch, why, self.config.node))
        else:
            self._start_write(with_left(batch, until_us - self.context.now_us), respond)

    def _start_write(self, batch: WriteBatch, respond: Callable[[Any], None]) -> None:
        self._keep_bound()
        if self._stamps_to_ms() < self.context.bound_ms:
            self.assembly.write.start(batch, respond)
        else:
            self._write_later(batch, respond, self.context.now_us + batch.timeout_ms * 1000)

    def _write_later(self, batch: WriteBatch, respond: Callable[[Any], None], until_us: int) -> None:
        """Start a write once the HLC's bound above its stamps is synced."""
        self._keep_bound()
        if not self.assembly.commit.pending_bytes:
            self.context.bound_ms = self._bound_ms  # all that was noted is synced
        left_us = until_us - self.context.now_us
        if left_us > 0 and (self._stamps_to_ms() < self.context.bound_ms or self._bound_ms <= self._stamps_to_ms()):
            self.assembly.write.start(with_left(batch, left_us), respond)  # or refused: there was no room for the bound either
        elif left_us <= 0 or self.context.is_refusing:
            why = self.context.is_refusing or "the log did not sync in time; nothing was numbered"
            respond(unavailable(batch, why, self.config.node))
        else:
            self.context.note("write.waited_for_bound")
            self.assembly.commit.after_pending(lambda: self._write_later(batch, respond, until_us))

    def _unclosed(self, partitions: list[int]) -> list[int]:
        """Of these partitions, those where what this node ran before is not at its end."""
        return self._runs[0].unclosed(partitions) if self._runs else partitions

    # --- the log ----------------------------------------------------------------------------------------------------

    def _persisted(self, event: Persisted) -> None:
        self.assembly.commit.landed(event.token, event.segment, event.offset, event.room_bytes)
        if not self._is_over:
            self.upkeep.landed()
            self._hold_back()

    def _built(self, event: Built) -> None:
        if event.error:
            self.assembly.quarantine.look()
        self.upkeep.built(event)
        self._hold_back()

    def _stopping(self, event: Stopping) -> None:
        if self._is_started:
            self.upkeep.stopping(event)

    def _hold_back(self) -> None:
        """Let writers wait where the engine is too far behind."""
        self.assembly.write.storage_refuses = self.upkeep.refusal()
        self.assembly.intake.refuses = self.upkeep.refusal_of_peers()

    def _meta(self) -> bytes:
        """The node's own state now, as it stands beside the flushed cells."""
        return control.pack(self.assembly.meta(self._recovered, self._bound_ms))

    def _flushed(self) -> None:
        self.assembly.retention.built_segment = self.assembly.engine.position.segment

    def _landed(self, entries: list[Entry]) -> None:
        self.assembly.statements.landed(entries)
        self.assembly.sender.landed(entries)

    def _covered(self, stream: Stream) -> None:
        self.assembly.statements.covered(stream)
        self.assembly.write.covered(stream)

    def _covered_by_cells(self, stream: Stream) -> None:
        self.assembly.statements.moved(stream)
        self.assembly.sender.moved(stream)
        self.assembly.receiver.look_after_holes()

    def _room(self, event: RoomChanged) -> None:
        commit = self.assembly.commit
        commit.room_bytes = event.room_bytes
        self._say_read_only(self._no_room, event.reason)
        self._no_room = commit.room_reason = event.reason
        if event.reason:
            self.context.note("log.no_room")

    def _say_read_only(self, before: str, now: str) -> None:
        if bool(before) != bool(now):
            self.context.log("warning" if now else "info", f"writes are refused: {now}" if now else "writes are taken again")

    def _read_log(self, places: list[tuple[int, int, int]], then: Callable[[bytes | None], None]) -> None:
        token = self.context.next_id()
        self._log_readers[token] = then
        self._effects.append(ReadLog(token, places))

    def _log_read(self, event: LogRead) -> None:
        then = self._log_readers.pop(event.token, None)
        if then is not None:
            then(event.records)
        else:
            self.assembly.sender.read(event.token, event.records, event.reason)

    def log_control(self, name: bytes, body: object, then: Callable[[], None] | None = None) -> None:
        """Note something in the log; `then` runs once it is synced."""
        raw = control.control_record(name, body)
        self.assembly.commit.add([(raw, None, 0)], len(raw), (), then, None)

    def _log_conflicts(self) -> None:
        """Note the newest conflicts in the log; where it has no room, they last as long as this run."""
        journal = self.context.journal
        fresh, echoes = journal.fresh, journal.echoes
        journal.fresh, journal.echoes = [], set()
        for conflict in fresh:
            if conflict.name in echoes:
                continue
            name, (winner, loser) = self.context.tables[conflict.namespace].definition.name, conflict.dcs
            self.context.count(f"conflicts.{name}.{winner}.{loser}.{conflict.outcome}")
        body = [conflict.packed() for conflict in fresh]
        if self.assembly.commit.reserve(len(control.pack(body)) + 256):
            self.context.note("journal.not_logged", len(fresh))
        else:
            self.log_control(control.CONFLICTS, body)

    def _keep_bound(self) -> None:
        """Write the HLC's bound ahead of it, so that a restart begins above every stamp that was given."""
        context = self.context
        ahead_ms = self._stamps_to_ms()
        if ahead_ms + HLC_BOUND_AHEAD_MS // 3 < self._bound_ms or context.commit.reserve(4096, is_control=True):
            return
        self._bound_ms = bound_ms = ahead_ms + HLC_BOUND_AHEAD_MS

        def synced() -> None:
            context.bound_ms = max(context.bound_ms, bound_ms)

        self.log_control(control.BOUND, [bound_ms], synced)

    def _stamps_to_ms(self) -> int:
        """What the next batch is stamped, at most, in milliseconds (its counters may carry once)."""
        return max(self.context.wall_ms, hlc_ms(self.context.clock.last)) + 1

    # --- beginning and ending ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.context.is_refusing = STARTING
        self._recovered.runs.append(self.incarnation)
        self.log_control(control.RUN, [self.incarnation], self._started)
        self.assembly.quarantine.look()
        self._keep_bound()
        self.assembly.commit.flush(self.context.now_us)

    def _started(self) -> None:
        context = self.context
        self._is_started = True
        self._started_us = context.now_us
        self.assembly.definitions.start()
        for peer in self.assembly.peers.by_name.values():
            if peer.is_connected:
                self._greet(peer.name)
        run = self._closer(self.config.node, is_self=True)
        run.begin(self._recovered.open_origins)
        self._check_standing()

    def _closer(self, node: str, is_self: bool) -> CloseRun:
        machines = self.assembly
        runs = self._recovered.runs[-RUNS_TOLD_MAX:] if is_self else []
        run = CloseRun(
            self.context,
            machines.closings,
            machines.placement,
            machines.definitions.propose,
            node,
            runs,
            self._recovered.log_sequence,
            is_self,
        )
        self._runs.append(run)
        return run

    def close_node(self, node: str) -> CloseRun:
        """Begin to close all streams of another node of this datacenter (what a takeover does)."""
        run = self._closer(node, is_self=False)
        run.begin(())
        return run

    @property
    def has_standing(self) -> bool:
        """Whether a majority of this datacenter was asked about this disk, and nobody has seen more of it.

        Before that it may be an old copy that has forgotten its votes: it has no voice in the agreement.
        """
        return self._has_standing and not self.context.distrusted

    def _check_standing(self) -> None:
        """Serve once a majority of this datacenter was asked about this disk; refuse once anybody has seen more of it."""
        context = self.context
        run = self._runs[0]
        if run.seen_more:
            self._distrust(run.seen_more)
            return
        members = self.assembly.members
        answered = sum(1 for node in members if node in run.answered or node == self.config.node)
        self._has_standing = answered >= len(members) // 2 + 1
        if context.is_refusing != STARTING:
            return
        waited_us = context.now_us - (self._started_us or 0)
        if self._has_standing:
            context.is_refusing = ""
        elif waited_us >= self.config.unchecked_us:
            context.is_refusing = ""
            context.note("node.serves_unchecked")
            context.log("warning", "no majority of this datacenter answers; serving without its word on this disk")

    def _distrust(self, seen_more: str) -> None:
        """This disk is an old copy, or was replaced: whatever it says could take back what was acknowledged."""
        context = self.context
        if not context.distrusted:
            context.distrusted = context.is_refusing = (
                f"node {self.config.node} refuses to serve: its disk holds less than its peers have seen of it"
                f" ({seen_more}); put the newest disk back"
            )
            context.note("node.refuses")
            context.log("error", context.is_refusing)

    def _end(self, reason: str) -> None:
        """This run is over as if crashed: what is in progress gets the answer that nobody knows, then nothing more leaves."""
        if self._is_over:
            return
        self.assembly.write.end(f"the coordinator's run ended: {reason}")
        self.assembly.retries.end(f"the coordinator's run ended: {reason}")
        self.assembly.read.end(f"the coordinator's run ended: {reason}")
        self.context.note("node.incarnation_ended")
        self._effects.append(EndIncarnation(reason))
        self._is_over = True

    # --- peers ------------------------------------------------------------------------------------------------------

    def _connected(self, peer: str, incarnation: int) -> None:
        if peer not in self.context.peers:
            return
        was_connected = self.context.peers[peer].is_connected
        known = self.context.peers[peer].incarnation
        if known != incarnation:
            self.assembly.sender.closed(peer, None)
            if was_connected:
                self._lost(peer)
        self.assembly.peers.connected(peer, incarnation, self.context.now_us)
        if self._is_started and (not was_connected or known != incarnation):
            self._greet(peer)

    def _greet(self, peer: str) -> None:
        """A stream to `peer` stands: say again what it may have missed."""
        self.assembly.statements.connected()
        self.assembly.replication.reconnected(peer)
        self.assembly.receiver.connected(peer)
        self.assembly.quarantine.connected(peer)

    def _lost(self, peer: str) -> None:
        if peer not in self.context.peers:
            return
        self.assembly.peers.disconnected(peer)
        self.assembly.sender.closed(peer, None)
        self.assembly.read.lost(peer)
        self.assembly.forwarder.lost(peer)

    def _on_replicate(self, peer: str, message: messages.Replicate) -> None:
        context = self.context
        if context.distrusted:
            return
        answer = messages.Replicated(message.batch)
        try:
            taken = self.assembly.intake.take(
                message.records,
                lambda: context.send(peer, answer),
                may_be_early=True,
                answer=answer,
                noting=context.packed,
            )
        except RecordError as error:
            context.note("replicate.malformed")
            context.log("warning", f"records from {peer} are refused: {error}")
            return
        if taken.refused:
            context.send(peer, answer)  # nothing to wait for: these were not taken, and the coordinator must know

    def _on_replicated(self, peer: str, message: messages.Replicated) -> None:
        if self.context.packed in message.refused:
            self._end(f"{peer} takes no more of this incarnation: its streams are being closed")
            return
        self.assembly.replication.acknowledged(peer, message)

    def _on_statement(self, peer: str, message: messages.Statement) -> None:
        self.assembly.statements.heard(peer, message)
        for run in self._runs:
            run.heard(peer)
        if message.log_sequence:
            self.assembly.closings.stated(peer, self.context.peers[peer].incarnation, message.log_sequence)

    def _on_taken_back(self, peer: str, message: messages.TakenBack) -> None:
        incarnation = self.context.peers[peer].incarnation
        self.context.claims.heard(peer, incarnation, message.changes, message.partitions)
        if peer in self.assembly.members:
            self.assembly.receiver.stated(peer, message.logged)

    # --- closing ----------------------------------------------------------------------------------------------------

    def _on_agreement(self, peer: str, message: object) -> None:
        if self.assembly.commit.reserve(self.config.control_room_bytes // 4, is_control=True):
            self.context.note("agreement.no_room")  # it is said again
        else:
            self.assembly.definitions.heard(peer, message)

    def _on_vote_asked(self, peer: str, message: object) -> None:
        if self.has_standing:
            self._on_agreement(peer, message)
        else:
            self.context.note("agreement.asked_before_standing")

    def _on_close_answer(self, peer: str, message: messages.CloseAnswer) -> None:
        for run in self._runs:
            run.answer(peer, message)
        self._check_standing()

    def _on_close_fill(self, peer: str, message: messages.CloseFill) -> None:
        for run in self._runs:
            if run.close == message.close:
                run.fill(message)
                return
        self.assembly.closings.filled(message, self._sender_to(peer))

    def _on_close_filled(self, peer: str, message: messages.CloseFilled) -> None:
        for run in self._runs:
            run.filled(peer, message)

    def _on_cells_fetch(self, peer: str, message: messages.CellsFetch) -> None:
        tell = self._sender_to(peer)
        self.assembly.closings.cells.fetch(message, lambda held: tell(messages.CloseFilled(message.close, [held])))

    def _on_close_told(self, peer: str, message: messages.CloseTold) -> None:
        for run in self._runs:
            run.told(peer, message)

    def _decided(self, ticket: int, values: dict[bytes, bytes]) -> None:
        for run in self._runs:
            if run.decided(ticket, values):
                return

    def _is_heir(self, origin: bytes, partition: int) -> bool:
        """Whether what an earlier run of this node left there is this run's: nothing more of any of them can turn up."""
        machines, run = self.assembly, unpack_origin(origin).incarnation
        is_over = machines.closings.is_covered((origin, partition)) or run not in self._recovered.runs
        return is_over and bool(self._runs) and self._runs[0].is_over(partition)

    def _forgotten(self, stream: Stream) -> None:
        self.assembly.sender.forget(stream)
        self.assembly.receiver.forget(stream)
        self.context.operation_ids.forgotten(stream)

    def _defined(self, definition: NamespaceDefinition) -> None:
        """A namespace is usable here, or has changed."""
        self.assembly.statements.hurry()
        table = self.context.tables.get(definition.id)
        is_new = table is None and not definition.is_deleted
        policy = None if table is None else table.policy
        self.assembly.define(definition)
        if definition.is_deleted:
            self.upkeep.look_again()
        if table is not None and definition.is_deleted:
            for stream in table.streams:
                self._forgotten(stream)
        table = self.context.tables.get(definition.id)
        if table is not None and not is_new:
            self.assembly.sender.defined(table)
        if is_new and table is not None:
            self.assembly.closings.define(definition.id)
        if is_new or (table is not None and table.policy is not policy):
            self.assembly.receiver.reopen("definition")

    # --- time -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if not self._is_started:
            return
        machines = self.assembly
        is_heartbeat = machines.statements.tick()
        machines.rights.tick()
        machines.rights_drain.tick()
        machines.write.tick()
        machines.read.tick()
        machines.forwarder.tick()
        machines.retries.tick()
        machines.sender.tick(is_heartbeat)
        machines.receiver.tick(is_heartbeat)
        machines.definitions.tick()
        machines.closings.tick()
        machines.closings.cells.tick()
        machines.quarantine.tick()
        if self._loading:
            self._give_up_loading()
        machines.digests.tick()
        if is_heartbeat:
            self._heartbeat()

    def _heartbeat(self) -> None:
        machines = self.assembly
        machines.replication.tick()
        self.context.operation_ids.tick()
        for run in self._runs:
            run.tick()
        self._runs = self._runs[:1] + [run for run in self._runs[1:] if not run.is_done]
        self._check_standing()
        self.admin.tick()
        machines.quarantine.look()
        self.upkeep.tick()
        self.collector.tick()
        self.snapshots.tick()
        self._hold_back()
        machines.retention.trim()
        refusal = machines.retention.refusal(self.config.log_bytes_max)
        machines.clock_guard.stamped = machines.write.stamped
        machines.clock_guard.tick()
        machines.write.clock_refuses = machines.clock_guard.refusal
        self._say_read_only(machines.write.log_refuses, refusal)
        machines.write.log_refuses = refusal
        self._keep_bound()
        if not machines.commit.reserve(4096, is_control=True):
            self._log_seen()

    def _log_seen(self) -> None:
        """Remember across a restart what peers have stated of their own disks."""
        seen = self.assembly.closings.seen
        if self.context.now_us - self._seen_at_us >= 2_000_000 and seen != self._seen_logged:
            self._seen_at_us = self.context.now_us
            self._seen_logged = dict(seen)
            self.log_control(control.SEEN, {node: list(what) for node, what in seen.items()})


def with_left(batch: WriteBatch, left_us: int) -> WriteBatch:
    """A batch that has waited here: so much of its time is left."""
    left_ms = max(1, left_us // 1000)
    gone_ms = batch.timeout_ms - left_ms
    return replace(batch, timeout_ms=left_ms, remaining_ms=[max(0, own_ms - gone_ms) for own_ms in batch.remaining_ms])


def unavailable(request: WriteBatch | ReadBatch, why: str, node: str) -> Reply:
    """The answer of a node that serves nobody: nothing was numbered."""
    count = len(request.keys)
    outcomes: list[int] = [Outcome.UNAVAILABLE] * count
    details = {index: Detail(why) for index in range(count)}
    if isinstance(request, WriteBatch):
        return WriteReply(outcomes, [0] * count, [0] * count, [0] * count, node, 0, 0, details)
    return ReadReply(outcomes, [None] * count, [0] * count, [0] * count, node, 0, 0, details)
