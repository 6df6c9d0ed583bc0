"""Taking in records that others numbered: the one door for replication, feeds, repair and closings.

    records --decode--> known? new? not refused? --> merged + next frame --> after the sync: `then`

What is dropped, and why it is safe: a number that is here already (its delta is merged), one of an origin that this
replica promised to refuse or that is closed for good (it comes with the closing, or exists nowhere), one whose
namespace is not defined here yet (it stays in the sender's log and comes again).

A whole cell (of a repair, or in the place of records) names in its number this replica's count of collections of the
namespace, as it was known before any of the cells was read that it was merged from. Where the count has moved since, the cell
is dropped: it could hold what the collected tombstone had deleted, and nobody here would know. Deltas need none: those that a
tombstone deleted are covered by the frontier, and are dropped for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from geokv.core.cell import TAG, is_concurrent
from geokv.core.cells import halves
from geokv.core.cells.context import Dot
from geokv.core.cells.state import CellState
from geokv.core.partial import Partial
from geokv.core.record import CELL, DELTA, Record, decode_records
from geokv.errors import RecordError, StorageError
from geokv.protocol.commit import Entry
from geokv.protocol.context import Context
from geokv.protocol.journal import EVERYBODY
from geokv.protocol.messages import Replicated
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table

Doubt = tuple[Table, int, bytes, bytes]
"""(table, index of the record, key, its cell) of a record to which the disk may hold a newer version."""


@dataclass(slots=True)
class Taken:
    """What became of a batch of records. `present`: those that are here now, new ones (`fresh` of them) and old."""

    fresh: int = 0
    present: list[Record] = field(default_factory=list)
    newer: list[tuple[int, int]] = field(default_factory=list)
    refused: dict[bytes, None] = field(default_factory=dict)
    unknown: dict[int, None] = field(default_factory=dict)
    forgotten: dict[tuple[bytes, int], None] = field(default_factory=dict)
    contiguous: bool = True
    reason: str = ""  # nothing was taken: no room


class Intake:
    """Takes records of others into this node's log and tables."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.refuses = ""  # why nothing can be taken
        self._waiting_told: set[int] = set()  # namespaces some of whose records were held up, told once

    def take(  # noqa: C901, PLR0915  # the hot loop: every call in it would be a percent of a core
        self,
        records: bytes,
        then: Callable[[], None],
        is_closing: bool = False,
        may_be_early: bool = False,
        answer: Replicated | None = None,
        noting: bytes | None = None,
    ) -> Taken:
        """Take `records`; `then` runs once everything of them is synced here (also what was here or on its way before).

        `is_closing`: a closer brings them, so a promise does not stand in the way. `may_be_early`: where all of them
        belong to namespaces with durability "interval", `then` does not wait for the sync. `answer`: filled in with
        what became of the records, before `then` can run. `noting`: conflicts with what is stored go into the journal, where
        the stored write's packed origin begins so (None: nowhere). Raises RecordError for bytes that are no records; then
        nothing was taken.
        """
        context = self._context
        taken = Taken()
        if len(records) > 0:
            taken.reason = self.refuses or context.commit.reserve(len(records))
        if taken.reason:
            context.note("intake.no_room")
            return taken
        decoded = decode_records(records)
        entries: list[Entry] = []
        tables: dict[int, Table] = {}
        present = taken.present
        all_tables = context.tables
        last_namespace = -1
        hlc_last = 0
        table: Table | None = None
        is_lww = False
        partitions: list[dict[bytes, Stream]] = []
        waiting: dict[bytes, bytes] = {}
        flying: dict[bytes, bytes] = {}
        peek: Callable[[bytes], bytes | None] = waiting.get
        doubts: list[Doubt] = []
        removals = context.journal.removals.held
        for index, record in enumerate(decoded):
            raw, kind, partition, namespace, number, hlc, origin, key, cell = record
            if namespace != last_namespace:
                table = all_tables.get(namespace)
                last_namespace = namespace
                if table is None:
                    if namespace not in context.deleted:
                        taken.unknown[namespace] = None
                        taken.contiguous = False
                    continue
                tables[namespace] = table
                is_lww = table.policy.kind is None
                partitions = table.streams.partitions
                waiting, flying, peek = table.waiting, table.flying, table.cells.peek
            elif table is None:
                continue
            if partition >= len(partitions) or kind > CELL:
                context.note("intake.malformed")
                taken.contiguous = False
                continue
            if is_lww:
                arriving = None
                if cell[:1] != TAG:
                    self._wait(taken, table)
                    continue
            elif (arriving := self._decoded(table, record, taken)) is None:
                continue
            stream: Stream | None = None
            if kind == DELTA:
                stream = partitions[partition].get(origin) or context.stream(table, partition, origin)
                if stream is None:
                    taken.forgotten[origin, partition] = None
                    continue
                if stream.is_refused and not is_closing:
                    taken.refused[origin] = None
                    taken.contiguous = False
                    continue
                if number == stream.received + 1 and stream.last is None and not stream.beyond:
                    stream.received = number  # as `take` does it, without the call
                elif not stream.take(number):
                    if number <= stream.received or number in stream.beyond:
                        present.append(record)
                        taken.contiguous &= number <= stream.received and self._is_kept(stream, number)
                        held = waiting.get(key) or flying.get(key) or peek(key)
                        if is_lww and held is not None and held > cell:  # the word of it may have been lost
                            taken.newer.append((index, _above(held, cell)))
                        elif is_lww and type(held) is not bytes:
                            doubts.append((table, index, key, cell))
                    elif stream.last is None:
                        taken.contiguous = False
                    continue
                elif stream.received < number:
                    taken.contiguous = False
            elif number != table.collections:  # it may bring back what was collected since its exchange began
                context.note("repair.collected_since")
                taken.contiguous = False
                continue
            stored = waiting.get(key) or flying.get(key) or peek(key)
            if stored is None:
                if cell <= table.cells.ceiling:
                    if is_lww:
                        doubts.append((table, index, key, cell))
                    cell = table.blind(key, cell)
                waiting[key] = cell
                if is_lww and noting == EVERYBODY and kind == DELTA:
                    self._note_behind(table, key, cell)
            elif is_lww:
                # Nearly always it is newer, and names the stored version, or a later one, as the one that it replaced.
                at = 26 + len(origin)
                if noting is not None and kind == DELTA and cell[at : at + 8] < stored[1:9] and stored.startswith(noting, 9):
                    # Of what came from elsewhere, that is what the node has noted which took it in, but for a race.
                    is_echo = noting != EVERYBODY and not origin.startswith(context.packed_dc)
                    context.journal.met_lww(table, key, stored, cell, context.wall_ms, is_echo)
                if stored > cell:
                    taken.newer.append((index, _above(stored, cell)))
                    waiting[key] = stored
                elif type(stored) is bytes:
                    waiting[key] = cell
                else:
                    doubts.append((table, index, key, cell))
                    waiting[key] = table.blind(key, cell)
            else:
                assert arriving is not None
                if cell[:1] == TAG and noting == EVERYBODY and kind == DELTA:
                    self._note_halves(table, key, stored, cell)
                if type(stored) is bytes:
                    waiting[key] = context.decoded.append(table.policy, namespace, key, stored, cell, arriving)
                else:
                    waiting[key] = Partial(table.policy.append(stored, cell))
            if arriving is not None and kind == DELTA:
                if noting == EVERYBODY:
                    self._note(table, record)
                if removals and (namespace, key) in removals:
                    self._note_outlived(table, record, arriving)
            if hlc > hlc_last:
                hlc_last = hlc
            if hlc < table.since:
                table.since = hlc
            entries.append((raw, stream, number))
            present.append(record)
        if not context.clock.observe(hlc_last, context.wall_ms):
            for record in decoded:  # one of them is from a clock that is far ahead; the others are followed
                context.clock.observe(record.hlc, context.wall_ms)
        taken.fresh = len(entries)
        if answer is not None:
            answer.contiguous, answer.newer = taken.contiguous, taken.newer
            answer.refused, answer.unknown = list(taken.refused), list(taken.unknown)
            then = self._once_sure(doubts, taken.newer, then)
        if not entries:
            context.commit.after_pending(then)
        else:
            sync_by_us = self._sync_by_us(tables.values())
            is_early = may_be_early and sync_by_us is not None
            nbytes = len(records) if len(entries) == len(decoded) else sum([len(entry[0]) for entry in entries])
            context.commit.add(entries, nbytes, tables.values(), None if is_early else then, sync_by_us)
            if is_early:
                then()
        return taken

    def _is_kept(self, stream: Stream, number: int) -> bool:
        """Whether a number that was taken is still here: without a claim only what the log holds is sure to be."""
        if stream.partition not in self._context.claims.mine(stream.namespace):
            return True
        return number > stream.frontier or stream.place(number) is not None

    def _note(self, table: Table, record: Record) -> None:
        """What a shipped update met in this datacenter, of types for which that decides something."""
        sort = table.policy.kind
        assert sort is not None
        if not sort.is_contested:
            return

        def met(state: CellState) -> None:
            context, dot = self._context, Dot(record.origin, record.number)
            context.journal.met_dots(table, record.key, state, dot, record.hlc, context.wall_ms)

        self._look(table, record, met)

    def _note_outlived(self, table: Table, record: Record, arriving: CellState) -> None:
        """This node has taken something away of that key: noted where what arrives outlives it."""
        context, sort, dot = self._context, table.policy.kind, Dot(record.origin, record.number)
        assert sort is not None
        try:
            missed = context.journal.removals.missed_by(record.namespace, record.key, sort, arriving, dot)
        except RecordError:
            return  # a payload of a type that this version does not know
        if missed is None:
            return

        def lives(state: CellState) -> None:
            if dot.number in state.items.get(dot.origin, ()):
                context.journal.outlived(table, record.key, *missed, record.hlc, context.wall_ms)

        self._look(table, record, lives)

    def _look(self, table: Table, record: Record, then: Callable[[CellState], None]) -> None:
        """`then` with the state of a record's key, once that is in memory; never where it cannot be read."""

        def look(error: str = "") -> None:
            try:
                cell = None if error else table.visible(record.key)
            except StorageError:  # a cache has let go of it, and now it cannot be read
                cell = None
            if cell is not None:
                then(self._context.decoded.state(table.policy, record.namespace, record.key, cell))

        missing = table.missing([record.key])
        if missing:
            self._context.loading.load(table.cells, missing, look)
        else:
            look()

    def _note_halves(self, table: Table, key: bytes, stored: bytes, cell: bytes) -> None:
        """An lww cell came from where the policy has not been changed yet: what it met in the lww half."""
        try:
            held = halves.decode(stored).lww
        except RecordError:
            return
        if held is not None:
            self._context.journal.met_lww(table, key, held, cell, self._context.wall_ms)

    def _note_behind(self, table: Table, key: bytes, cell: bytes) -> None:
        """An lww cell came over the WAN, and the memtables did not have all of its key: what the caches have of it, it met.

        What stands on the disk alone is not read for it: once it is loaded, it is merged with what came.
        """
        if not table.cells.may_hold(key):
            return
        if table.cells.missing([key]):
            self._context.count("journal.not_looked")
            return
        behind = table.cells.get(key)
        if behind is not None:
            self._context.journal.met_lww(table, key, behind, cell, self._context.wall_ms)

    def _decoded(self, table: Table, record: Record, taken: Taken) -> CellState | None:
        """The cell of a record, where it is one of the policy: behind the stored one, anything else would spoil both."""
        policy, cell = table.policy, record.cell
        try:
            if policy.holds(cell) if policy.earlier else cell and cell[0] in policy.tags:
                return policy.decode(cell)
            self._wait(taken, table)
        except RecordError as error:
            self._context.log("error", f"a record of {record.origin!r} in {table.definition.name!r} is held up: {error}")
            self._context.note("intake.malformed")
            taken.contiguous = False
        return None

    def _wait(self, taken: Taken, table: Table) -> None:
        """A record under a newer definition than is known here: it comes again, as those of an unknown namespace do."""
        self._context.note("intake.policy_unknown")
        if table.definition.id not in self._waiting_told:
            self._waiting_told.add(table.definition.id)
            text = f"records of namespace {table.definition.name!r} are held up: they were made under a definition"
            self._context.log("warning", f"{text} that has not come here yet")
        taken.unknown[table.definition.id] = None
        taken.contiguous = False

    def _once_sure(self, doubts: list[Doubt], newer: list[tuple[int, int]], then: Callable[[], None]) -> Callable[[], None]:
        """`then`, once it is known too which of the `doubts` the disk holds newer versions of: those are added to `newer`.

        Few are in doubt: those whose version is not above all that was flushed, and whose key a table may hold.
        """
        by_table: dict[int, list[Doubt]] = {}
        for doubt in doubts:
            if doubt[0].cells.may_hold(doubt[2]):
                by_table.setdefault(doubt[0].definition.id, []).append(doubt)
        if not by_table:
            return then
        self._context.count("intake.looked_on_disk", sum(map(len, by_table.values())))
        waits = 1 + len(by_table)

        def one_less() -> None:
            nonlocal waits
            waits -= 1
            if not waits:
                then()

        def loaded(some: list[Doubt], error: str) -> None:
            try:
                for table, index, key, cell in some if not error else ():
                    held = table.cells.get(key)
                    if held is not None and held > cell:
                        newer.append((index, _above(held, cell)))
            except StorageError as failure:  # a cache has let go of it, and now it cannot be read
                error = str(failure)
            if error:
                self._context.note("intake.doubt_not_read")  # it is synced here all the same; only the word of newer is missing
            one_less()

        for some in by_table.values():
            self._context.loading.load(some[0][0].cells, [doubt[2] for doubt in some], partial(loaded, some))
        return one_less

    def _sync_by_us(self, tables: Iterable[Table]) -> int | None:
        """When the frame must be synced: None (at once) unless all tables sync by interval."""
        latest: int | None = None
        for table in tables:
            if not table.is_interval:
                return None
            due = self._context.now_us + table.definition.interval_ms * 1000
            latest = due if latest is None else min(latest, due)
        return latest


def _above(held: bytes, cell: bytes) -> int:
    """What a write must be stamped above to win over the newer `held`: 0 where whoever wrote that may have seen it."""
    return int.from_bytes(held[1:9], "big") if is_concurrent(held, cell) else 0
