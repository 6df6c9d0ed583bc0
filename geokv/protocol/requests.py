"""What clients ask of a node and what it answers, as columns: a batch is one object, an operation is one entry in its lists.

The wire form is proto/geokv/v1/kv.proto; runtime, server and client translate. Here are only the values that the
machines see.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from geokv.core.cells.operation import Operation
from geokv.core.quorum import Consistency

ANYBODY: Final = "*"  # among the nodes that were tried: any owner of the key may have been


class Outcome(IntEnum):
    """What became of one operation. The first three are results, the rest are errors (see geokv.errors)."""

    APPLIED = 0
    SUPERSEDED = 1
    PENDING = 2
    INVALID = 10
    NOT_FOUND = 11  # no such namespace
    UNAVAILABLE = 12
    OVERLOADED = 13
    PARTIAL = 14
    AMBIGUOUS = 15
    STALE = 16
    DEADLINE = 17
    ALREADY_EXISTS = 18
    WRONG_NODE = 19  # refresh the ring; nothing was numbered
    ASK_AGAIN = 20  # a get that had no room in this answer; it has in the next one
    NOT_ENOUGH_RIGHTS = 21  # a decrement of a bounded counter, where it was asked; nothing was numbered

    @property
    def is_error(self) -> bool:
        """Whether it stands for an error: a result's outcome never does."""
        return self >= Outcome.INVALID

    def __str__(self) -> str:
        """Its name, as in print(); on the wire and in comparisons it is its number."""
        return self.name


@dataclass(slots=True)
class Detail:
    """Why one operation of a batch did not simply succeed. Sparse: only where there is something to say."""

    message: str = ""
    required: int = 0
    achieved: int = 0
    replicas: tuple[str, ...] = ()
    behind_ms: int = 0
    retry_after_ms: int = 0
    rights: tuple[int, int, int] | None = None  # of a bounded counter: needed, here, elsewhere


@dataclass(slots=True)
class WriteBatch:
    """Puts and deletes of one namespace with the same options. `values[i]` is None for a delete.

    `ttl_ms`: 0 takes the namespace's, -1 means none. `w`: explicit replica count, 0 takes the level. `operations`: 16
    bytes per item, or empty. `contexts`: per item, or empty. `has_updates`: the values are operations of the namespace's
    type (core.cells.wire), not values to be put. `timeout_ms`: what is left of the caller's time, of the
    one who has most; `remaining_ms`: of each, where they differ, or empty: what is not numbered by then is not numbered at all.
    `replicated_to`: how many DCs in all (this one included) must hold the write before the answer; 0: as the level
    says. `tried`: a retry names the nodes that were asked before ("*": any may have been), and `first_try_ms`, how long ago
    the first of them was. Not on the wire: `right`, what a retry that was found to be new has here (`protocol.operation_ids`);
    `is_gone`: nobody waits for the answer any more.
    """

    namespace: str
    keys: list[bytes]
    values: list[bytes | None]
    level: Consistency = Consistency.DEFAULT
    w: int = 0
    ttl_ms: int = 0
    replicated_to: int = 0
    timeout_ms: int = 5_000
    seen_hlc: int = 0
    operations: list[bytes] = field(default_factory=list)
    contexts: list[bytes] = field(default_factory=list)
    ring_version: int = 0
    has_updates: bool = False
    is_gone: bool = field(default=False, compare=False)
    tried: tuple[str, ...] = ()
    first_try_ms: int = 0
    remaining_ms: list[int] = field(default_factory=list)
    right: int = 0


@dataclass(slots=True)
class OwnBatch(WriteBatch):
    """Updates that a node makes by itself; never on the wire. `own`: the operations, which no client may ask for."""

    own: list[Operation] = field(default_factory=list)


@dataclass(slots=True)
class WriteReply:
    """One entry per item of the batch. `replicas`/`dcs`: how many hold it, synced, when this was said.

    `contexts`: per item what the writer has seen now, where the policy is not `lww` (whose context is the version); or empty.
    """

    outcomes: list[int]
    versions: list[int]
    replicas: list[int]
    dcs: list[int]
    coordinator: str
    hlc: int
    elapsed_us: int
    details: dict[int, Detail] = field(default_factory=dict)
    contexts: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class ReadBatch:
    """Gets of one namespace with the same options. `repair_before`: answer only what a quorum holds.

    `is_gone`: nobody waits for the answer any more (not on the wire).
    """

    namespace: str
    keys: list[bytes]
    level: Consistency = Consistency.DEFAULT
    r: int = 0
    timeout_ms: int = 5_000
    seen_hlc: int = 0
    repair_before: bool = False
    ring_version: int = 0
    is_gone: bool = field(default=False, compare=False)


@dataclass(slots=True)
class ReadReply:
    """One entry per key. `values[i]` is None where absent, deleted, expired or failed. `versions[i]` is 0 where absent.

    `policy`: empty for `lww`, whose values are as they were put and whose context is the version. Else the values have the
    form of that policy (core.cells.wire), there are no versions, and `contexts[i]` is what the reader has seen.
    """

    outcomes: list[int]
    values: list[bytes | None]
    versions: list[int]
    replicas: list[int]
    coordinator: str
    hlc: int
    elapsed_us: int
    details: dict[int, Detail] = field(default_factory=dict)
    contexts: list[bytes] = field(default_factory=list)
    policy: str = ""


@dataclass(slots=True)
class AdminRequest:
    """`verb` is one of the names in `node.admin`: namespace_create|list|show|alter|delete, status, ring, metrics.

    `arguments` is a tree of plain values (str, int, float, bool, None, list, dict): JSON on the wire. `node`: the SDK asks that
    one and no other (not on the wire).
    """

    verb: str
    arguments: dict[str, object]
    timeout_ms: int = 5_000
    node: str = ""


@dataclass(slots=True)
class AdminReply:
    """`outcome` APPLIED with `body`, or an error outcome with `message`."""

    outcome: Outcome
    body: dict[str, object] = field(default_factory=dict)
    message: str = ""


Request = WriteBatch | ReadBatch | AdminRequest
Reply = WriteReply | ReadReply | AdminReply
