"""What the client knows of nodes and datacenters: the cached ring, who is up, and which datacenter is used.

Each datacenter has a table from partition to the node that is asked first: the first owner that is up, else any node
that is up (it forwards, and may know better than this client who owns what), else None.

Invariants: `Datacenters.current` is the first datacenter of the stated order that was not left; where all were left,
the first with a node that is up. The table follows every change of a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from geokv.core.ring import Member, Ring
from geokv.errors import InvalidRequest
from geokv.protocol.client.batching import NEVER, Call, Group
from geokv.protocol.client.messages import RingMember, RingTold
from geokv.protocol.client.operations import Options
from geokv.protocol.client.settings import MS, S

ROUND_TRIP_WINDOW_US: Final = 10 * S
STEADY_US: Final = 5 * S
LATE_US: Final = 100 * MS


class NodeState:
    """One node, as far as this client can tell."""

    __slots__ = (
        "_window",
        "address",
        "again_us",
        "calls",
        "dc",
        "groups",
        "has_answered",
        "is_up",
        "last_reply_us",
        "name",
        "probe",
        "reason",
        "round_trip_us",
    )

    def __init__(self, name: str, dc: DatacenterState, address: str) -> None:
        self.name = name
        self.dc = dc
        self.address = address
        self.is_up = True  # until shown otherwise
        self.has_answered = False
        self.last_reply_us = 0
        self.groups: dict[Options, Group] = {}
        self.calls: dict[int, Call] = {}  # under way, the probe included
        self.probe: Call | None = None
        self.again_us = 0  # how long until it is probed again, while it is down
        self.reason = ""
        # The shortest of the last ten seconds or so: the way alone, without the work. 0: not known.
        self.round_trip_us = 0
        self._window = (NEVER, -NEVER)  # shortest since, when it began

    def is_late(self, now_us: int) -> bool:
        """Whether it has not said a word for longer than it should take: others are asked meanwhile."""
        if not self.calls:
            return False
        since_us = max(min([call.started_us for call in self.calls.values()]), self.last_reply_us)
        return now_us - since_us > LATE_US + 2 * self.round_trip_us

    def note_round_trip(self, took_us: int, now_us: int) -> None:
        shortest_us, since_us = self._window
        if now_us - since_us > ROUND_TRIP_WINDOW_US:
            self.round_trip_us = min(shortest_us, took_us)
            shortest_us, since_us = NEVER, now_us
        self._window = (min(shortest_us, took_us), since_us)
        self.round_trip_us = min(self.round_trip_us or NEVER, took_us)


class DatacenterState:
    """One datacenter: its nodes, who owns what, and whether it was left."""

    def __init__(self, name: str, replicas: int, steady: int = 0) -> None:
        self.name = name
        self.replicas = replicas
        self.nodes: dict[str, NodeState] = {}
        self.owners: list[tuple[NodeState, ...]] = []  # by partition
        self.first: list[NodeState | None] = []  # by partition: whom to ask first
        self._turns: list[list[NodeState | None]] = []  # by turn and partition: the live owners, one after the other
        self._turn = 0
        self._steady = (steady, -NEVER)  # the turn that updates take, until when
        self.is_left = False
        self.left_us = 0
        self.returned_us = -NEVER
        self.healthy_since_us = NEVER
        self.failback_us = 0  # how long it must be healthy
        self.trouble_since_us = NEVER  # first of the failures in a row
        self.troubles = 0

    @property
    def live(self) -> list[NodeState]:
        return [node for node in self.nodes.values() if node.is_up]

    @property
    def is_healthy(self) -> bool:
        """More than half of the nodes are up: a quorum can be found for most partitions."""
        return 2 * len(self.live) > len(self.nodes)

    def refresh(self) -> None:
        """Make the table anew, after a node or the ring changed."""
        live = self.live
        self.first = [
            next((node for node in owners if node.is_up), live[partition % len(live)] if live else None)
            for partition, owners in enumerate(self.owners)
        ]
        rank = {node: at for at, node in enumerate(self.nodes.values())}
        turned = {  # by owners: those that are up, in an order that owner sets share
            owners: sorted((node for node in owners if node.is_up), key=rank.__getitem__)
            for owners in dict.fromkeys(self.owners)
        }
        self._turns = [
            [
                turned[owners][turn % len(turned[owners])] if turned[owners] else first
                for owners, first in zip(self.owners, self.first, strict=True)
            ]
            for turn in range(self.replicas)
        ]

    def turns(self, partition: int) -> tuple[list[NodeState | None], list[NodeState | None]]:
        """Two tables of live owners, by partition: in each the same node for as many partitions as can be, so that
        what is asked at once travels together. Whose calls of this partition's owners are fewest comes first, and
        where they are equal another one after each `turn`.
        """
        at = self._turn % len(self._turns)
        tables = self._turns[at:] + self._turns[:at]
        tables.sort(key=lambda table: len(node.calls) if (node := table[partition]) else 0)
        return tables[0], tables[min(1, len(tables) - 1)]

    def steady(self, partition: int, now_us: int) -> list[NodeState | None]:
        """Such a table that stays the same for some seconds, unless its node falls silent: who made the last update of a key
        has its cell decoded, and the others need not.
        """
        turn, until_us = self._steady
        node = self._turns[turn % len(self._turns)][partition]
        if now_us >= until_us or (node is not None and node.is_late(now_us)):
            if until_us != -NEVER:
                turn = self._turns.index(self.turns(partition)[0])
            self._steady = (turn, now_us + STEADY_US)
        return self._turns[turn % len(self._turns)]

    def turn(self) -> None:
        self._turn += 1

    def choose(self, partition: int, attempt: int) -> NodeState | None:
        """Whom to ask in this attempt (0: the first): the live owners in turn, else any live node."""
        live = [node for node in self.owners[partition] if node.is_up] or self.live
        return live[attempt % len(live)] if live else None


class Datacenters:
    """The cached ring with all its datacenters, those that this client may use in the order stated."""

    def __init__(self, own: str, failover: Sequence[str], steady: int = 0) -> None:
        self._steady = steady  # which turn updates take first: another one for each client
        self.cluster = ""
        self.version = 0
        self.shift = 64
        self.by_name: dict[str, DatacenterState] = {}
        self.nodes: dict[str, NodeState] = {}
        self.order: list[DatacenterState] = []
        self.refusal: InvalidRequest | None = None
        self._own = own
        self._failover = failover

    @property
    def is_known(self) -> bool:
        return bool(self.nodes)

    def current(self) -> DatacenterState:
        for dc in self.order:
            if not dc.is_left:
                return dc
        return next((dc for dc in self.order if dc.live), self.order[0])

    def after(self, steps: int) -> DatacenterState | None:
        """The datacenter that an operation turns to after it gave up `steps` of them, from the current one on."""
        index = self.order.index(self.current()) + steps
        return self.order[index] if index < len(self.order) else None

    def adopt(self, told: RingTold) -> list[NodeState]:
        """Take over a newer ring; returns the nodes that are gone. What is known of the others stays."""
        before = self.nodes
        self.cluster, self.version = told.cluster, told.version
        datacenters: dict[str, DatacenterState] = {}
        for name, replicas in told.replicas.items():
            dc = datacenters[name] = self.by_name.get(name) or DatacenterState(name, replicas, self._steady)
            dc.replicas = replicas
            dc.nodes = {}
        self.nodes = {}
        for member in told.members:
            dc = datacenters[member.dc]
            node = before.get(member.name)
            if node is None or node.dc is not dc:
                node = NodeState(member.name, dc, member.address)
            node.address = member.address
            dc.nodes[member.name] = self.nodes[member.name] = node
        self.by_name = datacenters
        for dc in datacenters.values():
            self._place(dc, told)
        self._set_order(told)
        return [node for name, node in before.items() if self.nodes.get(name) is not node]

    def _place(self, dc: DatacenterState, told: RingTold) -> None:
        members: list[RingMember] = [member for member in told.members if member.dc == dc.name]
        ring = Ring(told.partitions, [Member(member.name, member.rack, member.weight) for member in members])
        self.shift = ring.shift
        dc.owners = [
            tuple(dc.nodes[name] for name in ring.owners(partition, dc.replicas)) for partition in range(told.partitions)
        ]
        dc.refresh()

    def _set_order(self, told: RingTold) -> None:
        """Own datacenter first. Without one stated it is that of the node that answered first, and stays so."""
        if not self._own:
            answered = self.nodes.get(told.answered_by)
            self._own = answered.dc.name if answered else next(iter(self.by_name))
        wanted = list(dict.fromkeys((self._own, *self._failover)))
        unknown = [name for name in wanted if name not in self.by_name]
        self.refusal = None
        if unknown:
            known = ", ".join(sorted(self.by_name))
            self.refusal = InvalidRequest(
                f"unknown datacenter {unknown[0]!r}: cluster {told.cluster!r} has {known};"
                " correct dc= or failover= of the client"
            )
        self.order = [self.by_name[name] for name in wanted if name in self.by_name] or [next(iter(self.by_name.values()))]
