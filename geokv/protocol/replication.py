"""Replication inside a datacenter: one message per batch and co-owner, acknowledged once it is synced there.

    part ──Replicate──> co-owners          part.acked: who has all of it, synced
         <─Replicated──

A *part* is a batch for one owner set. It is kept until everybody acknowledged it or its owner lets it go; to a peer
whose stream broke it is sent again when the stream stands (numbers make that harmless). What is let go unacknowledged
is caught up from the logs.

Invariants: `acked` holds only peers that said so for this batch, without a gap before it and without refusing any of
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.core.limits import PENDING_BYTES_MAX, PENDING_PARTS_MAX
from geokv.protocol.context import Context
from geokv.protocol.messages import Replicate, Replicated

RESEND_US: Final = 1_000_000
KEEP_US: Final = 5_000_000  # how long a part without a waiting owner is still sent again


class Part:
    """One batch of records on its way to the co-owners of one owner set."""

    __slots__ = (
        "acked",
        "batch",
        "is_own_synced",
        "is_relay",
        "newer",
        "on_change",
        "on_refused",
        "peers",
        "records",
        "sent_us",
        "started_us",
    )

    def __init__(self, batch: int, peers: tuple[str, ...], records: bytes, now_us: int) -> None:
        self.batch = batch
        self.peers = peers
        self.records = records
        self.acked: list[str] = []
        self.newer: dict[int, int] = {}
        self.is_own_synced = False
        self.is_relay = False
        self.on_change: Callable[[Part], None] | None = None
        self.on_refused: Callable[[], None] | None = None  # some of it was not taken, and will not be
        self.started_us = now_us
        self.sent_us = now_us

    @property
    def replicas(self) -> int:
        """How many replicas have all of it, synced."""
        return len(self.acked) + self.is_own_synced


class Replication:
    """Sends parts to co-owners and gathers their acknowledgements."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pending: dict[int, Part] = {}
        self._pending_bytes = 0

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= PENDING_PARTS_MAX

    def start(self, peers: tuple[str, ...], records: bytes, on_change: Callable[[Part], None], is_relay: bool = False) -> Part:
        """Send `records` to `peers`; `on_change` runs at every acknowledgement, until `release`.

        `is_relay`: given up after KEEP_US even if somebody waits (the frontiers tell it in the end).
        """
        context = self._context
        part = Part(context.next_id(), peers, records, context.now_us)
        part.on_change = on_change
        part.is_relay = is_relay
        if peers:
            self._pending[part.batch] = part
            self._pending_bytes += len(records)
            if self._pending_bytes > PENDING_BYTES_MAX or len(self._pending) >= PENDING_PARTS_MAX:
                self._shed()
            message = Replicate(part.batch, records)
            for peer in peers:
                if context.peers[peer].is_connected:
                    context.send(peer, message)
        return part

    def own_synced(self, part: Part) -> None:
        part.is_own_synced = True
        if part.on_change is not None:
            part.on_change(part)

    def acknowledged(self, peer: str, message: Replicated) -> Part | None:
        """Note an answer. Returns the part it belongs to, None where that is gone."""
        part = self._pending.get(message.batch)
        if part is None or peer not in part.peers:
            return None
        for index, version in message.newer:
            known = part.newer.get(index, version)
            part.newer[index] = max(version, known) if version and known else 0
        if not message.contiguous and part.on_refused is not None:
            part.on_refused()
        if message.contiguous and not message.refused and not message.unknown and peer not in part.acked:
            part.acked.append(peer)
            if len(part.acked) == len(part.peers):
                self._drop(part)
            if part.on_change is not None:
                part.on_change(part)
        return part

    def release(self, part: Part) -> None:
        """Nobody waits for `part` any more; it is still sent again for a while, then left to catching up."""
        part.on_change = None

    def _drop(self, part: Part) -> None:
        if self._pending.pop(part.batch, None) is not None:
            self._pending_bytes -= len(part.records)

    def _shed(self) -> None:
        """Leave the oldest parts that nobody waits for to catching up, until half of what may be kept is left."""
        for part in list(self._pending.values()):
            if self._pending_bytes <= PENDING_BYTES_MAX // 2 and len(self._pending) <= PENDING_PARTS_MAX // 2:
                return
            if part.on_change is None:
                self._context.count("replication.shed")
                self._drop(part)

    def reconnected(self, peer: str) -> None:
        """Send again what `peer` has not acknowledged."""
        for part in self._pending.values():
            if peer in part.peers and peer not in part.acked:
                self._context.send(peer, Replicate(part.batch, part.records))

    def tick(self) -> None:
        """Send again what was not answered for a while, and let go of what nobody waits for."""
        context = self._context
        now_us = context.now_us
        gone: list[Part] = []
        for part in self._pending.values():
            if now_us - part.sent_us < RESEND_US:
                continue
            if (part.on_change is None or part.is_relay) and now_us - part.started_us > KEEP_US:
                gone.append(part)
                continue
            part.sent_us = now_us
            for peer in part.peers:
                if peer not in part.acked and context.is_live(peer):
                    context.note("replication.resent")
                    context.send(peer, Replicate(part.batch, part.records))
        for part in gone:
            self._drop(part)
