"""Sweeps: updates that take what only hid something that is gone: removals of a `set_rw`, a disabling, values that expired.

A removal that must win over additions which it has not seen stays in the cell. Once it is stable, all that it had to win over
has come, and one update takes it, with a dot of its own that travels as any other: an addition that is made where it is gone
must not meet it again elsewhere, and lose. When that update is stable too, a cell without items is collected.

    rule (node.collector) ──> keys of the namespace, some at a time ──> this node's partitions ──> cells ──> deltas, in batches

One owner of a partition sweeps it: the first of its owners in one of the datacenters, each partition its own. Nobody has to
stand in for it, because nothing is stable while it is silent.

Invariants: only what is stable is taken, and only where the cell is all in memory. Without its claim a node sweeps nothing: of
a cell that lost a part, the next update would take what it does not know of. At most BATCH_KEYS updates are made in one step.
Two sweeps of one item do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from geokv.core.cells import codec
from geokv.core.cells.context import Dot
from geokv.core.cells.update import sweep
from geokv.core.conflict import IsStable, Policy
from geokv.core.record import DELTA, NO_OPERATION, encode_record
from geokv.core.ring import key_hash
from geokv.errors import GeokvError
from geokv.protocol.commit import Entry
from geokv.protocol.context import Context
from geokv.protocol.placement import Placement
from geokv.protocol.replication import Part, Replication
from geokv.protocol.table import Table

SCAN_KEYS: Final = 1_000  # looked at in one step
BATCH_KEYS: Final = 100  # swept in one step


@dataclass(slots=True)
class _Walk:
    """A namespace on its way through. `found`: keys of this node's partitions that are still to be looked at."""

    table: Table
    policy: Policy  # with another one, what is hidden may hide something again
    is_stable: Callable[[int], IsStable]
    clock_ms: int
    keys: Iterator[bytes] | None
    found: list[bytes]
    is_waiting: bool = False


class Sweeper:
    """Sweeps the namespaces that it is told of, one step per heartbeat."""

    def __init__(self, context: Context, placement: Placement, replication: Replication) -> None:
        self._context = context
        self._placement = placement
        self._replication = replication
        self._walks: dict[int, _Walk] = {}

    def begin(self, namespace: int, is_stable: Callable[[int], IsStable], clock_ms: int) -> None:
        """Walk through a namespace, unless that is under way. `is_stable`: of a partition, whether a dot in it is."""
        table = self._context.tables.get(namespace)
        if table is None or table.policy.kind is None or not table.policy.kind.leaves_traces or namespace in self._walks:
            return
        if table.policy.earlier:
            return  # what may still hide items of another type is kept
        self._walks[namespace] = _Walk(table, table.policy, is_stable, clock_ms, table.cells.keys(), [])

    def is_mine(self, table: Table, partition: int) -> bool:
        """Whether this node is the one that sweeps the partition."""
        dcs = table.definition.dcs
        owners = self._placement.by_dc[dcs[partition % len(dcs)]][partition]
        return owners[partition // len(dcs) % len(owners)] == self._context.node

    def tick(self) -> None:
        """One step of each walk."""
        for namespace, walk in list(self._walks.items()):
            if self._is_over(walk):
                del self._walks[namespace]
            elif not walk.is_waiting:
                try:
                    is_done = self._step(walk)
                except GeokvError:
                    is_done = True  # what cannot be read is told by whoever needs it; the next rule tries again
                if is_done:
                    del self._walks[namespace]

    def _is_over(self, walk: _Walk) -> bool:
        """Whether the namespace was deleted or its policy changed, or the node must not write."""
        table, context = walk.table, self._context
        return (
            context.tables.get(table.definition.id) is not table or table.policy is not walk.policy or bool(context.is_refusing)
        )

    def _step(self, walk: _Walk) -> bool:
        table = walk.table
        if walk.keys is not None and len(walk.found) < BATCH_KEYS:
            keys = list(islice(walk.keys, SCAN_KEYS))
            shift = table.placement.shift
            walk.found += [key for key in keys if self.is_mine(table, key_hash(key) >> shift)]
            if len(keys) < SCAN_KEYS:
                walk.keys = None
        if not walk.found:
            return walk.keys is None
        some, walk.found = walk.found[:BATCH_KEYS], walk.found[BATCH_KEYS:]
        missing = table.missing(some)
        if not missing:
            self._sweep(walk, some)
            return False
        walk.is_waiting = True

        def loaded(error: str) -> None:
            walk.is_waiting = False
            if not error and not self._is_over(walk):
                self._sweep(walk, some)

        self._context.loading.load(table.cells, missing, loaded)
        return False

    def _sweep(self, walk: _Walk, keys: list[bytes]) -> None:
        """Make the deltas of these keys, and send them as any others."""
        context, table = self._context, walk.table
        kind = table.policy.kind
        assert kind is not None
        by_set: dict[int, list[Entry]] = {}
        packed, namespace = context.packed, table.definition.id
        lost = context.claims.mine(namespace)
        for key in keys:
            partition = key_hash(key) >> table.placement.shift
            stream = table.streams.make(partition, packed)
            number = stream.received + 1
            try:
                stored = None if partition in lost or table.missing([key]) else table.visible(key)
                if stored is None:
                    continue
                state = codec.decode(kind.tag, stored)
            except GeokvError:
                continue  # what cannot be read is told by whoever needs it; the next rule tries again
            delta = sweep(kind, state, Dot(packed, number), walk.is_stable(partition), walk.clock_ms)
            if delta is None:
                continue
            cell = codec.encode(kind.tag, delta)
            hlc = context.clock.stamps(context.wall_ms, 1)
            if context.commit.reserve(2 * len(cell) + 512) or self._replication.is_full or not self._may_stamp(hlc):
                context.note("sweep.no_room")
                break
            raw = encode_record(DELTA, partition, namespace, number, hlc, NO_OPERATION, packed, key, cell)
            stream.received = number
            context.decoded.drop(namespace, key)
            table.waiting[key] = table.policy.append(stored, cell)
            context.commit.originated(hlc)
            table.came(hlc)
            entries = by_set.setdefault(table.placement.set_of[partition], [])
            entries.append((raw, stream, number))
        for owner_set, entries in by_set.items():
            self._launch(table, owner_set, entries)

    def _may_stamp(self, hlc: int) -> bool:
        return hlc >> 16 < self._context.bound_ms

    def _launch(self, table: Table, owner_set: int, entries: list[Entry]) -> None:
        context = self._context
        context.note("sweep.swept", len(entries))
        records = b"".join([raw for raw, _, _ in entries])
        sent: Part = self._replication.start(table.placement.peers_of_set[owner_set], records, lambda _: None)
        self._replication.release(sent)
        context.commit.add(entries, len(records), (table,), lambda: self._replication.own_synced(sent), None)
