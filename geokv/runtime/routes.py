"""Which stream a message travels on: pure tables from message type, purpose and who dialled.

    inside a DC      one stream per pair and purpose, dialled by the node whose name sorts lower; both ways of the exchange
    between DCs      one stream that each side dials; asks go on the sender's, answers come back on it

    purpose          inside a DC                                       between DCs
    replication      writes, reads, statements, agreement, closing     everything: one link, one order
    bulk             feeds for catching up, copies, fills              (none)

Bulk has a connection of its own, so that a catch-up of gigabytes does not stand in front of a write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from geokv.core.topology import Topology
from geokv.protocol import messages
from geokv.runtime import methods

_BULK: Final = frozenset(
    {
        messages.FeedOpen,
        messages.FeedBatch,
        messages.FeedAck,
        messages.FeedClose,
        messages.FeedRefused,
        messages.FeedHoles,
        messages.CopyItems,
        messages.ItemsCopied,
        messages.DefinitionsWanted,
        messages.Definitions,
        messages.RecordsWanted,
        messages.CloseFill,
        messages.CloseFilled,
        messages.CellsFetch,
        messages.CellsWanted,
        messages.CellsPage,
    }
)
_ASKS: Final = frozenset(messages.ASKS)
_ANSWERS: Final = frozenset(messages.ANSWERS)


class Purpose(Enum):
    REPLICATION = methods.PEER_REPLICATION
    BULK = methods.PEER_BULK


class Side(Enum):
    DIALLED = "dialled"
    ACCEPTED = "accepted"


StreamName = tuple[Purpose, Side]


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """One other node, as this node reaches it. `dials`: the purposes for which this node dials."""

    name: str
    dc: str
    address: str
    is_near: bool
    dials: tuple[Purpose, ...]


def peers_of(topology: Topology, node: str) -> dict[str, PeerFacts]:
    """All other nodes of the cluster by name."""
    own = topology.node(node)
    facts = {}
    for other in topology.nodes:
        if other.name != node:
            is_near = other.dc == own.dc
            dials = _dials(own.name, other.name, is_near)
            facts[other.name] = PeerFacts(other.name, other.dc, other.address_from(own.dc), is_near, dials)
    return facts


def _dials(own: str, other: str, is_near: bool) -> tuple[Purpose, ...]:
    if not is_near:
        return (Purpose.REPLICATION,)
    return tuple(Purpose) if own < other else ()


def is_expected(peer: PeerFacts, name: StreamName) -> bool:
    """Whether a stream of that purpose, dialled by that side, exists between this node and `peer`."""
    purpose, side = name
    if not peer.is_near:
        return purpose is Purpose.REPLICATION
    return (purpose in peer.dials) == (side is Side.DIALLED)


def candidates(peer: PeerFacts, kind: type) -> tuple[StreamName, ...]:
    """The streams on which a message of this kind may go to `peer`; the first that stands takes it."""
    if peer.is_near:
        side = Side.DIALLED if peer.dials else Side.ACCEPTED
        return ((Purpose.BULK if kind in _BULK else Purpose.REPLICATION, side),)
    ask, answer = (Purpose.REPLICATION, Side.DIALLED), (Purpose.REPLICATION, Side.ACCEPTED)
    if kind in _ASKS:
        return (ask,)
    return (answer,) if kind in _ANSWERS else (ask, answer)
