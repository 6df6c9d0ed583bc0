"""Whole cells in the place of records that are in no log any more.

A number that an owner covers, and that no log holds (they were trimmed, or a disk went bad), comes to who lacks it as all
cells of its partition, page by page, from an owner that covers it. A closer has them fetched, since a closing needs
every owner to have what any owner has; so has a feed that finds a hole in its log (FeedHoles):

    closer ──CellsFetch──> who lacks it ──CellsWanted──> who covers it
    feed   ──FeedHoles───>              <──CellsPage───  cells in key order, and the frontier with each page
                           after the last page is synced: a note of what is covered now, then CloseFilled to the closer

Invariants: a frontier is claimed only when all pages and the note are synced; it is the one that the giver had when it
listed the keys (of several lists the lowest), so whatever it covers is in these pages or in newer cells. Who took its claim
back gives none: what it lacks, who covers it would lack for ever. One page per
fetch is under way, at most FETCHES_MAX fetches here, and GIVES_MAX lists of keys are kept for others. What a stream's
promise refuses is covered for a closing only. A fetch over whose time tombstones were collected here begins anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from geokv.core.limits import LOG_READ_BYTES_MAX
from geokv.core.record import CELL, NO_OPERATION, Record, decode_records, encode_record
from geokv.core.ring import key_hash
from geokv.errors import RecordError, StorageError
from geokv.protocol import control
from geokv.protocol.claims import Claims
from geokv.protocol.context import Context
from geokv.protocol.intake import Intake
from geokv.protocol.messages import CellsFetch, CellsPage, CellsWanted, StreamHeld
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table

QUIET_US_MAX: Final = 2_000_000  # a page that has not come for this long is asked for again
GIVEN_UP_US: Final = 30_000_000  # a fetch that has not moved for this long lets others go first
FETCHES_MAX: Final = 4  # at a time; whoever wants more asks again
GIVES_MAX: Final = 16  # lists of keys; of one peer at most as many as it fetches at a time
GIVE_KEPT_US: Final = 30_000_000  # a list of keys that nobody has asked about for this long goes
SCAN_KEYS_MAX: Final = 2_000  # looked at in one step, so that the loop does not stand still for a large namespace
PAGE_KEYS_MAX: Final = 1_000  # of which the cells are read together
BEYOND_MAX: Final = 100_000  # numbers above the frontier in one statement of what is held
Key = tuple[int, int, bytes]
NO_CLOSING: Final = 0  # a fetch because of a hole in a log


class _Fetch:
    """One stream's cells on their way here."""

    __slots__ = ("after", "asked_us", "close", "collections", "frontier", "holder", "is_taking", "moved_us", "then")

    def __init__(self, message: CellsFetch, then: Callable[[StreamHeld], None], collections: int, now_us: int) -> None:
        self.close = message.close
        self.holder = message.holder
        self.then = then
        self.after = b""
        self.collections = collections  # here, when it began
        self.frontier: int | None = None
        self.is_taking = False  # a page is on its way to the disk
        self.asked_us = now_us
        self.moved_us = now_us


class _Give:
    """One partition's keys, listed for one peer. `unseen`: keys of the namespace that are still to be looked at, in order."""

    __slots__ = ("asked", "frontier", "keys", "moved_us", "unseen")

    def __init__(self, asked: CellsWanted, frontier: int, unseen: Iterator[bytes], now_us: int) -> None:
        self.asked: CellsWanted | None = asked  # what to answer once all keys were looked at
        self.frontier = frontier
        self.unseen: Iterator[bytes] | None = unseen
        self.keys: list[bytes] = []
        self.moved_us = now_us


