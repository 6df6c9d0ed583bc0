"""Peers: who is connected, who is alive, and what each of them last said about itself.

A peer is live while a stream to it stands and it was heard within `SILENT_US_MAX`. A lost stream counts at once (a
killed process resets its connections), silence counts after a time that lives with stalls of 100 ms.

Not here: phi accrual and gossip; membership is static so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from geokv.protocol.messages import Statement

SILENT_US_MAX: Final = 1_500_000


class Peer:
    """One other node, in this datacenter or another."""

    __slots__ = (
        "dc",
        "echo_us",
        "heard_us",
        "incarnation",
        "is_connected",
        "log_sequence",
        "name",
        "round_trip_us",
        "skew_ms",
    )

    def __init__(self, name: str, dc: str) -> None:
        self.name = name
        self.dc = dc
        self.is_connected = False
        self.incarnation = 0
        self.heard_us = 0
        self.echo_us = 0  # the newest `sent_us` it told us, given back to it
        self.round_trip_us = 0
        self.skew_ms = 0
        self.log_sequence = 0


class Peers:
    """The table of peers of one node."""

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self.by_name = {name: Peer(name, dc) for name, dc in names}
        self.lost = 0

    def __getitem__(self, name: str) -> Peer:
        return self.by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def connected(self, name: str, incarnation: int, now_us: int) -> None:
        peer = self.by_name[name]
        peer.is_connected = True
        peer.incarnation = incarnation
        peer.heard_us = now_us

    def disconnected(self, name: str) -> None:
        peer = self.by_name[name]
        if peer.is_connected:
            self.lost += 1
        peer.is_connected = False

    def is_live(self, name: str, now_us: int) -> bool:
        peer = self.by_name[name]
        return peer.is_connected and now_us - peer.heard_us <= SILENT_US_MAX

    def live(self, names: Iterable[str], now_us: int) -> list[str]:
        return [name for name in names if self.is_live(name, now_us)]

    def stated(self, name: str, statement: Statement, wall_ms: int, now_us: int) -> None:
        """Take from a statement what concerns the peer as such: clocks and its log."""
        peer = self.by_name[name]
        peer.echo_us = statement.sent_us
        if statement.echo_us:
            peer.round_trip_us = max(0, now_us - statement.echo_us)
        peer.skew_ms = statement.wall_ms - wall_ms
        peer.log_sequence = max(peer.log_sequence, statement.log_sequence)
