"""Connections between nodes, as the real transport tells of them: PeerConnected, PeerLost, and messages that die with a stream.

A connection belongs to one run of the process at each end. What breaks it is noticed by each end for itself, later:

    what happens                    the peer learns of it                      is_refused
    process ends (kill, new run)    after about one delay (the kernel says so)  nobody listens: yes
    power fails, link is cut        after `detect_us` (keepalive)               no
    process is stopped (pause)      after `detect_us`; its socket keeps what came

When both ends can reach each other again a new connection stands after `reconnect_us`; an end that had not noticed the loss of
the old one is told PeerConnected again. A message travels on the connection it was sent on and is dropped where the receiver
gave that up, or is another run.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from geokv.protocol.effects import Delivered, Event, PeerConnected, PeerLost
from geokv.sim.network import Network
from geokv.sim.schedule import Schedule


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """When ends notice. The defaults are the real transport's: keepalive, and a back-off of 0.1 to 1 s."""

    detect_us: tuple[int, int] = (600_000, 2_000_000)
    reconnect_us: tuple[int, int] = (20_000, 600_000)


class End(Protocol):
    """What a connection knows of a node's host."""

    name: str
    boot: int  # which run of the process; 0 before the first

    @property
    def is_listening(self) -> bool: ...  # a node runs there and takes connections

    @property
    def is_machine_up(self) -> bool: ...  # the machine answers, if only to refuse

    @property
    def is_responsive(self) -> bool: ...  # it listens and is not paused

    @property
    def incarnation(self) -> int: ...

    def deliver(self, event: Event) -> None: ...


class Connection:
    """One stream between two runs. `is_open[end]` is what that end believes."""

    __slots__ = ("boots", "is_open", "is_replaced")

    def __init__(self, boots: dict[str, int]) -> None:
        self.boots = boots
        self.is_open = dict.fromkeys(boots, True)
        self.is_replaced = False


class Peers:
    """All connections of the world, one per pair of nodes at most."""

    def __init__(self, schedule: Schedule, network: Network, rng: random.Random, options: PeerOptions) -> None:
        self._schedule = schedule
        self._network = network
        self._rng = rng
        self._options = options
        self._ends: Mapping[str, End] = {}
        self._pairs: list[tuple[str, str]] = []
        self._connections: dict[tuple[str, str], Connection] = {}
        self._is_connecting: dict[tuple[str, str], bool] = {}
        network.changed = self.check_all

    def join(self, ends: Mapping[str, End]) -> None:
        self._ends = ends
        names = list(ends)
        self._pairs = [(one, other) for index, one in enumerate(names) for other in names[index + 1 :]]

    def send(self, source: str, target: str, message: object) -> bool:
        """Put a message on the connection; False (and gone) where the sender has none."""
        connection = self._connection(source, target)
        if connection is None or not connection.is_open[source]:
            return False
        if connection.boots[source] != self._ends[source].boot:
            return False
        self._network.carry(source, target, message, self._arrive, connection, source, target)
        return True

    def _arrive(self, connection: Connection, source: str, target: str, message: object) -> None:
        end = self._ends[target]
        if connection.is_open[target] and connection.boots[target] == end.boot and end.is_listening:
            end.deliver(Delivered(source, message))

    def is_connected(self, one: str, other: str) -> bool:
        """Both ends believe it, and are right."""
        connection = self._connection(one, other)
        return connection is not None and self._is_whole(connection)

    def _connection(self, one: str, other: str) -> Connection | None:
        found = self._connections.get((one, other))
        return found if found is not None else self._connections.get((other, one))

    def _is_whole(self, connection: Connection) -> bool:
        return all(
            is_open and connection.boots[name] == self._ends[name].boot and self._ends[name].is_listening
            for name, is_open in connection.is_open.items()
        )

    # --- what changes -----------------------------------------------------------------------------------------------

    def check_all(self) -> None:
        for one, other in self._pairs:
            self._check(one, other)

    def check_node(self, name: str) -> None:
        """The node started, ended, was paused or went on."""
        for one, other in self._pairs:
            if name in (one, other):
                self._check(one, other)

    def _can_talk(self, one: str, other: str) -> bool:
        network = self._network
        return (
            self._ends[one].is_responsive
            and self._ends[other].is_responsive
            and not network.is_cut(one, other)
            and not network.is_cut(other, one)
        )

    def _check(self, one: str, other: str) -> None:
        connection = self._connections.get((one, other))
        can_talk = self._can_talk(one, other)
        if connection is not None and not (can_talk and self._is_whole(connection)):
            for name, peer in ((one, other), (other, one)):
                if connection.is_open[name]:
                    self._schedule.after(self._detection_us(connection, peer), self._notice, connection, name, peer)
        is_wanted = connection is None or not self._is_whole(connection)
        if is_wanted and can_talk and not self._is_connecting.get((one, other)):
            self._is_connecting[one, other] = True
            self._schedule.after(self._rng.randint(*self._options.reconnect_us), self._connect, one, other)

    def _detection_us(self, connection: Connection, peer: str) -> int:
        end = self._ends[peer]
        is_said_by_kernel = end.is_machine_up and (end.boot != connection.boots[peer] or not end.is_listening)
        if is_said_by_kernel:
            return self._rng.randint(100, 60_000)
        return self._rng.randint(*self._options.detect_us)

    def _notice(self, connection: Connection, name: str, peer: str) -> None:
        """The end `name` finds its connection to `peer` broken, unless all is well again."""
        end, other = self._ends[name], self._ends[peer]
        if not connection.is_open[name] or connection.boots[name] != end.boot or connection.is_replaced:
            return
        if self._can_talk(name, peer) and self._is_whole(connection):
            return
        if not end.is_responsive:  # it will see when it goes on
            return
        connection.is_open[name] = False
        end.deliver(PeerLost(peer, is_refused=other.is_machine_up and not other.is_listening))
        self.check_node(name)

    def _connect(self, one: str, other: str) -> None:
        self._is_connecting[one, other] = False
        old = self._connections.get((one, other))
        if not self._can_talk(one, other) or (old is not None and self._is_whole(old)):
            return
        if old is not None:
            old.is_replaced = True
        ends = (self._ends[one], self._ends[other])
        self._connections[one, other] = Connection({end.name: end.boot for end in ends})
        ends[0].deliver(PeerConnected(other, ends[1].incarnation))
        ends[1].deliver(PeerConnected(one, ends[0].incarnation))