class CellsFetches:
    """Gives cells to other owners, and takes theirs."""

    def __init__(self, context: Context, intake: Intake) -> None:
        self._context = context
        self._intake = intake
        self._open: dict[Key, _Fetch] = {}
        self._given_up: dict[Key, int] = {}
        self._gives: dict[tuple[str, Key], _Give] = {}
        self.on_covered: Callable[[Stream], None] = lambda stream: None

    # --- taking -----------------------------------------------------------------------------------------------------

    def fetch(self, message: CellsFetch, then: Callable[[StreamHeld], None]) -> None:
        """Take the holder's cells; `then` gets what this replica has of the stream when that is synced, or never."""
        context = self._context
        key = (message.namespace, message.partition, message.origin)
        known = self._open.get(key)
        if known is not None and self._is_wanted(known, message):
            if not known.is_taking and context.now_us - known.asked_us >= QUIET_US_MAX:
                self._ask(key, known)  # goes on where it was
            return
        for stale in [k for k, f in self._open.items() if context.now_us - f.moved_us >= GIVEN_UP_US]:
            del self._open[stale]
            self._given_up[stale] = context.now_us
        self._given_up = {k: us for k, us in self._given_up.items() if context.now_us - us < GIVEN_UP_US}
        self._open.pop(key, None)
        if key in self._given_up and message.close == NO_CLOSING:
            return  # it had its time: others first
        if message.holder not in context.peers or not context.is_live(message.holder) or len(self._open) >= FETCHES_MAX:
            return
        if message.namespace in context.tables:
            self._open[key] = fetch = _Fetch(message, then, context.tables[message.namespace].collections, context.now_us)
            self._ask(key, fetch)

    def _is_wanted(self, known: _Fetch, message: CellsFetch) -> bool:
        """Whether a fetch goes on: it moves, from somebody who lives, and not for a hole where a closing asks now."""
        context = self._context
        if known.close == NO_CLOSING and message.close != NO_CLOSING:
            return False
        return context.is_live(known.holder) and context.now_us - known.moved_us < GIVEN_UP_US

    def _ask(self, key: Key, fetch: _Fetch) -> None:
        fetch.asked_us = self._context.now_us
        self._context.send(fetch.holder, CellsWanted(fetch.close, *key, fetch.after, fetch.collections))

    def page(self, peer: str, message: CellsPage) -> None:
        """One page of cells came."""
        key = (message.namespace, message.partition, message.origin)
        fetch = self._open.get(key)
        if fetch is None or (fetch.close, fetch.holder, fetch.after) != (message.close, peer, message.after):
            return
        if fetch.is_taking:
            return  # the same page again
        if message.namespace not in self._context.tables:
            del self._open[key]
            return
        try:
            records = decode_records(message.records)
            if self._is_outdated(key, fetch, records):
                return
            if any(r.kind != CELL or (r.namespace, r.partition) != key[:2] for r in records):
                raise RecordError("a page of cells holds something else")
            last_key = records[-1].key if records else message.after
            fetch.is_taking = True
            # Each page holds what its own list stands for; where lists changed between, the lowest holds for all.
            fetch.frontier = message.frontier if fetch.frontier is None else min(fetch.frontier, message.frontier)
            taken = self._intake.take(message.records, lambda: self._took(key, fetch, last_key, message.is_last))
        except RecordError as error:
            self._context.note("close.malformed")
            self._context.log("warning", f"cells from {peer} are refused: {error}")
            del self._open[key]
            return
        if taken.reason:
            fetch.is_taking = False  # no room: it is asked for again

    def _is_outdated(self, key: Key, fetch: _Fetch, records: list[Record]) -> bool:
        """Whether tombstones were collected here since the fetch began: then it begins anew, or it could bring back what they
        deleted."""
        collections = self._context.tables[key[0]].collections
        if fetch.collections == collections and all(record.number == collections for record in records):
            return False
        self._context.note("cells.collected_since")
        fetch.collections, fetch.after, fetch.frontier = collections, b"", None
        self._ask(key, fetch)
        return True

    def _took(self, key: Key, fetch: _Fetch, last_key: bytes, is_last: bool) -> None:
        if self._open.get(key) is not fetch:
            return
        context = self._context
        fetch.moved_us = context.now_us
        fetch.is_taking = False
        if not is_last:
            fetch.after = last_key
            self._ask(key, fetch)
            return
        del self._open[key]
        table = context.tables.get(key[0])
        stream = context.stream(table, key[1], key[2]) if table is not None else None
        note = control.control_record(control.COVERED, [*key, fetch.frontier])
        if stream is None or fetch.frontier is None or context.commit.reserve(len(note), is_control=True):
            return
        if stream.is_refused and fetch.close == NO_CLOSING:
            return  # what is held of it was told to a closer
        context.note("cells.covered")
        covered = stream
        context.commit.add([(note, None, 0)], len(note), (), lambda: self._covered(covered, fetch), None)

    def _covered(self, stream: Stream, fetch: _Fetch) -> None:
        assert fetch.frontier is not None
        stream.cover(fetch.frontier)
        fetch.then(held_of(stream, self._context.claims))
        self.on_covered(stream)

    # --- giving -----------------------------------------------------------------------------------------------------

    def wanted(self, peer: str, message: CellsWanted) -> None:
        """Another owner wants cells of this node."""
        context = self._context
        table = context.tables.get(message.namespace)
        if table is None or context.distrusted or not 0 <= message.partition < context.partitions:
            return
        if message.partition in context.claims.mine(message.namespace):
            context.note("cells.unclaimed")
            return
        dc = context.peers[peer].dc
        if dc != context.dc and dc not in table.ships_to(context.dc):
            context.note("cells.link_off")
            return
        give = self._gives.get((peer, (message.namespace, message.partition, message.origin)))
        if give is not None and (message.after or give.unseen):
            give.asked = message
            self._step(peer, give, table)
        else:
            # What is synced and not yet in the table lands first: the frontier covers it already.
            context.commit.after_pending(lambda: self._list(peer, message, table))

    def _list(self, peer: str, message: CellsWanted, table: Table) -> None:
        now_us = self._context.now_us
        self._gives = {whose: g for whose, g in self._gives.items() if now_us - g.moved_us < GIVE_KEPT_US}
        whose = (peer, (message.namespace, message.partition, message.origin))
        stream = table.streams.get(message.partition, message.origin)
        if stream is None:
            return
        theirs = [other for other in self._gives if other[0] == peer and other != whose]
        if len(theirs) >= FETCHES_MAX:
            del self._gives[theirs[0]]  # it has given that one up, or it asks again
        if len(self._gives) >= GIVES_MAX and whose not in self._gives:
            self._context.note("cells.too_many")
            return
        self._gives[whose] = give = _Give(message, stream.frontier, table.cells.keys(), now_us)
        self._step(peer, give, table)

    def wake_at_us(self) -> int | None:
        return self._context.now_us if any(give.unseen for give in self._gives.values()) else None

    def tick(self) -> None:
        """Look at some more keys of a list that is being made."""
        for (peer, (namespace, _, _)), give in list(self._gives.items()):
            if give.unseen:
                table = self._context.tables.get(namespace)
                if table is None:
                    give.unseen = None  # the namespace was deleted
                else:
                    self._step(peer, give, table)
                return

    def _step(self, peer: str, give: _Give, table: Table) -> None:
        message = give.asked
        if message is None:
            return
        give.moved_us = self._context.now_us
        if give.unseen:
            shift, partition = table.placement.shift, message.partition
            # Keys go only when they are collected, so whatever else was there when the list was begun is found, however long
            # it takes; and what was collected, who asks has too.
            try:
                keys = list(islice(give.unseen, SCAN_KEYS_MAX))
            except StorageError as error:
                self._unreadable(peer, str(error))
                self._gives = {whose: one for whose, one in self._gives.items() if one is not give}
                return
            give.keys.extend(key for key in keys if key_hash(key) >> shift == partition)
            if len(keys) == SCAN_KEYS_MAX:
                return
            give.unseen = None
        give.asked = None
        self._page_of(peer, message, give, table)

    def _page_of(self, peer: str, message: CellsWanted, give: _Give, table: Table) -> None:
        """Have the cells of the next keys in memory, then send as many as one page holds."""
        start = bisect_right(give.keys, message.after)
        end = min(start + PAGE_KEYS_MAX, len(give.keys))

        def loaded(error: str) -> None:
            try:
                if not error:
                    self._send_page(peer, message, give, table, start, end)
                    return
            except StorageError as failure:
                error = str(failure)
            self._unreadable(peer, error)

        if message.partition in self._context.claims.mine(message.namespace):
            return  # taken back while the list was made
        missing = table.cells.missing(give.keys[start:end])
        if missing:
            self._context.loading.load(table.cells, missing, loaded)
        else:
            loaded("")

    def _unreadable(self, peer: str, error: str) -> None:
        self._context.note("cells.unreadable")
        self._context.log("error", f"cells that {peer} wants cannot be read: {error}")

    def _record(self, message: CellsWanted, key: bytes, cell: bytes) -> bytes:
        namespace, partition, count = message.namespace, message.partition, message.collections
        return encode_record(CELL, partition, namespace, count, 0, NO_OPERATION, b"", key, cell)

    def _send_page(self, peer: str, message: CellsWanted, give: _Give, table: Table, start: int, end: int) -> None:
        page: list[bytes] = []
        nbytes, at = 0, start
        for at in range(start, end):
            key = give.keys[at]
            cell = table.cells.get(key)
            if cell is None:
                continue
            record = self._record(message, key, cell)
            nbytes += len(record)
            if page and nbytes > LOG_READ_BYTES_MAX:
                break
            page.append(record)
        else:
            at = end
        if message.partition in self._context.claims.mine(message.namespace):
            return  # a table was set aside while the cells were loaded
        is_last = at >= len(give.keys)
        stream = (message.namespace, message.partition, message.origin)
        if is_last:
            self._gives.pop((peer, stream), None)
        self._context.send(peer, CellsPage(message.close, *stream, message.after, give.frontier, b"".join(page), is_last))


def held_of(stream: Stream, claims: Claims) -> StreamHeld:
    """What this replica has of a stream, synced."""
    beyond = sorted(stream.synced_beyond)[:BEYOND_MAX]
    is_unclaimed = stream.partition in claims.mine(stream.namespace)
    return StreamHeld(*stream.key, stream.frontier, beyond, stream.log_from(), is_unclaimed)
