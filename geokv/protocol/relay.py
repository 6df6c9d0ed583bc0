"""Relaying: what came over the WAN goes on to the co-owners, gathered for a moment so that many batches are one message.

    batches of several feeds ──gather──> one Replicate per owner set ──a quorum has it──> every batch of it is told

The first batch after a quiet time goes on at once; while they keep coming, each message waits RELAY_LINGER_US for more.
The nodes of a datacenter ship at the same moments (protocol.feed_sender), so much of it comes together.

Invariants: a batch is told only when a quorum of every owner set that it touches has all of it synced; who took its claim
back is none of that quorum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from geokv.core.record import DELTA, Record
from geokv.protocol.context import Context
from geokv.protocol.feed_sender import BUSY_US
from geokv.protocol.placement import Placement
from geokv.protocol.replication import Part, Replication

RELAY_LINGER_US: Final = 8_000
RELAY_BYTES_MAX: Final = 256 << 10  # gathered for one owner set: then it goes at once


class _Batch:
    """A batch that waits for a quorum of each of its owner sets."""

    __slots__ = ("on_quorum", "open_sets")

    def __init__(self, open_sets: set[int], on_quorum: Callable[[], None]) -> None:
        self.open_sets = open_sets
        self.on_quorum = on_quorum

    def has(self, owner_set: int) -> None:
        self.open_sets.discard(owner_set)
        if not self.open_sets:
            self.on_quorum()


class _Gathered:
    """What waits to be sent to one owner set."""

    __slots__ = ("batches", "lacking", "nbytes", "raws")

    def __init__(self) -> None:
        self.raws: list[bytes] = []
        self.nbytes = 0
        self.batches: list[_Batch] = []
        self.lacking: set[str] = set()  # who took back its claim, and is not one of the quorum


class Relays:
    """Sends received records on to the co-owners."""

    def __init__(self, context: Context, placement: Placement, replication: Replication) -> None:
        self._context = context
        self._placement = placement
        self._replication = replication
        self._gathered: dict[int, _Gathered] = {}
        self._sent_us = -BUSY_US
        self._due_us: int | None = None

    def add(self, records: Iterable[Record], on_quorum: Callable[[], None]) -> None:
        """Relay `records`, all of them in this node's log or on the way there; `on_quorum` runs once, or never."""
        set_of, claims = self._placement.set_of, self._context.claims
        by_set: dict[int, list[bytes]] = {}
        lacking: dict[int, set[str]] = {}
        for record in records:
            if record.kind == DELTA:
                by_set.setdefault(set_of[record.partition], []).append(record.raw)
                if not claims.is_whole:
                    owners = self._placement.owners[record.partition]
                    lack = set(owners).difference(claims.holders(owners, record.namespace, record.partition))
                    lacking.setdefault(set_of[record.partition], set()).update(lack)
        if not by_set:
            self._context.commit.after_pending(on_quorum)
            return
        batch = _Batch(set(by_set), on_quorum)
        is_full = False
        for owner_set, raws in by_set.items():
            gathered = self._gathered.setdefault(owner_set, _Gathered())
            gathered.raws += raws
            gathered.nbytes += sum(map(len, raws))
            gathered.batches.append(batch)
            gathered.lacking |= lacking.get(owner_set, set())
            is_full |= gathered.nbytes >= RELAY_BYTES_MAX
        now_us = self._context.now_us
        if is_full or now_us - self._sent_us >= BUSY_US:
            self._send()
        elif self._due_us is None:
            self._due_us = now_us + RELAY_LINGER_US

    def wake_at_us(self) -> int | None:
        return self._due_us

    def tick(self) -> None:
        if self._due_us is not None and self._due_us <= self._context.now_us:
            self._send()

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, {}
        self._due_us = None
        self._sent_us = self._context.now_us
        parts: list[Part] = []
        for owner_set, waiting in gathered.items():
            peers = self._placement.peers_of_set[owner_set]
            told = self._when_on_quorum(owner_set, waiting.batches, waiting.lacking)
            parts.append(self._replication.start(peers, b"".join(waiting.raws), told, is_relay=True))

        def own() -> None:
            for part in parts:
                self._replication.own_synced(part)

        self._context.commit.after_pending(own)

    def _when_on_quorum(self, owner_set: int, batches: list[_Batch], lacking: set[str]) -> Callable[[Part], None]:
        quorum = self._placement.replicas // 2 + 1
        is_own_counted = self._context.node not in lacking

        def on_change(part: Part) -> None:
            if lacking:
                replicas = sum(node not in lacking for node in part.acked) + (part.is_own_synced and is_own_counted)
            else:
                replicas = part.replicas
            if replicas >= quorum:
                self._replication.release(part)
                for batch in batches:
                    batch.has(owner_set)
                batches.clear()

        return on_change
