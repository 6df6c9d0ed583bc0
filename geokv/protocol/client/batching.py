"""Groups and calls: how operations that arrive one by one leave as batches.

    operation --options, key's owner--> Group.pending --at most N calls under way--> Call (one batch) --> node

There is no timer: what arrives while nothing is under way leaves at once, what arrives meanwhile leaves together when
the call comes back, or when it is worth a call of its own. So batches grow exactly with the load, and a lone caller
waits for nobody.

Invariants: a call has at most BATCH_ITEMS_MAX operations and BATCH_BYTES_MAX bytes of keys, values and contexts, unless one
operation alone is larger. An operation is in at most one call that is under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from geokv.core.limits import BATCH_BYTES_MAX, BATCH_ITEMS_MAX
from geokv.protocol.client.operations import Kind, Operation, Options
from geokv.protocol.client.settings import MS
from geokv.protocol.requests import ReadBatch, WriteBatch

if TYPE_CHECKING:
    from geokv.protocol.client.nodes import NodeState

NEVER: Final = 1 << 62
UNEVEN_US: Final = 100 * MS  # deadlines in one batch that differ by less are taken for the latest of them


class Group:
    """What waits for calls of one kind (options) to one node."""

    __slots__ = ("calls", "deadline_us", "is_touched", "node", "options", "pending")

    def __init__(self, node: NodeState, options: Options) -> None:
        self.node = node
        self.options = options
        self.pending: list[Operation] = []
        self.calls = 0  # under way
        self.is_touched = False  # has got something in this event
        self.deadline_us = NEVER  # for which a timer is set, while something is pending

    def cut(self) -> list[Operation]:
        """Take the next batch out of `pending`."""
        pending = self.pending
        batch = pending[:BATCH_ITEMS_MAX]
        if _size(batch) > BATCH_BYTES_MAX:
            batch = batch[: _fitting(batch)]
        if len(batch) == len(pending):
            self.pending = []
            self.deadline_us = NEVER
        else:
            self.pending = pending[len(batch) :]
        return batch


def _size(batch: list[Operation]) -> int:
    size = sum([len(operation.key) for operation in batch])
    if batch[0].options.kind is Kind.WRITE:
        size += sum([len(operation.value) for operation in batch if operation.value is not None])
        if batch[0].options.has_contexts:
            size += sum([len(operation.context) for operation in batch])
    return size


def _fitting(batch: list[Operation]) -> int:
    """How many of the first operations stay within BATCH_BYTES_MAX; at least one."""
    size = 0
    for index, operation in enumerate(batch):
        size += len(operation.key) + len(operation.value or b"") + len(operation.context)
        if size > BATCH_BYTES_MAX:
            return max(index, 1)
    return len(batch)


class Call:
    """One call under way. `group` is None for questions of the machine's own (the ring, probes) and admin requests.

    `has_leavers`: some of `operations` were given up meanwhile (expired, abandoned) and are not told again.
    """

    __slots__ = (
        "address",
        "deadline_us",
        "expires_us",
        "group",
        "has_leavers",
        "is_over",
        "node",
        "number",
        "operations",
        "started_us",
        "wake_us",
    )

    def __init__(
        self,
        number: int,
        node: NodeState | None,
        address: str,
        group: Group | None,
        operations: list[Operation],
        started_us: int,
        deadline_us: int,
    ) -> None:
        self.number = number
        self.node = node
        self.address = address
        self.group = group
        self.operations = operations
        self.started_us = started_us
        self.deadline_us = deadline_us  # the whole call is given up
        self.expires_us = min([operation.deadline_us for operation in operations]) if operations else deadline_us
        self.wake_us = NEVER  # for which a timer is set
        self.has_leavers = False
        self.is_over = False


def write_batch(
    options: Options,
    batch: list[Operation],
    prefix: bytes,
    timeout_ms: int,
    seen_hlc: int,
    ring_version: int,
    now_us: int,
    latest_us: int,
) -> WriteBatch:
    if options.given is not None:
        names = [options.given.name] * len(batch)
    else:
        names = [prefix + operation.number.to_bytes(8, "big") for operation in batch]
    request = WriteBatch(
        options.namespace,
        [operation.key for operation in batch],
        [operation.value for operation in batch],
        options.level,
        options.replicas,
        options.ttl_ms,
        options.replicated_to,
        timeout_ms,
        seen_hlc,
        names,
        [operation.context for operation in batch] if options.has_contexts else [],
        ring_version,
        options.is_update,
    )
    if latest_us - min([operation.deadline_us for operation in batch]) > UNEVEN_US:
        request.remaining_ms = [max(0, timeout_ms - (latest_us - operation.deadline_us) // MS) for operation in batch]
    if options.tried:
        first_us = min([operation.trouble.first_us for operation in batch if operation.trouble is not None])
        request.tried, request.first_try_ms = options.tried, max(0, now_us - first_us) // MS + 1
    return request


def read_batch(options: Options, batch: list[Operation], timeout_ms: int, seen_hlc: int, ring_version: int) -> ReadBatch:
    return ReadBatch(
        options.namespace,
        [operation.key for operation in batch],
        options.level,
        options.replicas,
        timeout_ms,
        seen_hlc,
        options.repair_before,
        ring_version,
    )
