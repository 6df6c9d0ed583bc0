"""The sending half of a cursor: streams this node's log to whoever stated its frontiers, in order per stream, in a window.

    new record, cursor right behind it, room in the window ──────────────> next batch       (live: no disk)
    otherwise the stream is *behind* ──> places in the log ──ReadLog──> next batch          (from the log)

One machine serves shipping between datacenters (`own_only`: what this node originated, in any of its runs) and
catching up inside one (everything in the log). The receiver owns the cursor: it opens with its frontiers and opens
anew whenever it is in doubt; nothing here outlives the connection.

What this node covers and its log does not hold (it came as cells, was trimmed, or cannot be read) is told to the receiver
as a hole: it fetches cells (protocol.cells_fetch) and opens anew beyond it.

Invariants: in one feed, records of a stream go out in the order of their numbers, each once. In flight are at most
FEED_WINDOW_BYTES, of which one partition holds at most FEED_PARTITION_BYTES (one record more where it alone is
larger), so one blocked partition cannot fill the window. Only what the own log has synced is sent. `sent_hlc`
promises: nothing this node originates later has an HLC at or below it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

import zstandard

from geokv.core.hlc import hlc_from_ms
from geokv.core.limits import (
    FEED_PARTITION_BYTES,
    FEED_WINDOW_BYTES,
    LOG_READ_BYTES_MAX,
    WAN_BATCH_BYTES_MAX,
)
from geokv.core.origin import unpack_origin
from geokv.protocol.commit import Entry
from geokv.protocol.context import Context
from geokv.protocol.effects import ReadLog
from geokv.protocol.messages import FeedAck, FeedBatch, FeedHoles, FeedOpen, FeedRefused, StreamHeads
from geokv.protocol.streams import Stream
from geokv.protocol.table import Table

# While records keep coming, batches leave at the wall clock's multiples of this: those of a datacenter's nodes come in
# together, and the receiver writes, relays and acknowledges them together. After a quiet time a record leaves at once.
LINGER_US: Final = 25_000
BUSY_US: Final = 100_000  # what came this long ago counts as "they keep coming"
SLACK_US: Final = 1_000  # what is due so soon goes now, in one write with the rest
HEARTBEAT_US: Final = 400_000
HEADS_US: Final = 1_000_000
UNACKED_BATCHES_MAX: Final = 4096
OPENED_REMEMBERED_MAX: Final = 64
HOLES_AGAIN_US: Final = 3_000_000
HOLES_MAX: Final = 256  # told in one message; the others have their turn in the next
ZSTD_LEVEL: Final = 3


class _InFlight:
    __slots__ = ("by_partition", "nbytes", "streams")

    def __init__(self, nbytes: int, by_partition: dict[int, int], streams: dict[Stream, int]) -> None:
        self.nbytes = nbytes
        self.by_partition = by_partition
        self.streams = streams


class Feed:
    """One open feed to one receiver."""

    def __init__(self, peer: str, message: FeedOpen, dc: str) -> None:
        self.peer = peer
        self.dc = dc
        self.feed = message.feed
        self.own_only = message.own_only
        self.partitions = frozenset(message.partitions)
        self.stated = {
            (heads.namespace, partition, heads.origin): number
            for heads in message.frontiers
            for partition, number in zip(heads.partitions, heads.numbers, strict=True)
        }
        self.sent: dict[Stream, int] = {}
        self.sent_hlc_of: dict[Stream, int] = {}
        self.behind: dict[Stream, None] = {}
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.pending_streams: dict[Stream, int] = {}
        self.pending_partitions: dict[int, int] = {}
        self.in_flight: deque[tuple[int, _InFlight]] = deque()
        self.unacked: deque[tuple[int, dict[Stream, int]]] = deque()
        self.in_flight_bytes = 0
        self.partition_bytes: dict[int, int] = {}
        self.sequence = 0
        self.flush_at_us: int | None = None
        self.last_sent_us = 0
        self.last_batch_us = -BUSY_US
        self.last_heads_us = 0
        self.reading: tuple[int, list[tuple[Stream, int, int]]] | None = None
        self.one_by_one = 0  # so many reads bring one record each: one of them cannot be read
        self.lacking: dict[Stream, None] = {}  # holes that were told: nothing goes on there before the receiver opens anew
        self.told_us = 0
        self.echo_us = 0

    def has_room(self, partition: int, nbytes: int) -> bool:
        used = self.in_flight_bytes + self.pending_bytes
        if used and used + nbytes > FEED_WINDOW_BYTES:
            return False
        held = self.partition_bytes.get(partition, 0)
        return not held or held + nbytes <= FEED_PARTITION_BYTES


class FeedSender:
    """All feeds that this node serves."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.on_covered: Callable[[Stream], None] = lambda stream: None
        self._feeds: dict[str, dict[bool, Feed]] = {}
        self._live: list[list[Feed]] = [[] for _ in range(context.partitions)]
        self._by_token: dict[int, Feed] = {}
        self._opened: dict[str, deque[int]] = {}  # peer -> numbers of the feeds that it has opened
        self._compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True, write_content_size=True)
        self._due_us: int | None = None
        self.raw_bytes = 0
        self.wire_bytes = 0
        self.records = 0

    def __iter__(self) -> Iterator[Feed]:
        for feeds in self._feeds.values():
            yield from feeds.values()

    # --- opening and closing ----------------------------------------------------------------------------------------

    def opened(self, peer: str, message: FeedOpen) -> None:
        """A receiver states its frontiers and wants what lies beyond."""
        context = self._context
        if context.distrusted:
            context.send(peer, FeedRefused(message.feed, context.distrusted))
            return
        if any(not 0 <= partition < context.partitions for partition in message.partitions):
            context.send(peer, FeedRefused(message.feed, f"partitions beyond {context.partitions}"))
            return
        opened = self._opened.setdefault(peer, deque(maxlen=OPENED_REMEMBERED_MAX))
        if message.feed in opened:
            context.note("feed.opened_again")  # doubled: beginning anew would skip what the receiver has counted
            return
        opened.append(message.feed)
        self.closed(peer, None, message.own_only)
        feed = Feed(peer, message, context.peers[peer].dc)
        context.tell_forgotten(peer, dict.fromkeys((origin, p) for _, p, origin in feed.stated))
        self._feeds.setdefault(peer, {})[message.own_only] = feed
        for partition in sorted(feed.partitions):
            self._live[partition].append(feed)
        for table in context.tables.values():
            if self._ships(feed, table):
                for partition in sorted(feed.partitions):
                    for stream in table.streams.partitions[partition].values():
                        self._add(feed, stream)
        feed.last_sent_us = context.now_us - HEARTBEAT_US
        context.count("feed.opened")
        self._pump(feed)

    def _ships(self, feed: Feed, table: Table) -> bool:
        """Whether a namespace goes over this feed: all within a datacenter, and what its definition lets out of it."""
        return feed.dc == self._context.dc or feed.dc in table.ships_to(self._context.dc)

    def defined(self, table: Table) -> None:
        """A definition has changed: what it now lets out goes on from where it was, what it holds back stops."""
        for feed in self:
            ships = self._ships(feed, table)
            for stream in [s for partition in sorted(feed.partitions) for s in table.streams.partitions[partition].values()]:
                if ships:
                    self._add(feed, stream)
                elif stream in feed.sent:
                    feed.stated[stream.key] = feed.sent.pop(stream)
                    feed.behind.pop(stream, None)
                    feed.lacking.pop(stream, None)
            self._pump(feed)

    def _add(self, feed: Feed, stream: Stream) -> None:
        """Put a stream under the cursor of `feed` if it belongs there."""
        if stream in feed.sent or not self._wants(feed, stream):
            return
        number = feed.stated.get(stream.key, 0)
        feed.sent[stream] = number
        if stream.frontier > number or stream.synced_beyond:
            feed.behind[stream] = None

    def _wants(self, feed: Feed, stream: Stream) -> bool:
        if not feed.own_only:
            return True
        origin = unpack_origin(stream.origin)
        return origin.dc == self._context.dc and origin.node == self._context.node

    def closed(self, peer: str, feed_number: int | None, own_only: bool | None = None) -> None:
        """The receiver is done with a feed, or gone (`feed_number` None: whichever it has)."""
        feeds = self._feeds.get(peer, {})
        for kind in list(feeds):
            feed = feeds[kind]
            if (feed_number is None or feed.feed == feed_number) and (own_only is None or kind == own_only):
                del feeds[kind]
                for partition in feed.partitions:
                    self._live[partition].remove(feed)

    def forget(self, stream: Stream) -> None:
        """A stream is gone: closed and covered everywhere, or its namespace was deleted."""
        for feed in self:
            feed.sent.pop(stream, None)
            feed.behind.pop(stream, None)
            feed.lacking.pop(stream, None)
            feed.sent_hlc_of.pop(stream, None)

    def moved(self, stream: Stream) -> None:
        """This node covers more of a stream, by cells: what its log has beyond them goes on, what it lacks is told."""
        table = self._context.tables.get(stream.namespace)
        for feed in self._live[stream.partition]:
            if table is not None and self._ships(feed, table):
                self._add(feed, stream)
                if stream in feed.sent and stream not in feed.lacking:
                    feed.behind[stream] = None
                    self._pump(feed)

    # --- new records ------------------------------------------------------------------------------------------------

    def landed(self, entries: Iterable[Entry]) -> None:  # noqa: C901  # one pass over a frame, no call per record
        """Records were synced in the own log: what is live goes into the next batch."""
        live = self._live
        own = self._context.packed
        touched: dict[Feed, None] = {}
        for raw, stream, number in entries:
            if stream is None:
                continue
            for feed in live[stream.partition]:
                if feed.own_only and stream.origin != own:
                    if stream not in feed.sent:
                        self._add(feed, stream)
                    if stream in feed.sent and stream not in feed.lacking:
                        feed.behind[stream] = None
                        touched[feed] = None
                    continue
                sent = feed.sent.get(stream)
                if sent is None:
                    table = self._context.tables.get(stream.namespace)
                    if table is None or not self._ships(feed, table):
                        continue
                    self._add(feed, stream)
                    sent = feed.sent.get(stream)
                is_next = sent == number - 1 and stream not in feed.behind and stream not in feed.lacking
                if is_next and feed.has_room(stream.partition, len(raw)):
                    self._put(feed, stream, number, raw)
                    touched[feed] = None
                    if stream.origin != own and stream.frontier > number:
                        feed.behind[stream] = None  # a gap was filled: what stood behind it is in the log
                    continue
                if sent is not None and number > sent and stream not in feed.lacking:
                    feed.behind[stream] = None
                    touched[feed] = None
        for feed in touched:
            self._schedule(feed)
            if feed.behind:
                self._pump(feed)

    def _put(self, feed: Feed, stream: Stream, number: int, raw: bytes) -> None:
        size = len(raw)
        partition = stream.partition
        feed.sent[stream] = number
        feed.pending.append(raw)
        feed.pending_bytes += size
        feed.pending_streams[stream] = number
        feed.pending_partitions[partition] = feed.pending_partitions.get(partition, 0) + size
        feed.partition_bytes[partition] = feed.partition_bytes.get(partition, 0) + size

    def _schedule(self, feed: Feed) -> None:
        while feed.pending_bytes >= WAN_BATCH_BYTES_MAX:
            self._flush(feed)
        if feed.pending and feed.flush_at_us is None:
            feed.flush_at_us = self._flush_at_us(feed)
            if self._due_us is None or feed.flush_at_us < self._due_us:
                self._due_us = feed.flush_at_us

    def _flush_at_us(self, feed: Feed) -> int:
        context = self._context
        if context.now_us - feed.last_batch_us >= BUSY_US:
            return context.now_us
        return context.now_us + context.until_next_us(LINGER_US)

    # --- from the log -----------------------------------------------------------------------------------------------

    def _pump(self, feed: Feed) -> None:
        """Read what the streams that are behind lack, as far as the window allows; one read at a time."""
        if feed.reading is not None or not feed.behind:
            return
        wanted: list[tuple[Stream, int, int]] = []
        places: list[tuple[int, int, int]] = []
        budget = LOG_READ_BYTES_MAX
        told = len(feed.lacking)
        if feed.one_by_one:
            feed.one_by_one -= 1
            budget = 1
        for stream in list(feed.behind):
            budget = self._collect(feed, stream, wanted, places, budget)
            if budget <= 0:
                break
        self._tell_holes(feed, list(feed.lacking)[told:])
        if not wanted:
            return
        token = self._context.next_id()
        feed.reading = (token, wanted)
        self._by_token[token] = feed
        self._context.count("feed.log_read")
        self._context.effects.append(ReadLog(token, places))

    def _collect(
        self,
        feed: Feed,
        stream: Stream,
        wanted: list[tuple[Stream, int, int]],
        places: list[tuple[int, int, int]],
        budget: int,
    ) -> int:
        """Add the next records of one stream to a read; returns what is left of `budget`."""
        number = feed.sent[stream] + 1
        held = feed.partition_bytes.get(stream.partition, 0)
        planned = LOG_READ_BYTES_MAX - budget
        while True:
            if number in stream.voids:
                number += 1
                continue
            place = stream.place(number) if stream.has(number) else None
            if place is None:
                break
            size = place[2]
            used = feed.in_flight_bytes + feed.pending_bytes + planned
            if (used and used + size > FEED_WINDOW_BYTES) or (held and held + size > FEED_PARTITION_BYTES):
                return budget
            if size > budget and wanted:
                return 0
            wanted.append((stream, number, size))
            places.append(place)
            planned += size
            held += size
            budget -= size
            number += 1
        if number > stream.frontier or number > (stream.last or number):
            if not any(entry[0] is stream for entry in wanted):
                feed.sent[stream] = max(feed.sent[stream], min(number - 1, stream.frontier))
                feed.behind.pop(stream, None)
        elif not any(entry[0] is stream for entry in wanted):
            self._hole(feed, stream)
        return budget

    def _hole(self, feed: Feed, stream: Stream) -> None:
        self._context.note("feed.not_in_log")
        feed.behind.pop(stream, None)
        feed.lacking[stream] = None

    def _tell_holes(self, feed: Feed, streams: list[Stream]) -> None:
        if streams:
            feed.told_us = self._context.now_us
            heads = heads_of((stream, stream.frontier) for stream in streams[:HOLES_MAX])
            self._context.send(feed.peer, FeedHoles(feed.feed, heads))

    def read(self, token: int, records: bytes | None, reason: str) -> None:
        """The log answered."""
        feed = self._by_token.pop(token, None)
        if feed is None or feed.reading is None or feed.reading[0] != token:
            return
        wanted = feed.reading[1]
        feed.reading = None
        if records is None:
            self._context.note("feed.log_unreadable")
            self._context.log("error", f"feed to {feed.peer}: the log cannot be read: {reason}")
            feed.one_by_one = len(wanted)
            if len(wanted) == 1 and wanted[0][0] in feed.behind:
                feed.one_by_one = 0
                self._hole(feed, wanted[0][0])
                self._tell_holes(feed, [wanted[0][0]])
            return
        if feed is not self._feeds.get(feed.peer, {}).get(feed.own_only):
            return
        offset = 0
        for stream, number, size in wanted:
            raw = records[offset : offset + size]
            offset += size
            if stream in feed.sent:
                self._put(feed, stream, number, raw)
                feed.sent_hlc_of[stream] = int.from_bytes(raw[28:36], "little")
                if number >= stream.frontier and not stream.synced_beyond:
                    feed.behind.pop(stream, None)
        self._schedule(feed)
        self._pump(feed)

    # --- sending ----------------------------------------------------------------------------------------------------

    def _flush(self, feed: Feed) -> None:
        """Send up to one batch of what is pending (with nothing pending: a heartbeat)."""
        context = self._context
        feed.flush_at_us = None
        taken, nbytes = self._cut(feed)
        raw = b"".join(taken)
        feed.sequence += 1
        if feed.pending:
            streams, by_partition = {}, {}
        else:
            streams, by_partition = feed.pending_streams, feed.pending_partitions
            feed.pending_streams, feed.pending_partitions = {}, {}
        feed.in_flight.append((feed.sequence, _InFlight(nbytes, by_partition, streams)))
        feed.in_flight_bytes += nbytes
        self.raw_bytes += nbytes
        self.records += len(taken)
        payload = self._compressor.compress(raw) if raw else b""
        if raw:
            feed.last_batch_us = context.now_us
        self.wire_bytes += len(payload)
        is_heads_due = context.now_us - feed.last_heads_us >= HEADS_US
        context.send(
            feed.peer,
            FeedBatch(
                feed.feed,
                feed.sequence,
                nbytes,
                payload,
                self._sent_hlc(feed),
                self._behind(feed),
                self._heads(feed) if is_heads_due else [],
                context.now_us,
                feed.echo_us,
            ),
        )
        if is_heads_due:
            feed.last_heads_us = context.now_us
        feed.last_sent_us = context.now_us

    def _cut(self, feed: Feed) -> tuple[list[bytes], int]:
        """Take one batch's worth from what is pending."""
        if feed.pending_bytes <= WAN_BATCH_BYTES_MAX:
            taken, nbytes = feed.pending, feed.pending_bytes
            feed.pending, feed.pending_bytes = [], 0
            return taken, nbytes
        nbytes = count = 0
        for raw in feed.pending:
            if count and nbytes + len(raw) > WAN_BATCH_BYTES_MAX:
                break
            nbytes += len(raw)
            count += 1
        taken = feed.pending[:count]
        del feed.pending[:count]
        feed.pending_bytes -= nbytes
        return taken, nbytes

    def _sent_hlc(self, feed: Feed) -> int:
        """Everything originated here up to this HLC has been put into `feed` (but for what is behind)."""
        if feed.pending:
            return 0
        unsynced = self._context.commit.first_unsynced_hlc()
        if unsynced is not None:
            return unsynced - 1
        # A next run of this node begins at the durable bound: no promise beyond it.
        return min(self._context.clock.last, hlc_from_ms(self._context.bound_ms))

    def _behind(self, feed: Feed) -> dict[int, int]:
        """Partition -> HLC up to which all of it has been put into `feed`, where that is not everything."""
        behind: dict[int, int] = {}
        for stream in chain(feed.behind, feed.lacking):
            hlc = feed.sent_hlc_of.get(stream, 0)
            behind[stream.partition] = min(hlc, behind.get(stream.partition, hlc))
        return behind

    def _heads(self, feed: Feed) -> list[StreamHeads]:
        return heads_of((stream, stream.frontier) for stream in feed.sent if feed.own_only)

    # --- acknowledgements -------------------------------------------------------------------------------------------

    def acknowledged(self, peer: str, message: FeedAck) -> None:
        """The receiver synced batches, or a quorum of its datacenter did."""
        for feed in list(self._feeds.get(peer, {}).values()):
            if feed.feed == message.feed:
                self._acknowledged(feed, message)

    def _acknowledged(self, feed: Feed, message: FeedAck) -> None:
        feed.echo_us = message.sent_us
        while feed.in_flight and feed.in_flight[0][0] <= message.synced:
            sequence, sent = feed.in_flight.popleft()
            feed.in_flight_bytes -= sent.nbytes
            for partition, nbytes in sent.by_partition.items():
                feed.partition_bytes[partition] -= nbytes
            if feed.own_only and sent.streams:
                feed.unacked.append((sequence, sent.streams))
        while len(feed.unacked) > UNACKED_BATCHES_MAX:
            feed.unacked.popleft()  # the receiver's `covered` will say it
        while feed.unacked and feed.unacked[0][0] <= message.quorum:
            for stream, number in feed.unacked.popleft()[1].items():
                self._covered(feed.dc, stream, number)
        for heads in message.covered:
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                found = self._context.find_stream(heads.namespace, partition, heads.origin)
                if found is not None:
                    self._covered(feed.dc, found, number)
        self._pump(feed)

    def _covered(self, dc: str, stream: Stream, number: int) -> None:
        if number > stream.dcs.get(dc, 0):
            stream.dcs[dc] = number
            self.on_covered(stream)

    # --- time -------------------------------------------------------------------------------------------------------

    def wake_at_us(self) -> int | None:
        """When a batch is due; heartbeats go with the node's own."""
        return self._due_us

    def tick(self, is_heartbeat: bool) -> None:
        """Send what is due; at the node's heartbeat also those of the feeds, and go on where a stream is behind."""
        now_us = self._context.now_us + SLACK_US
        if self._due_us is not None and self._due_us <= now_us:
            self._due_us = None
            for feed in list(self):
                if feed.flush_at_us is not None and feed.flush_at_us <= now_us:
                    while feed.pending:
                        self._flush(feed)
            self._due_us = min((f.flush_at_us for f in self if f.flush_at_us is not None), default=None)
        if is_heartbeat:
            for feed in list(self):
                self._beat(feed)

    def _beat(self, feed: Feed) -> None:
        if self._context.now_us - feed.last_sent_us >= HEARTBEAT_US:
            if self._context.commit.first_unsynced_hlc() is None:
                self._context.clock.stamp(self._context.wall_ms)
            self._flush(feed)
        if feed.behind:
            self._pump(feed)
        if feed.lacking and self._context.now_us - feed.told_us >= HOLES_AGAIN_US:
            # The word may have been lost. Those that stand last get their turn.
            told = list(feed.lacking)
            feed.lacking = dict.fromkeys(told[HOLES_MAX:] + told[:HOLES_MAX])
            self._tell_holes(feed, told)


def heads_of(pairs: Iterable[tuple[Stream, int]]) -> list[StreamHeads]:
    """Frontiers grouped by namespace and origin, as messages carry them."""
    groups: dict[tuple[int, bytes], StreamHeads] = {}
    for stream, number in pairs:
        group = groups.get((stream.namespace, stream.origin))
        if group is None:
            group = groups[stream.namespace, stream.origin] = StreamHeads(stream.namespace, stream.origin, [], [])
        group.partitions.append(stream.partition)
        group.numbers.append(number)
    return list(groups.values())
