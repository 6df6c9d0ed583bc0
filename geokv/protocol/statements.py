"""Statements: at every heartbeat each node tells its peers that it lives, and now and then what it has synced.

To co-owners: clocks, how many definitions are known, and every second the frontiers that changed (all of them now and
then, so a lost statement heals) and what of the own streams every other datacenter covers. To other datacenters: clocks and
definitions only; frontiers go there with the feeds.

Invariants: a stated frontier is synced here. Statements are only heard from live streams, so what is noted of a peer
is true or older than true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from geokv.protocol.commit import Entry
from geokv.protocol.context import Context
from geokv.protocol.feed_receiver import FeedReceiver
from geokv.protocol.feed_sender import heads_of
from geokv.protocol.messages import Statement, StreamHeads
from geokv.protocol.streams import Stream


class Statements:
    """Makes this node's statements and takes in those of its peers."""

    def __init__(
        self,
        context: Context,
        receiver: FeedReceiver,
        definitions: Callable[[], dict[str, int]],
        heard_definitions: Callable[[str, dict[str, int]], None],
        neighbours: list[str],
        remote: list[str],
        interval_us: int,
        frontiers_us: int,
        full_us: int,
        remote_us: int,
    ) -> None:
        self._context = context
        self._receiver = receiver
        self._definitions = definitions
        self._heard_definitions = heard_definitions
        self._neighbours = neighbours
        self._remote = remote
        self._interval_us = interval_us
        self._frontiers_us = frontiers_us
        self._full_us = full_us
        self._remote_us = remote_us
        self._touched: set[Stream | None] = set()
        self._shipped: set[Stream] = set()
        self._next_us = 0
        self._next_frontiers_us = 0
        self._next_full_us = 0
        self._next_remote_us = 0

    def landed(self, entries: Iterable[Entry]) -> None:
        """Records were synced: their streams are in the next statement."""
        self._touched.update([entry[1] for entry in entries])

    def moved(self, stream: Stream) -> None:
        """A frontier moved without records."""
        self._touched.add(stream)

    def covered(self, stream: Stream) -> None:
        """Another datacenter's frontier on an own stream moved."""
        self._shipped.add(stream)

    def connected(self) -> None:
        """Somebody came (back): tell everything at the next heartbeat."""
        self._next_full_us = 0

    def hurry(self) -> None:
        """Something is to be stated now, not at the next heartbeat."""
        self._next_us = 0

    def wake_at_us(self) -> int:
        return self._next_us

    def tick(self) -> bool:
        """Send what is due; True at a heartbeat."""
        context = self._context
        now_us = context.now_us
        if now_us < self._next_us:
            return False
        self._next_us = now_us + self._interval_us
        is_full = now_us >= self._next_full_us
        if is_full:
            self._next_full_us = now_us + self._full_us
        frontiers: list[StreamHeads] = []
        shipped: list[StreamHeads] = []
        if is_full or now_us >= self._next_frontiers_us:
            self._next_frontiers_us = now_us + self._frontiers_us
            frontiers, shipped = self._frontiers(is_full), self._shipped_heads(is_full)
        for peer in self._neighbours:
            if context.peers[peer].is_connected:
                context.send(peer, self._statement(peer, is_full, frontiers, shipped))
        if now_us >= self._next_remote_us:
            self._next_remote_us = now_us + self._remote_us
            for peer in self._remote:
                if context.peers[peer].is_connected:
                    context.send(peer, self._statement(peer, False, [], []))
        return True

    def _statement(self, peer: str, is_full: bool, frontiers: list[StreamHeads], shipped: list[StreamHeads]) -> Statement:
        context = self._context
        return Statement(
            context.now_us,
            context.peers[peer].echo_us,
            context.wall_ms,
            context.clock.last,
            context.commit.log_sequence,
            is_full,
            frontiers,
            shipped,
            self._definitions(),
            self._collections() if peer in self._neighbours else {},
        )

    def _collections(self) -> dict[int, int]:
        return {number: table.collections for number, table in self._context.tables.items() if table.collections}

    def _frontiers(self, is_full: bool) -> list[StreamHeads]:
        touched, self._touched = self._touched, set()
        if is_full:
            streams: Iterable[Stream] = chain.from_iterable(t.streams for t in self._context.tables.values())
        else:
            streams = sorted((s for s in touched if s is not None), key=lambda s: s.key)
        lost = self._context.claims.all_mine()
        return heads_of((s, s.frontier) for s in streams if s.frontier and s.partition not in lost.get(s.namespace, ()))

    def _shipped_heads(self, is_full: bool) -> list[StreamHeads]:
        context = self._context
        shipped, self._shipped = self._shipped, set()
        if is_full:
            own = (s for t in context.tables.values() for s in t.streams if s.dcs)
        else:
            own = (s for s in sorted(shipped, key=lambda s: s.key))
        pairs = ((s, self.shipped_everywhere(s)) for s in own)
        return heads_of((stream, number) for stream, number in pairs if number)

    def shipped_everywhere(self, stream: Stream) -> int:
        """Up to which number the frontier of every other DC that holds the namespace covers an own stream."""
        table = self._context.tables.get(stream.namespace)
        if table is None:
            return stream.frontier
        own, covered = self._context.dc, stream.dcs
        return min([covered.get(dc, 0) for dc in table.definition.dcs if dc != own], default=stream.frontier)

    def heard(self, peer: str, message: Statement) -> None:
        """A peer's statement."""
        context = self._context
        context.peers.stated(peer, message, context.wall_ms, context.now_us)
        context.clock.observe(message.hlc, context.wall_ms)
        for heads in message.shipped:
            for partition, number in zip(heads.partitions, heads.numbers, strict=True):
                stream = context.find_stream(heads.namespace, partition, heads.origin)
                if stream is not None:
                    stream.shipped = max(stream.shipped, number)
        if peer in self._neighbours:
            for namespace, count in message.collections.items():
                if namespace in context.tables:
                    context.tables[namespace].collections_of[peer] = count
            self._receiver.stated(peer, message.frontiers)
        self._heard_definitions(peer, message.definitions)
