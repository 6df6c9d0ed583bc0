"""What clients asked and what they were told: the only evidence, besides disks and engines, that the checkers go by.

An operation is one item of a batch. `outcome` None means that the client was told nothing (its call was lost or timed out):
such a write may have happened. Times are true time in microseconds, taken at the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from geokv.core.quorum import Consistency
from geokv.protocol.requests import Outcome

ACKNOWLEDGED: Final = frozenset((Outcome.APPLIED, Outcome.SUPERSEDED, Outcome.PENDING))
"""Outcomes of a write that stands, at the level that the reply states."""


@dataclass(slots=True)
class Operation:
    """One put, delete, get or update. `replicas`, `dcs`: what the reply said is achieved. `coordinator_dc`: who answered.

    Where `policy` is not `lww`: `kind` is the operation of its type, `value` what it adds or takes, `amount` what it counts,
    `saw` the values that the context it handed back was read with (None: no context), `shown` and `context` what a get was
    told.
    """

    index: int
    client: str
    dc: str
    kind: str  # "put", "delete", "get"
    namespace: str
    key: bytes
    level: Consistency
    started_us: int
    value: bytes | None = None
    ttl_ms: int = 0
    ended_us: int = 0
    outcome: Outcome | None = None
    version: int = 0
    replicas: int = 0
    dcs: int = 0
    coordinator: str = ""
    coordinator_dc: str = ""
    explicit: int = 0
    policy: str = "lww"
    amount: int = 0
    saw: frozenset[bytes] | None = None
    shown: Any = None
    context: bytes = b""
    answered_as: str = ""  # of the policy that the coordinator knew, as far as the answer tells; empty for `lww`

    @property
    def is_write(self) -> bool:
        return self.kind != "get"

    @property
    def is_acknowledged(self) -> bool:
        return self.outcome in ACKNOWLEDGED

    def __str__(self) -> str:
        told = self.outcome.name if self.outcome is not None else "told nothing"
        return (
            f"{self.kind} {self.key!r} by {self.client} via {self.coordinator or '?'} at {self.level.name}"
            f" [{self.started_us / 1e6:.6f}..{self.ended_us / 1e6:.6f} s] {told} version={self.version:x}"
            f" replicas={self.replicas} dcs={self.dcs} value={self.value!r}"
        )


class History:
    """All operations of a run, in the order in which they began."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.born_as = ""  # the policy that the typed namespace was made with; it may be changed in the middle

    def begin(
        self,
        client: str,
        dc: str,
        kind: str,
        namespace: str,
        key: bytes,
        level: Consistency,
        now_us: int,
        value: bytes | None = None,
        ttl_ms: int = 0,
        explicit: int = 0,
    ) -> Operation:
        operation = Operation(
            len(self.operations), client, dc, kind, namespace, key, level, now_us, value, ttl_ms, explicit=explicit
        )
        self.operations.append(operation)
        return operation

    def plain(self) -> list[Operation]:
        """Those of namespaces with policy `lww`."""
        return [operation for operation in self.operations if operation.policy == "lww"]

    def typed(self, policy: str) -> list[Operation]:
        return [operation for operation in self.operations if operation.policy == policy]

    def last_answered_as_lww_us(self) -> int:
        """When the last answer came that knew the typed namespace as `lww` (0: none did)."""
        old = [o.ended_us for o in self.operations if o.policy != "lww" and o.is_acknowledged and not o.answered_as]
        return max(old, default=0)

    def writes(self) -> list[Operation]:
        return [operation for operation in self.plain() if operation.is_write]

    def acknowledged(self) -> list[Operation]:
        return [operation for operation in self.writes() if operation.is_acknowledged]

    def reads(self) -> list[Operation]:
        """Gets that were answered."""
        return [o for o in self.plain() if o.kind == "get" and o.outcome is Outcome.APPLIED]
