"""Recovery: from the engine and the frames behind it to the state that was synced, and to what earlier runs left open.

    engine:      tables, and beside them frontiers and what control records had said, up to its position in the log
    frames:      those before the position are only indexed, for cursors; of the others control records and deltas in log order
    checkpoint:  what version 0.1 had in place of the engine; it is loaded into the engine, once

Cells of the log are merged in without a look at the tables, so that recovery takes as long as the log behind the position.

Invariants: after `restore` every frontier covers exactly what the disk holds. Only what is synced is here: whatever
the last run had told its peers beyond that is found by closing its streams.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from geokv.core.hlc import hlc_from_ms
from geokv.core.origin import Origin
from geokv.core.record import CELL, CONTROL, DELTA, Record, decode_records
from geokv.errors import CorruptLog, RecordError, StorageError
from geokv.protocol import claims, control
from geokv.protocol.journal import unpacked
from geokv.protocol.table import Table
from geokv.storage.advice import WHAT_TO_DO
from geokv.storage.position import Position

if TYPE_CHECKING:
    from geokv.node.assembly import Assembly

NOWHERE_MS: Final = 1 << 62  # later than any record


@dataclass(slots=True)
class Recovered:
    """What an earlier run left: its runs, their open origins, the HLC bound, and where the log ended."""

    runs: list[int] = field(default_factory=list)
    bound_ms: int = 0
    log_sequence: int = 0
    open_origins: list[bytes] = field(default_factory=list)
    deltas: int = 0
    replayed_bytes: int = 0  # what the log holds behind the engine's position


Checkpoint = tuple[int, bytes, Iterable[tuple[int, list[tuple[bytes, bytes]]]]]
"""A checkpoint of version 0.1: the segment where the log goes on, the node's state, namespaces' cells in pieces."""


def restore(
    assembly: Assembly,
    checkpoint: Checkpoint | None,
    frames: Iterable[tuple[int, int, bytes]],
) -> Recovered:
    """Bring `assembly` to what the disk holds. Raises StorageError for a state or frame that cannot be understood."""
    return _Restoring(assembly).run(checkpoint, frames)


class _Restoring:
    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._context = assembly.context
        self._recovered = Recovered()
        self._position = assembly.engine.position
        self._hlc_max = 0
        self._bodies = {
            control.RUN: self._run_noted,
            control.BOUND: self._bound,
            control.PROMISE: self._promise,
            control.CLOSING: self._closing,
            control.FORGOTTEN: self._forgotten,
            control.ACCEPT: self._accept,
            control.SLOT: self._slot,
            control.SEEN: self._seen,
            control.COVERED: self._covered,
            control.CONFLICTS: self._conflicts,
            control.QUARANTINE: self._withdrawn,
            control.COLLECTED: self._collected,
            control.HELD: self._context.operation_ids.restore_held,
        }

    def run(self, checkpoint: Checkpoint | None, frames: Iterable[tuple[int, int, bytes]]) -> Recovered:
        assembly = self._assembly
        recovered = self._recovered
        recovered.log_sequence = assembly.commit.log_sequence
        for definition in assembly.definitions.born():
            assembly.define(definition)
        if assembly.engine.meta:
            meta = self._state(assembly.engine.meta)
            assembly.engine.restored()
            for name, body in meta.get("learned", []):
                self._bodies[name](body)
        elif checkpoint is not None:
            self._migrate(*checkpoint)
        first_segment: int | None = None
        self._context.operation_ids.log_since_ms = NOWHERE_MS
        for segment, offset, payload in frames:
            first_segment = segment if first_segment is None else first_segment
            assembly.commit.segment = segment
            assembly.commit.position = (segment, offset + len(payload))
            assembly.commit.segment_last.setdefault(segment, {})
            self._frame(segment, offset, payload)
        end = Position(*assembly.commit.position)
        if self._position.offset and end < self._position:
            raise CorruptLog(
                f"the log ends at byte {end.offset} of segment {end.segment}, and the tables hold what stood up to byte"
                f" {self._position.offset} of segment {self._position.segment}: put the newest log back"
            )
        assembly.retention.first_segment = first_segment or 1
        if (first_segment or 1) == 1:
            self._context.operation_ids.log_since_ms = 0  # nothing was removed from it
        assembly.retention.built_segment = self._position.segment
        self._settle_streams()
        assembly.quarantine.recovered()
        self._context.clock.last = max(self._hlc_max, hlc_from_ms(recovered.bound_ms))
        recovered.open_origins = self._open_origins()
        return recovered

    # --- what was flushed -------------------------------------------------------------------------------------------

    def _migrate(self, segment: int, meta: bytes, pieces: Iterable[tuple[int, list[tuple[bytes, bytes]]]]) -> None:
        """Load a checkpoint of version 0.1 into the engine; after it the engine is what counts."""
        self._state(meta)
        tables: dict[int, dict[bytes, bytes]] = {namespace: {} for namespace in self._context.tables}
        for namespace, pairs in pieces:
            if namespace in tables:  # else it was deleted
                tables[namespace].update(pairs)
        pairs_of = ((namespace, sorted(cells.items())) for namespace, cells in tables.items())
        self._position = Position(segment, 0)
        self._assembly.engine.load(pairs_of, self._position, meta)

    def _state(self, packed: bytes) -> dict[str, Any]:
        meta: dict[str, Any] = control.unpack(packed)
        if meta.get("format") != 1:
            raise StorageError(f"the node's state is of format {meta.get('format')}: this version reads 1; use a newer geokv")
        self._recovered.runs = list(meta["runs"])
        self._recovered.bound_ms = meta["bound_ms"]
        self._accept(meta["agreement"])
        for slot in meta["slots"]:
            self._slot(slot)
        for origin, partitions in meta["promised"]:
            self._promise([origin, partitions])
        for namespace, partition, origin, frontier, beyond, dcs, peers in meta["streams"]:
            table = self._table(namespace)
            if table is not None:
                stream = table.streams.make(partition, origin)
                stream.frontier, stream.synced_beyond = frontier, set(beyond)
                stream.dcs, stream.peers = dcs, peers
        for closing in meta["closings"]:
            self._closing(closing)
        for origin, partitions in meta["closed"]:
            self._forgotten([origin, self._assembly.placement.mine if partitions is None else partitions])
        self._seen(meta["seen"])
        self._conflicts(meta.get("conflicts", []))
        for body in meta.get("quarantine", []):
            self._withdrawn(body)
        for collected in meta.get("collections", {}).items():
            self._collected(collected)
        self._context.operation_ids.restore_held(meta.get("held", b""))
        return meta

    def _table(self, namespace: int) -> Table | None:
        """None where it was deleted. Raises StorageError for one that was kept here, and now cannot be."""
        if namespace in self._assembly.unheld:
            raise StorageError(self._assembly.unheld[namespace])
        return self._context.tables.get(namespace)

    # --- frames -----------------------------------------------------------------------------------------------------

    def _frame(self, segment: int, offset: int, payload: bytes) -> None:
        try:
            records = decode_records(payload, verify=False)  # the frame's own checksum covers them
        except RecordError as error:
            raise CorruptLog(f"segment {segment}, frame at byte {offset}: {error}. {WHAT_TO_DO}") from error
        last = self._assembly.commit.segment_last[segment]
        is_new = (segment, offset) >= self._position
        self._recovered.replayed_bytes += len(payload) if is_new else 0
        for record in records:
            if record.kind == DELTA:
                self._delta(record, segment, offset, last, is_new)
            elif record.kind == CONTROL:
                if record.key == control.BOUND:
                    self._reaches(control.control_body(record)[0])
                if is_new:
                    body = self._bodies.get(record.key)
                    if body is None:
                        raise StorageError(f"a note {record.key!r} that this version does not know: use a newer geokv")
                    body(control.control_body(record))
            elif record.kind == CELL and is_new:
                self._merge(record)
            offset += len(record.raw)

    def _delta(self, record: Record, segment: int, offset: int, last: dict[Any, int], is_new: bool) -> None:
        table = self._table(record.namespace)
        self._hlc_max = max(self._hlc_max, record.hlc)
        if table is None:
            return  # its namespace was deleted
        if record.partition not in self._context.closed.get(record.origin, ()):
            stream = table.streams.make(record.partition, record.origin)
            stream.synced(record.number, segment, offset, len(record.raw))
            last[stream] = max(record.number, last.get(stream, 0))
        else:
            self._context.operation_ids.found_closed(record, segment, offset)
        if is_new:
            self._recovered.deltas += 1
            self._merge(record)

    def _reaches(self, bound_ms: int) -> None:
        """What this node numbered before the first bound that its log still holds was stamped below it. The records themselves
        do not tell: a closing brings late what an earlier run has lost, behind what was numbered since."""
        names = self._context.operation_ids
        if names.log_since_ms == NOWHERE_MS:
            names.log_since_ms = bound_ms

    def _merge(self, record: Record) -> None:
        table = self._context.tables.get(record.namespace)
        if table is not None:
            table.cells.merge_in(record.key, record.cell)
            table.cells.came(record.hlc)

    # --- control records --------------------------------------------------------------------------------------------

    def _run_noted(self, body: Any) -> None:
        if body[0] not in self._recovered.runs:
            self._recovered.runs.append(body[0])

    def _bound(self, body: Any) -> None:
        self._recovered.bound_ms = max(self._recovered.bound_ms, body[0])

    def _promise(self, body: Any) -> None:
        self._context.promised.setdefault(body[0], set()).update(body[1])

    def _closing(self, body: Any) -> None:
        self._assembly.closings.apply(body[0], body[1], body[2])

    def _forgotten(self, body: Any) -> None:
        self._assembly.closings.apply_forgotten(body[0], body[1])

    def _covered(self, body: Any) -> None:
        namespace, partition, origin, number = body
        table = self._context.tables.get(namespace)
        if table is not None and partition not in self._context.closed.get(origin, ()):
            table.streams.make(partition, origin).cover(number)

    def _collected(self, body: Any) -> None:
        namespace, count = body
        table = self._context.tables.get(namespace)
        if table is not None:
            table.collections = max(count, table.collections)

    def _conflicts(self, body: Any) -> None:
        for one in body:
            if one[1] in self._context.tables:
                self._context.journal.keep(unpacked(one))

    def _withdrawn(self, body: Any) -> None:
        self._context.claims.withdraw(claims.unpacked(body))

    def _accept(self, body: Any) -> None:
        for definition in self._assembly.definitions.restore_items(body):
            self._define(definition)

    def _slot(self, body: Any) -> None:
        for definition in self._assembly.definitions.restore_slot(body):
            self._define(definition)

    def _define(self, definition: Any) -> None:
        self._assembly.define(definition)
        if definition.id in self._context.tables:
            self._assembly.closings.define(definition.id)

    def _seen(self, body: Any) -> None:
        for node, (incarnation, sequence) in body.items():
            self._assembly.closings.seen[node] = (incarnation, sequence)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _settle_streams(self) -> None:
        """What is synced is what was taken; what a promise refuses stays refused until its closing comes."""
        context = self._context
        for table in context.tables.values():
            for stream in table.streams:
                stream.received = stream.frontier
                stream.beyond = set(stream.synced_beyond)
                stream.is_refused = stream.last is None and stream.partition in context.promised.get(stream.origin, ())

    def _open_origins(self) -> list[bytes]:
        """Earlier runs of this node that are not closed in all of its partitions."""
        mine = set(self._assembly.placement.mine)
        config = self._assembly.config
        origins = [Origin(config.dc, config.node, run).packed() for run in self._recovered.runs]
        return [origin for origin in origins if not mine <= self._context.closed.get(origin, set())]
