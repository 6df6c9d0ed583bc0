"""Whole cells in the place of records that are in no log any more.

A closing needs every owner to have what any owner has. A number that an owner covers, and that no log holds (they were
trimmed), comes to who lacks it as all cells of its partition, page by page, from the owner that covers it:

    closer ──CellsFetch──> who lacks it ──CellsWanted──> who covers it
                                        <──CellsPage───  cells in key order, and the frontier with the first page
                           after the last page is synced: a note of what is covered now, then CloseFilled to the closer

Invariants: a frontier is claimed only when all pages and the note are synced; it is the one that the giver had when the
first page was made, so whatever it covers is in these pages or in newer cells. One page per fetch is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.core.limits import LOG_READ_BYTES_MAX
from geokv.core.record import CELL, NO_OPERATION, decode_records, encode_record
from geokv.core.ring import key_hash
from geokv.errors import RecordError
from geokv.protocol import control
from geokv.protocol.context import Context
from geokv.protocol.intake import Intake
from geokv.protocol.messages import CellsFetch, CellsPage, CellsWanted, StreamHeld
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table

QUIET_US_MAX: Final = 2_000_000  # a fetch that has not moved for this long may begin anew
BEYOND_MAX: Final = 100_000  # numbers above the frontier in one statement of what is held
Key = tuple[int, int, bytes]


class _Fetch:
    """One stream's cells on their way here."""

    __slots__ = ("after", "close", "frontier", "holder", "moved_us", "then")

    def __init__(self, message: CellsFetch, then: Callable[[StreamHeld], None], now_us: int) -> None:
        self.close = message.close
        self.holder = message.holder
        self.then = then
        self.after = b""
        self.frontier: int | None = None
        self.moved_us = now_us


class CellsFetches:
    """Gives cells to other owners, and takes theirs."""

    def __init__(self, context: Context, intake: Intake) -> None:
        self._context = context
        self._intake = intake
        self._open: dict[Key, _Fetch] = {}

    # --- taking -----------------------------------------------------------------------------------------------------

    def fetch(self, message: CellsFetch, then: Callable[[StreamHeld], None]) -> None:
        """Take the holder's cells; `then` gets what this replica has of the stream when that is synced, or never."""
        context = self._context
        key = (message.namespace, message.partition, message.origin)
        known = self._open.get(key)
        if known is not None and context.now_us - known.moved_us < QUIET_US_MAX:
            return
        self._open = {k: f for k, f in self._open.items() if context.now_us - f.moved_us < QUIET_US_MAX}
        if message.holder in context.peers and context.is_live(message.holder):
            self._open[key] = _Fetch(message, then, context.now_us)
            context.send(message.holder, CellsWanted(message.close, *key))

    def page(self, peer: str, message: CellsPage) -> None:
        """One page of cells came."""
        key = (message.namespace, message.partition, message.origin)
        fetch = self._open.get(key)
        if fetch is None or (fetch.close, fetch.holder, fetch.after) != (message.close, peer, message.after):
            return
        try:
            records = decode_records(message.records)
            if any(r.kind != CELL or (r.namespace, r.partition) != key[:2] for r in records):
                raise RecordError("a page of cells holds something else")
            if fetch.frontier is None:
                fetch.frontier = message.frontier
            last_key = records[-1].key if records else message.after
            taken = self._intake.take(message.records, lambda: self._took(key, fetch, last_key, message.is_last))
        except RecordError as error:
            self._context.note("close.malformed")
            self._context.log("warning", f"cells from {peer} are refused: {error}")
            del self._open[key]
            return
        if taken.reason:
            del self._open[key]  # no room: the closer asks for it again

    def _took(self, key: Key, fetch: _Fetch, last_key: bytes, is_last: bool) -> None:
        if self._open.get(key) is not fetch:
            return
        context = self._context
        fetch.moved_us = context.now_us
        if not is_last:
            fetch.after = last_key
            context.send(fetch.holder, CellsWanted(fetch.close, *key, fetch.after))
            return
        del self._open[key]
        table = context.tables.get(key[0])
        stream = context.stream(table, key[1], key[2]) if table is not None else None
        note = control.control_record(control.COVERED, [*key, fetch.frontier])
        if stream is None or fetch.frontier is None or context.commit.reserve(len(note), is_control=True):
            return
        context.note("close.covered_by_cells")
        frontier, covered = fetch.frontier, stream
        context.commit.add([(note, None, 0)], len(note), (), lambda: self._covered(covered, frontier, fetch.then), None)

    def _covered(self, stream: Stream, frontier: int, then: Callable[[StreamHeld], None]) -> None:
        stream.cover(frontier)
        then(held_of(stream))

    # --- giving -----------------------------------------------------------------------------------------------------

    def wanted(self, peer: str, message: CellsWanted) -> None:
        """Another owner wants cells of this node."""
        table = self._context.tables.get(message.namespace)
        if table is None or self._context.distrusted or not 0 <= message.partition < self._context.partitions:
            return
        # What is synced and not yet in the table lands first: the frontier covers it already.
        self._context.commit.after_pending(lambda: self._give(peer, message, table))

    def _give(self, peer: str, message: CellsWanted, table: Table) -> None:
        stream = table.streams.get(message.partition, message.origin)
        if stream is None:
            return
        shift, partition, cells = table.placement.shift, message.partition, table.cells
        keys = sorted(key for key in cells if key > message.after and key_hash(key) >> shift == partition)
        page: list[bytes] = []
        nbytes = 0
        for key in keys:
            record = encode_record(CELL, partition, message.namespace, 0, 0, NO_OPERATION, b"", key, cells[key])
            nbytes += len(record)
            if page and nbytes > LOG_READ_BYTES_MAX:
                break
            page.append(record)
        what = (message.close, message.namespace, partition, message.origin, message.after)
        self._context.send(peer, CellsPage(*what, stream.frontier, b"".join(page), len(page) == len(keys)))


def held_of(stream: Stream) -> StreamHeld:
    """What this replica has of a stream, synced."""
    beyond = sorted(stream.synced_beyond)[:BEYOND_MAX]
    return StreamHeld(stream.namespace, stream.partition, stream.origin, stream.frontier, beyond, stream.log_from())
