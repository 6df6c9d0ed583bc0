"""The receiving half of a cursor: states its frontiers, takes batches in order, relays them to co-owners, says how far it is.

    shipping:   one feed from a node of another DC, for the partitions of which this node is that node's receiver here
    catching up: one feed from a co-owner whose statement shows records that have been missing here for a while

    FeedBatch ──> intake ──synced──> FeedAck.synced            opens the sender's window
                    └─ Replicate to co-owners ──quorum──> FeedAck.quorum       this DC's frontier

Whatever is in doubt (a batch missing, silence, damage, a new definition, a new closing, a change of who is alive) is
answered by opening anew with the present frontiers. Nothing else needs to be remembered.

Invariants: a batch counts as synced only after everything of it is in the own log; frontiers stated are the synced
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import zstandard

from geokv.core.limits import WAN_BATCH_RAW_BYTES_MAX
from geokv.core.origin import unpack_origin
from geokv.errors import RecordError
from geokv.protocol.cells_fetch import NO_CLOSING
from geokv.protocol.context import Context
from geokv.protocol.feed_sender import BUSY_US, LINGER_US, SLACK_US, heads_of
from geokv.protocol.intake import Intake, Taken
from geokv.protocol.journal import EVERYBODY
from geokv.protocol.messages import (
    CellsFetch,
    FeedAck,
    FeedBatch,
    FeedClose,
    FeedHoles,
    FeedOpen,
    FeedRefused,
    Replicated,
    StreamHeads,
)
from geokv.protocol.placement import Placement
from geokv.protocol.relay import Relays
from geokv.protocol.replication import Replication
from geokv.protocol.streams import Stream

SILENT_US_MAX: Final = 2_000_000
RETRY_US: Final = 500_000
HOLE_US_MAX: Final = 3_000_000  # for so long co-owners may bring what is missing, before cells are fetched
ACK_LINGER_US: Final = 4_000  # after a quiet time; under load acknowledgements leave with the batches
HEARTBEAT_ACK_LINGER_US: Final = 300_000
COVERED_US: Final = 1_000_000
TELL_ALL_US: Final = 10_000_000
WINDOW_BYTES_MAX: Final = 1 << 23  # what a frame may make the reader set aside; level 3 needs a quarter of it
BEHIND_US: Final = 400_000
QUORUM_US_MAX: Final = 6_000_000
_decompressor: Final = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
LAG_BUCKETS_MS: Final = (5, 10, 20, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 1000, 2000, 5000, 10000)


class Incoming:
    """One feed that this node receives."""

    __slots__ = (
        "ack_at_us",
        "acked_at_us",
        "behind",
        "covered_at_us",
        "echoed_us",
        "expected",
        "feed",
        "heads",
        "heard_us",
        "is_stuck",
        "own_only",
        "partitions",
        "peer",
        "quorum",
        "quorum_at_us",
        "quorum_done",
        "retry_at_us",
        "safe_hlc",
        "sent_us",
        "synced",
        "told",
        "told_all_at_us",
    )

    def __init__(self, peer: str, feed: int, own_only: bool, partitions: tuple[int, ...], now_us: int) -> None:
        self.peer = peer
        self.feed = feed
        self.own_only = own_only
        self.partitions = partitions
        self.expected = 1
        self.synced = 0
        self.quorum = 0
        self.quorum_at_us = now_us
        self.quorum_done: set[int] = set()
        self.is_stuck = False  # some batch can never count as on a quorum: `covered` says it instead
        self.heard_us = now_us
        self.retry_at_us: int | None = None
        self.ack_at_us: int | None = None
        self.acked_at_us = now_us - BUSY_US
        self.covered_at_us = now_us
        self.told: dict[Stream, int] = {}
        self.told_all_at_us = now_us
        self.safe_hlc = 0
        self.behind: dict[int, int] = {}
        self.heads: dict[tuple[int, int, bytes], int] = {}
        self.sent_us = 0  # the sender's clock at its newest message, echoed
        self.echoed_us = 0  # our own clock, as the sender gave it back: all it had then has come


class FeedReceiver:
    """All feeds that this node receives, and the decision which there should be."""

    def __init__(
        self, context: Context, placement: Placement, intake: Intake, replication: Replication, remote: dict[str, str]
    ) -> None:
        self._context = context
        self._placement = placement
        self._intake = intake
        self.relays = Relays(context, placement, replication)
        self._remote = remote  # node -> dc, of every node in another DC
        self._shipping: dict[str, Incoming] = {}
        self._catching_up: dict[str, Incoming] = {}
        self._behind: dict[Stream, tuple[str, int, int]] = {}
        self._live_signature: tuple[bool, ...] = ()
        self._wanted: dict[str, tuple[int, ...]] = {}
        self._neighbours = sorted({n for owners in placement.owners for n in owners} - {context.node})
        # What no log may hold: who told it, in which kind of feed, our frontier then, and when.
        self._holes: dict[Stream, tuple[str, bool, int, int]] = {}
        self._due_us: int | None = None
        self.fetch_cells: Callable[[CellsFetch], None] = lambda fetch: None
        self.lag_counts = [0] * (len(LAG_BUCKETS_MS) + 1)
        self.lag_ms_max = 0
        self.received_records = 0
        self.wire_bytes = 0
        self.raw_bytes = 0

    def links(self) -> list[Incoming]:
        return [*self._shipping.values(), *self._catching_up.values()]

    @property
    def shipping(self) -> dict[str, Incoming]:
        return self._shipping

    # --- which feeds there should be --------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Recompute which partitions are received from which remote node when the set of live neighbours has changed."""
        context = self._context
        signature = tuple(context.is_live(node) for node in self._neighbours)
        if signature == self._live_signature and self._wanted:
            return
        self._live_signature = signature
        wanted: dict[str, list[int]] = {node: [] for node in sorted(self._remote)}
        live = {node for node in (context.node, *self._neighbours) if context.is_live(node)}
        mine = [(partition, live.intersection(self._placement.owners[partition])) for partition in self._placement.mine]
        for dc, owners in self._placement.by_dc.items():
            if dc == context.dc:
                continue
            for node, order in self._receivers_of(dc).items():
                for partition, live_owners in mine:
                    if node in owners[partition] and context.node == next(one for one in order if one in live_owners):
                        wanted[node].append(partition)
        self._wanted = {node: tuple(partitions) for node, partitions in wanted.items()}

    def _receivers_of(self, dc: str) -> dict[str, list[str]]:
        """Who receives from each node of another datacenter: the first of these that is live and owns the partition.

        The same for all partitions, where it can be: what a node ships is then few large batches, not many small ones.
        """
        members = sorted([self._context.node, *self._neighbours])
        remote = sorted(node for node, its_dc in self._remote.items() if its_dc == dc)
        turns = {node: index % len(members) for index, node in enumerate(remote)}
        return {node: members[turn:] + members[:turn] for node, turn in turns.items()}

    def _open_shipping(self, peer: str) -> None:
        partitions = self._wanted.get(peer, ())
        old = self._shipping.pop(peer, None)
        if not partitions:
            if old is not None:
                self._context.send(peer, FeedClose(old.feed))
            return
        link = self._open(peer, True, partitions)
        if old is not None and set(partitions) <= set(old.partitions):
            link.safe_hlc, link.behind, link.echoed_us, link.heads = old.safe_hlc, old.behind, old.echoed_us, old.heads
            link.covered_at_us = old.covered_at_us  # `covered` is told once a second, however often this opens anew
        self._shipping[peer] = link

    def _open(self, peer: str, own_only: bool, partitions: tuple[int, ...]) -> Incoming:
        context = self._context
        link = Incoming(peer, context.next_id(), own_only, partitions, context.now_us)
        streams = [
            (stream, stream.frontier)
            for table in context.tables.values()
            for partition in partitions
            for stream in table.streams.partitions[partition].values()
            if not own_only or unpack_origin(stream.origin).node == peer
        ]
        context.send(peer, FeedOpen(link.feed, own_only, list(partitions), heads_of(streams)))
        context.count("feed.opened_here")
        return link

    def reopen(self, why: str, peer: str | None = None) -> None:
        """State the frontiers anew, to one sender or to all: something changed that makes more records acceptable."""
        self._context.note(f"feed.reopened.{why}")
        for link in self.links():
            if peer is None or link.peer == peer:
                self._retry_in(link, 0)

    def connected(self, peer: str) -> None:
        """A stream to `peer` stands (anew): what was open on the old one is gone."""
        if peer in self._remote:
            self._decide()
            self._open_shipping(peer)
        elif peer in self._catching_up:
            self._retry_in(self._catching_up[peer], 0)

    # --- batches ----------------------------------------------------------------------------------------------------

    def _link(self, peer: str, feed: int) -> Incoming | None:
        for link in (self._shipping.get(peer), self._catching_up.get(peer)):
            if link is not None and link.feed == feed:
                return link
        return None

    def refused(self, peer: str, message: FeedRefused) -> None:
        link = self._link(peer, message.feed)
        if link is not None:
            self._context.note("feed.refused")
            self._retry_in(link, RETRY_US)

    def holes(self, peer: str, message: FeedHoles) -> None:
        """The sender covers what its log does not hold, and goes on with none of these streams before this opens anew."""
        link = self._link(peer, message.feed)
        if link is None:
            return
        context = self._context
        for heads in message.heads:
            table = context.tables.get(heads.namespace)
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                if table is None or not self._placement.is_mine[partition]:
                    continue
                stream = context.stream(table, partition, heads.origin)
                if stream is None or stream.is_refused:
                    continue
                if stream.frontier >= number:
                    self._retry_in(link, RETRY_US)  # it came in another way
                    continue
                known = self._holes.get(stream)
                if known is None or known[0] != peer:
                    self._holes[stream] = (peer, link.own_only, stream.frontier, context.now_us)
        self.look_after_holes()

    def look_after_holes(self) -> None:
        """Open anew where something came of what was missing; fetch cells where no live co-owner has more than we."""
        context = self._context
        for stream, (peer, own_only, frontier, since_us) in list(self._holes.items()):
            link = (self._shipping if own_only else self._catching_up).get(peer)
            if link is None or stream.is_refused:
                del self._holes[stream]  # it is told again, or a closing brings it
            elif stream.frontier > frontier:
                del self._holes[stream]
                self._retry_in(link, RETRY_US)
            elif not own_only or context.now_us - since_us >= HOLE_US_MAX:
                near = (n for node, n in stream.peers.items() if context.is_live(node))
                giver = self._giver(stream, peer)
                if giver and (not own_only or max(near, default=0) <= stream.frontier):
                    self.fetch_cells(CellsFetch(NO_CLOSING, *stream.key, giver))

    def _giver(self, stream: Stream, peer: str) -> str:
        """Who gives cells: the sender of a feed, or where it took its claim back another owner of its datacenter."""
        context = self._context
        if context.claims.holds(peer, stream.namespace, stream.partition):
            return peer
        owners = self._placement.by_dc[context.peers[peer].dc][stream.partition]
        others = context.claims.holders(owners, stream.namespace, stream.partition)
        return next((node for node in others if node != context.node and context.is_live(node)), "")

    def batch(self, peer: str, message: FeedBatch) -> None:
        """One batch, or a heartbeat."""
        link = self._link(peer, message.feed)
        if link is None:
            self._context.send(peer, FeedClose(message.feed))  # it did not hear that this one is over
            return
        if message.sequence < link.expected:
            return
        if message.sequence > link.expected:
            if link.retry_at_us is None:  # otherwise a batch was refused, and what follows it says nothing new
                self._context.note("feed.gap")
                self._retry_in(link, 0)
            return
        link.heard_us = self._context.now_us
        taken = self._take(link, message)
        if taken is None:
            return
        link.expected += 1
        link.sent_us = message.sent_us
        for heads in message.heads:
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                link.heads[heads.namespace, partition, heads.origin] = number
        if not taken.contiguous:
            link.is_stuck = True
        self._tell_refused(taken.refused)
        self._context.tell_forgotten(peer, taken.forgotten)
        if link.own_only and message.payload:
            self.relays.add(taken.present, lambda: self._on_quorum(link, message.sequence))
        else:
            self._on_quorum(link, message.sequence, HEARTBEAT_ACK_LINGER_US)

    def _take(self, link: Incoming, message: FeedBatch) -> Taken | None:
        """The batch's records into the log; None where that failed and the feed will be opened anew."""
        context = self._context
        try:
            records = decompress(message.payload, message.raw_bytes) if message.payload else b""
            self.wire_bytes += len(message.payload)
            self.raw_bytes += len(records)
            noting = EVERYBODY if link.own_only else None
            taken = self._intake.take(records, lambda: self._synced(link, message), noting=noting)
        except RecordError as error:
            context.note("feed.malformed")
            context.log("warning", f"a batch from {link.peer} is refused: {error}")
            self._retry_in(link, RETRY_US)
            return None
        if taken.reason:
            self._retry_in(link, RETRY_US)
            return None
        if link.own_only and taken.fresh:
            self._count_lag(taken)
        return taken

    def _count_lag(self, taken: Taken) -> None:
        """How old the records are as they come in: theirs is the sender's wall clock, so this is exact on one machine only."""
        wall_ms = self._context.wall_ms
        for record in (taken.present[0], taken.present[-1]):
            lag_ms = max(0, wall_ms - (record.hlc >> 16))
            bucket = next((at for at, limit in enumerate(LAG_BUCKETS_MS) if lag_ms <= limit), len(LAG_BUCKETS_MS))
            self.lag_counts[bucket] += max(1, taken.fresh // 2)
            self.lag_ms_max = max(self.lag_ms_max, lag_ms)
        self.received_records += taken.fresh

    def _synced(self, link: Incoming, message: FeedBatch) -> None:
        link.synced = max(link.synced, message.sequence)
        if message.sent_hlc:
            link.safe_hlc = max(link.safe_hlc, message.sent_hlc)
            link.behind = message.behind
            if not message.behind:
                link.echoed_us = max(link.echoed_us, message.echo_us)
        self._ack_soon(link, self._context.until_next_us(LINGER_US) if message.payload else HEARTBEAT_ACK_LINGER_US)

    def _ack_soon(self, link: Incoming, linger_us: int) -> None:
        at_us = self._context.now_us + linger_us
        if link.ack_at_us is None or at_us < link.ack_at_us:
            link.ack_at_us = at_us
            self._wake_by(at_us)

    def _retry_in(self, link: Incoming, delay_us: int) -> None:
        """Open `link` anew after a while (sooner, if that was planned already)."""
        at_us = self._context.now_us + delay_us
        link.retry_at_us = at_us if link.retry_at_us is None else min(link.retry_at_us, at_us)
        self._wake_by(link.retry_at_us)

    def _wake_by(self, at_us: int) -> None:
        self._due_us = at_us if self._due_us is None else min(self._due_us, at_us)

    def _on_quorum(self, link: Incoming, sequence: int, linger_us: int | None = None) -> None:
        if link.is_stuck:
            return
        link.quorum_done.add(sequence)
        while link.quorum + 1 in link.quorum_done:
            link.quorum += 1
            link.quorum_at_us = self._context.now_us
            link.quorum_done.discard(link.quorum)
        if linger_us is None:
            is_busy = self._context.now_us - link.acked_at_us < BUSY_US
            linger_us = self._context.until_next_us(LINGER_US) if is_busy else ACK_LINGER_US
        self._ack_soon(link, linger_us)

    def dc_frontier(self, stream: Stream) -> int:
        """Up to which number a quorum of this datacenter's owners has everything, as far as this node was told."""
        context, owners = self._context, self._placement.owners[stream.partition]
        claimants = context.claims.holders(owners, stream.namespace, stream.partition)
        numbers = sorted(
            [stream.frontier if node == context.node else stream.peers.get(node, 0) for node in claimants]
            + [0] * (len(owners) - len(claimants)),
            reverse=True,
        )
        return numbers[len(owners) // 2]

    def _covered(self, link: Incoming) -> list[StreamHeads]:
        """What the frontiers say and the batch numbers cannot: changes since it was told last."""
        changed: list[tuple[Stream, int]] = []
        for table in self._context.tables.values():
            for partition in link.partitions:
                for stream in table.streams.partitions[partition].values():
                    if unpack_origin(stream.origin).node == link.peer:
                        number = self.dc_frontier(stream)
                        if number > link.told.get(stream, 0):
                            link.told[stream] = number
                            changed.append((stream, number))
        return heads_of(changed)

    # --- catching up inside the datacenter --------------------------------------------------------------------------

    def stated(self, peer: str, frontiers: list[StreamHeads]) -> None:
        """A co-owner's frontiers: note them, and what is missing here."""
        context = self._context
        forgotten: list[tuple[bytes, int]] = []
        refused: dict[bytes, None] = {}
        for heads in frontiers:
            table = context.tables.get(heads.namespace)
            if table is None:
                continue
            is_mine = self._placement.is_mine
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                if partition >= len(is_mine) or not is_mine[partition]:
                    continue
                stream = context.stream(table, partition, heads.origin)
                if stream is None:
                    forgotten.append((heads.origin, partition))
                    continue
                if number > stream.peers.get(peer, 0):
                    stream.peers[peer] = number
                if number > stream.frontier and stream.is_refused:
                    refused[heads.origin] = None
                elif number > stream.frontier:
                    known = self._behind.get(stream)
                    if known is None:
                        self._behind[stream] = (peer, number, context.now_us)
                    elif number > known[1] or not context.is_live(known[0]):
                        self._behind[stream] = (peer, max(number, known[1]), known[2])
        context.tell_forgotten(peer, forgotten)
        self._tell_refused(refused)

    def _tell_refused(self, origins: Iterable[bytes]) -> None:
        """Tell the nodes of these origins that we promised to take no more of them, whoever brought us the records.

        A node that still runs under one of them has to end that run: its closer may be gone, and we would never take
        what it writes. To any other run of it the word means nothing.
        """
        context = self._context
        for origin in origins:
            node = unpack_origin(origin).node
            if node in context.peers and context.peers[node].is_connected:
                context.send(node, Replicated(0, contiguous=False, refused=[origin]))

    def _catch_up(self) -> None:
        """Open a feed from whoever has what has been missing for a while; close it once nothing is missing any more."""
        context = self._context
        wanted: dict[str, set[int]] = {}
        for stream, (peer, number, since_us) in list(self._behind.items()):
            if stream.frontier >= number or stream.is_refused or not context.is_live(peer):
                del self._behind[stream]
            elif context.now_us - since_us >= BEHIND_US:
                wanted.setdefault(peer, set()).add(stream.partition)
        for peer in [peer for peer in self._catching_up if peer not in wanted]:
            context.send(peer, FeedClose(self._catching_up.pop(peer).feed))
        for peer, partitions in sorted(wanted.items()):
            link = self._catching_up.get(peer)
            if link is None or not partitions <= set(link.partitions):
                context.note("feed.catching_up")
                self._catching_up[peer] = self._open(peer, False, tuple(sorted(partitions)))

    def forget(self, stream: Stream) -> None:
        """A stream is gone: closed and covered everywhere, or its namespace was deleted."""
        self._behind.pop(stream, None)
        self._holes.pop(stream, None)
        for link in self._shipping.values():
            link.told.pop(stream, None)
            link.heads.pop(stream.key, None)

    # --- time -------------------------------------------------------------------------------------------------------

    def wake_at_us(self) -> int | None:
        return min((us for us in (self._due_us, self.relays.wake_at_us()) if us is not None), default=None)

    def tick(self, is_heartbeat: bool) -> None:
        """Acknowledge, and open anew what is due; at heartbeats look after silence and missing records."""
        context = self._context
        now_us = context.now_us
        self.relays.tick()
        if is_heartbeat:
            self._decide()
            self._catch_up()
            self.look_after_holes()
            for peer in sorted(self._remote):
                self._keep_shipping(peer, now_us)
            for link in self._catching_up.values():
                if now_us - link.heard_us > SILENT_US_MAX and context.peers[link.peer].is_connected:
                    self._retry_in(link, 0)
        if self._due_us is None or self._due_us > now_us + SLACK_US:
            return
        self._due_us = None
        for link in self.links():
            if link.retry_at_us is not None and link.retry_at_us <= now_us:
                self._retry(link)
            elif link.ack_at_us is not None and link.ack_at_us <= now_us + SLACK_US:
                self._ack(link)
        for link in self.links():
            for at_us in (link.retry_at_us, link.ack_at_us):
                if at_us is not None:
                    self._wake_by(at_us)

    def _keep_shipping(self, peer: str, now_us: int) -> None:
        link = self._shipping.get(peer)
        is_connected = self._context.peers[peer].is_connected
        if link is None:
            if is_connected and self._wanted.get(peer):
                self._open_shipping(peer)
        elif link.partitions != self._wanted.get(peer, ()):
            self._open_shipping(peer)
        elif is_connected and now_us - link.heard_us > SILENT_US_MAX:
            self._context.note("feed.silent")
            self._open_shipping(peer)
        elif link.quorum >= link.synced or link.is_stuck:
            link.quorum_at_us = now_us
        elif now_us - link.quorum_at_us > QUORUM_US_MAX:
            self._context.note("feed.quorum_stalled")  # a relayed batch was given up: `covered` tells of it
            self._open_shipping(peer)

    def _retry(self, link: Incoming) -> None:
        if link.ack_at_us is not None:
            self._ack(link)  # the new feed knows nothing of this one's batches
        if link.own_only:
            self._open_shipping(link.peer)
        elif self._catching_up.get(link.peer) is link:
            self._catching_up[link.peer] = self._open(link.peer, False, link.partitions)

    def _ack(self, link: Incoming) -> None:
        link.ack_at_us = None
        context = self._context
        link.acked_at_us = context.now_us
        covered: list[StreamHeads] = []
        if link.own_only and context.now_us - link.covered_at_us >= COVERED_US:
            link.covered_at_us = context.now_us
            if context.now_us - link.told_all_at_us >= TELL_ALL_US:
                link.told_all_at_us = context.now_us
                link.told.clear()  # some of it may have been lost
            covered = self._covered(link)
        context.send(
            link.peer,
            FeedAck(link.feed, link.synced, min(link.quorum, link.synced), covered, context.now_us, link.sent_us),
        )


def decompress(payload: bytes, raw_bytes: int) -> bytes:
    """One whole zstd frame of at most WAN_BATCH_RAW_BYTES_MAX bytes. Raises RecordError for anything else.

    Read as a stream up to the limit: the one-call form trusts the size that the frame states, and drops what follows
    it.
    """
    if not 0 <= raw_bytes <= WAN_BATCH_RAW_BYTES_MAX:
        raise RecordError(f"a batch of {raw_bytes} bytes: at most {WAN_BATCH_RAW_BYTES_MAX}")
    whole = _decompressor.decompressobj()
    try:
        with _decompressor.stream_reader(payload, read_across_frames=False) as reader:
            raw = reader.read(raw_bytes + 1)
            while len(raw) <= raw_bytes and (more := reader.read(raw_bytes + 1 - len(raw))):
                raw += more
        if len(raw) == raw_bytes:
            whole.decompress(payload)  # it is no more than that: now see whether anything is missing or follows
    except zstandard.ZstdError as error:
        raise RecordError(f"not a zstd frame: {error}") from error
    if len(raw) != raw_bytes or whole.unused_data or not whole.eof:
        raise RecordError(f"a batch that says {raw_bytes} bytes and is not one whole frame of that size")
    return raw
