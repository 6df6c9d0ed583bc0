"""A small honest store behind the machines' contract: what the checkers are tried on, whole and with planted bugs.

Quorum writes and reads inside a datacenter, last writer wins, one log; between replicas it exchanges all cells now and then.
It knows one namespace and closes no streams. Each rule that a checker guards is one method here, so that a planted bug is
one override.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from geokv.core.cell import decode_lww, encode_lww, live_value, lww_version
from geokv.core.hlc import HybridClock
from geokv.core.origin import Origin, draw_incarnation
from geokv.core.quorum import Consistency, needed
from geokv.core.record import CELL, DELTA, NO_OPERATION, Record, decode_records, encode_record
from geokv.core.ring import Member, Ring, partition_of
from geokv.core.topology import Topology
from geokv.protocol.effects import (
    Answer,
    Asked,
    Delivered,
    Effect,
    EndIncarnation,
    Event,
    PeerConnected,
    PeerLost,
    Persist,
    Persisted,
    PersistFailed,
    Send,
    WallClockRead,
    Woken,
)
from geokv.protocol.messages import CellsRead, ReadCells, Replicate, Replicated, Statement, StreamHeads
from geokv.protocol.requests import Outcome, ReadBatch, ReadReply, WriteBatch, WriteReply

NAMESPACE = 1
EXCHANGE_US = 150_000
PATIENCE_US = 400_000


@dataclass
class Writing:
    call: int
    batch: WriteBatch
    versions: list[int]
    wanted: int
    deadline_us: int
    have: set[str] = field(default_factory=set)


@dataclass
class Reading:
    call: int
    batch: ReadBatch
    wanted: int
    deadline_us: int
    cells: dict[str, list[bytes]] = field(default_factory=dict)


class FakeNode:
    """One node. `topology` names the others; every node of a datacenter owns everything when replicas == nodes."""

    def __init__(self, topology: Topology, name: str, rng: random.Random, wall_us: int, table: dict[bytes, bytes]) -> None:
        self.topology = topology
        self.name = name
        self.dc = topology.node(name).dc
        self.rng = rng
        self.table = table  # visible: synced
        self.incarnation = draw_incarnation(wall_us // 1000, rng)
        self.origin = Origin(self.dc, name, self.incarnation)
        self.is_refusing = ""
        self.clock = HybridClock()
        self.wall_ms = wall_us // 1000
        self.numbers: dict[int, int] = {}
        self.frontiers: dict[tuple[int, bytes], set[int]] = {}
        self.connected: dict[str, bool] = {}
        self.waiting: list[tuple[bytes, list[Any]]] = []
        self.persisting: list[Any] | None = None
        self.token = 0
        self.batch = 0
        self.writing: dict[int, Writing] = {}
        self.reading: dict[int, Reading] = {}
        self.next_exchange_us = 0
        self.now_us = 0
        self.out: list[Effect] = []
        dc = topology.datacenter(self.dc)
        self.ring = Ring(topology.partitions, [Member(node.name, node.rack) for node in dc.nodes])
        self.replicas = dc.replicas

    # --- recovery -----------------------------------------------------------------------------------------------------

    def replay(self, payload: bytes) -> None:
        for record in decode_records(payload):
            self.learn(record)
            self.show(record)

    def learn(self, record: Record) -> None:
        if record.kind == DELTA:
            self.frontiers.setdefault((record.partition, record.origin), set()).add(record.number)
        self.clock.observe(record.hlc, self.wall_ms)

    def show(self, record: Record) -> None:
        known = self.table.get(record.key)
        self.table[record.key] = record.cell if known is None else self.merge(known, record.cell)

    def merge(self, known: bytes, incoming: bytes) -> bytes:
        return max(known, incoming)

    # --- the machine --------------------------------------------------------------------------------------------------

    def wake_at_us(self) -> int | None:
        return self.next_exchange_us

    def handle(self, event: Event, now_us: int) -> list[Effect]:
        self.now_us = now_us
        self.out = []
        match event:
            case WallClockRead(wall_us):
                self.wall_ms = wall_us // 1000
            case Asked(call, WriteBatch() as batch):
                self.write(call, batch)
            case Asked(call, ReadBatch() as batch):
                self.read(call, batch)
            case Delivered(peer, message):
                self.delivered(peer, message)
            case PeerConnected(peer, _):
                self.connected[peer] = True
            case PeerLost(peer, _):
                self.connected[peer] = False
            case Persisted():
                self.persisted()
            case PersistFailed(_, reason):
                self.failed(reason)
            case Woken():
                self.woken()
        return self.out

    def delivered(self, peer: str, message: object) -> None:
        match message:
            case Replicate(batch, records):
                self.take(peer, batch, records)
            case Replicated(batch):
                writing = self.writing.get(batch)
                if writing is not None:
                    writing.have.add(peer)
                    self.settle(batch, writing)
            case ReadCells(query, _, keys):
                self.out.append(Send(peer, CellsRead(query, [self.table.get(key, b"") for key in keys], b"")))
            case CellsRead(query, cells):
                reading = self.reading.get(query)
                if reading is not None:
                    reading.cells[peer] = cells
                    self.settle_read(query, reading)

    def failed(self, reason: str) -> None:
        self.out.append(EndIncarnation(reason))

    # --- the log: one Persist at a time -------------------------------------------------------------------------------

    def log(self, records: bytes, then: Any) -> None:
        self.waiting.append((records, [then]))
        self.flush()

    def flush(self) -> None:
        if self.persisting is None and self.waiting:
            payload = b"".join(records for records, _ in self.waiting)
            self.persisting = [then for _, thens in self.waiting for then in thens]
            self.payload = payload
            self.waiting = []
            self.token += 1
            self.out.append(Persist(self.token, payload, True))

    def persisted(self) -> None:
        done, self.persisting = self.persisting or [], None
        for record in decode_records(self.payload, verify=False):
            self.learn(record)
            self.show(record)
        for then in done:
            then()
        self.flush()

    # --- writes ---------------------------------------------------------------------------------------------------------

    def peers_here(self) -> list[str]:
        return [node.name for node in self.topology.datacenter(self.dc).nodes if node.name != self.name]

    def stamp(self, key: bytes) -> int:
        """A version above everything that this node stamped or holds of the key."""
        stored = lww_version(self.table[key]) if key in self.table else 0
        return max(self.clock.stamp(self.wall_ms), stored + 1)

    def number(self, partition: int) -> int:
        number = self.numbers[partition] = self.numbers.get(partition, 0) + 1
        return number

    def observe(self, hlc: int) -> None:
        self.clock.observe(hlc, self.wall_ms)

    def write(self, call: int, batch: WriteBatch) -> None:
        wanted = needed(batch.level, batch.w, self.replicas)
        live = 1 + sum(1 for peer in self.peers_here() if self.connected.get(peer))
        if live < wanted:
            count = len(batch.keys)
            zeros = [0] * count
            outcomes = [int(Outcome.UNAVAILABLE)] * count
            self.out.append(Answer(call, WriteReply(outcomes, zeros, zeros, zeros, self.name, 0, 0)))
            return
        self.observe(batch.seen_hlc)
        versions, records = [], []
        for key, value in zip(batch.keys, batch.values, strict=True):
            version = self.stamp(key)
            self.observe(version)
            partition = partition_of(key, self.topology.partitions)
            number = self.number(partition)
            deadline_ms = (version >> 16) + batch.ttl_ms if batch.ttl_ms > 0 else 0
            origin = self.origin.packed()
            cell = encode_lww(version, origin, number, value is None, deadline_ms, 0, value or b"")
            records.append(encode_record(DELTA, partition, NAMESPACE, number, version, NO_OPERATION, origin, key, cell))
            versions.append(version)
        self.batch += 1
        self.writing[self.batch] = Writing(call, batch, versions, wanted, self.now_us + PATIENCE_US)
        self.spread(self.batch, b"".join(records))

    def spread(self, batch: int, records: bytes) -> None:
        """To the own log and to the co-owners, at once."""
        self.log(records, lambda: self.own_is_synced(batch))
        for peer in self.peers_here():
            self.out.append(Send(peer, Replicate(batch, records)))

    def own_is_synced(self, batch: int) -> None:
        writing = self.writing.get(batch)
        if writing is not None:
            writing.have.add(self.name)
            self.settle(batch, writing)

    def settle(self, batch: int, writing: Writing) -> None:
        if self.name in writing.have and len(writing.have) >= writing.wanted:
            self.answer(batch, writing, Outcome.APPLIED)

    def answer(self, batch: int, writing: Writing, outcome: Outcome) -> None:
        self.writing.pop(batch, None)
        count = len(writing.versions)
        reply = WriteReply(
            [int(outcome)] * count,
            writing.versions,
            [self.claimed(writing)] * count,
            [1] * count,
            self.name,
            self.clock.last,
            0,
        )
        self.out.append(Answer(writing.call, reply))

    def claimed(self, writing: Writing) -> int:
        return len(writing.have)

    def take(self, peer: str, batch: int, records: bytes) -> None:
        """Log what a peer sent; tell it once that is synced."""
        if batch:
            self.log(records, lambda: self.out.append(Send(peer, Replicated(batch))))
        else:
            self.log_if_new(records)

    def log_if_new(self, records: bytes) -> None:
        new = [r.raw for r in decode_records(records) if self.table.get(r.key, b"") < r.cell]
        if new:
            self.log(b"".join(new), lambda: None)

    # --- reads ----------------------------------------------------------------------------------------------------------

    def read(self, call: int, batch: ReadBatch) -> None:
        wanted = needed(batch.level, batch.r, self.replicas)
        self.batch += 1
        reading = self.reading[self.batch] = Reading(call, batch, wanted, self.now_us + PATIENCE_US)
        reading.cells[self.name] = [self.table.get(key, b"") for key in batch.keys]
        if wanted > 1:
            for peer in self.peers_here():
                self.out.append(Send(peer, ReadCells(self.batch, NAMESPACE, batch.keys, False)))
        self.settle_read(self.batch, reading)

    def settle_read(self, query: int, reading: Reading) -> None:
        if len(reading.cells) < reading.wanted:
            return
        del self.reading[query]
        merged = [max(column) for column in zip(*reading.cells.values(), strict=True)]
        for cell in merged:
            self.observe(lww_version(cell) if cell else 0)
        values = [self.shown(cell) for cell in merged]
        self.out.append(
            Answer(
                reading.call,
                ReadReply(
                    [int(Outcome.APPLIED)] * len(merged),
                    values,
                    [lww_version(cell) if cell else 0 for cell in merged],
                    [len(reading.cells)] * len(merged),
                    self.name,
                    self.clock.last,
                    0,
                ),
            )
        )

    def shown(self, cell: bytes) -> bytes | None:
        return live_value(cell, self.wall_ms) if cell else None

    # --- time -----------------------------------------------------------------------------------------------------------

    def woken(self) -> None:
        self.next_exchange_us = self.now_us + EXCHANGE_US
        for batch, writing in list(self.writing.items()):
            if writing.deadline_us <= self.now_us:
                self.answer(batch, writing, Outcome.PARTIAL)
        for query, reading in list(self.reading.items()):
            if reading.deadline_us <= self.now_us:
                del self.reading[query]
                zeros = [0] * len(reading.batch.keys)
                outcomes = [int(Outcome.UNAVAILABLE)] * len(zeros)
                reply = ReadReply(outcomes, [None] * len(zeros), zeros, zeros, self.name, 0, 0)
                self.out.append(Answer(reading.call, reply))
        self.exchange()
        self.state()

    def exchange(self) -> None:
        """Give one peer, anywhere, all cells."""
        peer = self.rng.choice([node.name for node in self.topology.nodes if node.name != self.name])
        records = [
            encode_record(
                CELL,
                partition_of(key, self.topology.partitions),
                NAMESPACE,
                0,
                0,
                NO_OPERATION,
                decode_lww(cell).origin,
                key,
                cell,
            )
            for key, cell in self.exchanged()
        ]
        self.out.append(Send(peer, Replicate(0, b"".join(records))))

    def exchanged(self) -> Iterable[tuple[bytes, bytes]]:
        return self.table.items()

    def state(self) -> None:
        heads = [
            StreamHeads(NAMESPACE, origin, [partition], [self.frontier(numbers)])
            for (partition, origin), numbers in self.frontiers.items()
        ]
        for peer in self.peers_here():
            self.out.append(Send(peer, Statement(self.now_us, 0, self.wall_ms, self.clock.last, 0, True, heads, [], {})))

    def frontier(self, numbers: set[int]) -> int:
        number = 0
        while number + 1 in numbers:
            number += 1
        return number


def fake(kind: type[FakeNode] = FakeNode) -> Any:
    """What `World` takes as `recover`."""

    def bound(topology: Topology) -> Any:
        def recover(
            name: str,
            rng: random.Random,
            now_us: int,
            wall_us: int,
            checkpoint: Any,
            frames: Iterable[tuple[int, int, bytes]],
            room_bytes: int,
            log_sequence: int,
            engine: Any,
        ) -> FakeNode:
            engine.create(NAMESPACE, "lww")
            node = kind(topology, name, rng, wall_us, engine.table(NAMESPACE))
            for _, _, payload in frames:
                node.replay(payload)
            node.next_exchange_us = now_us + rng.randrange(EXCHANGE_US)
            return node

        return recover

    return bound


__all__ = ["Consistency", "FakeNode", "fake"]
