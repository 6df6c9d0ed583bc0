"""What goes into the client machine (events) and what comes out of it (effects), beside the requests and replies
themselves.

The contract is that of every machine (protocol.effects): a batch is the unit of an event, effects are performed in
list order. `Woken` and `Note` are those of the nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from geokv.errors import GeokvError
from geokv.protocol.client.operations import Operation
from geokv.protocol.effects import Note, Woken
from geokv.protocol.requests import Reply, Request

# --- the ring, as asked for and as told -----------------------------------------------------------------------------


@dataclass(slots=True)
class RingAsk:
    """Which nodes are there, and where does `viewpoint` (a datacenter; empty: outside) reach them?"""

    viewpoint: str


@dataclass(slots=True, frozen=True)
class RingMember:
    """A node as the ring's answer names it."""

    name: str
    dc: str
    rack: str
    weight: float
    address: str


@dataclass(slots=True)
class RingTold:
    """The answer: all nodes of all datacenters, and the number of replicas in each datacenter."""

    cluster: str
    partitions: int
    version: int
    members: list[RingMember]
    replicas: dict[str, int]
    answered_by: str = ""


# --- events ---------------------------------------------------------------------------------------------------------


class Failure(IntEnum):
    """How a whole call failed. Up to OVERLOADED nothing can have been numbered."""

    REFUSED = 1  # nobody listens there
    NOT_SENT = 2  # no connection could be made
    NOT_READY = 3  # the server answers, but its node does not run now
    OVERLOADED = 4  # the server turned the call away before it looked at it
    BROKEN = 5  # the connection was lost while the call was under way
    TIMEOUT = 6
    MALFORMED = 7  # the answer makes no sense
    REJECTED = 8  # the server says that the call can never succeed as it is
    FAILED = 9  # the server failed in a way that it does not explain
    UNWRITABLE = 10  # this client cannot write the request as bytes: nothing was sent


@dataclass(slots=True)
class OperationsAdded:
    """Callers want these; everything that arrived since the last event."""

    operations: list[Operation]


@dataclass(slots=True)
class OperationsAbandoned:
    """Nobody waits for these any more (cancelled). What has left is not called back."""

    operations: list[Operation]


@dataclass(slots=True)
class CallReturned:
    """A call was answered. `ring_version`: the server's, 0 where the answer has none."""

    call: int
    reply: Reply | RingTold
    ring_version: int = 0


@dataclass(slots=True)
class CallFailed:
    """A call has no answer."""

    call: int
    failure: Failure
    message: str = ""
    retry_after_ms: int = 0


@dataclass(slots=True)
class Closed:
    """The client is closed: everything that still waits is told so."""


Event = OperationsAdded | OperationsAbandoned | CallReturned | CallFailed | Closed | Woken

# --- effects --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class SendBatch:
    """Call the node at `address`. Ends as CallReturned or CallFailed with the same `call`, unless it is cancelled
    before.

    The machine keeps the time itself; `timeout_us` is for the transport, so that nothing outlives its use.
    """

    call: int
    address: str
    request: Request | RingAsk
    timeout_us: int


@dataclass(slots=True)
class CancelCall:
    """Nobody wants the answer to this call any more."""

    call: int


@dataclass(slots=True)
class Resolve:
    """Tell the callers. `operations[i]` has the error `errors[i]`, or else the entry i of `reply`; None: not now.

    `dc` and `replicas`: the datacenter that answered, and how many copies it keeps of each key.
    """

    operations: list[Operation | None]
    reply: Reply | None
    errors: dict[int, GeokvError] = field(default_factory=dict)
    dc: str = ""
    replicas: int = 0

    def pairs(self) -> Iterator[tuple[Operation, int | GeokvError]]:
        """Each operation that is told, with its error or its index in the reply."""
        for index, operation in enumerate(self.operations):
            if operation is not None:
                yield operation, self.errors.get(index, index)


@dataclass(slots=True)
class ForgetAddress:
    """No node is at this address any more; its connection can be closed."""

    address: str


@dataclass(slots=True, frozen=True)
class ClientEvent:
    """Something that a subscriber may want to know: kind is "failover", "failback", "node_down" or "node_up".

    `dc` is the datacenter concerned (for failover and failback: the one that is used from now on), `from_dc` the one
    that was left, `node` the node concerned.
    """

    kind: str
    dc: str = ""
    node: str = ""
    from_dc: str = ""
    reason: str = ""


Effect = SendBatch | CancelCall | Resolve | ForgetAddress | ClientEvent | Note
