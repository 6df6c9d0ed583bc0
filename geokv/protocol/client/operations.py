"""What a caller asked for, as the client machine sees it: an operation, and the options that it shares with others.

Operations with the same options to the same node may travel in one call. Options are interned (one object per
combination, see `OptionsTable`), so that finding an operation's batch is one dictionary lookup by identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from geokv.core.quorum import Consistency
from geokv.errors import GeokvError

OPTIONS_MAX: Final = 4096  # combinations remembered; a caller with more (a TTL per put) begins anew


class Kind(IntEnum):
    """What an operation does; each kind travels in calls of its own."""

    WRITE = 1
    READ = 2
    ADMIN = 3
    READY = 4  # resolves when a node of the datacenter in use has answered


class Given(NamedTuple):
    """An operation id that a caller gave: `asked` are the nodes that got it so far, since `first_us` at the earliest.

    `under_way`: the operations that have left under it, the first of them is the one that may.
    """

    name: bytes
    asked: set[str]
    first_us: int
    under_way: list[Operation]

    def is_taken_by(self, operation: Operation) -> bool:
        """Whether no other one is under way. Two at once could each learn that the other will not be applied."""
        self.under_way[:] = [other for other in self.under_way if not other.is_done and other is not operation]
        self.under_way.append(operation)
        if self.under_way[0] is operation:
            return True
        self.under_way.remove(operation)
        return False


@dataclass(slots=True, eq=False)
class Options:
    """Everything but key, value and deadline. The fields are those of WriteBatch and ReadBatch; compared by
    identity.
    """

    kind: Kind
    namespace: str = ""
    level: Consistency = Consistency.DEFAULT
    replicas: int = 0  # w of a write, r of a read; 0: as the level says
    ttl_ms: int = 0
    replicated_to: int = 0
    repair_before: bool = False
    has_contexts: bool = False
    timeout_us: int = 0  # set where the node itself waits for it (other datacenters), else 0: mixed in one batch
    is_update: bool = False  # the values are operations of the namespace's type
    given: Given | None = None  # the caller has named its operation itself: these options are for it alone
    tried: tuple[str, ...] = ()  # the nodes that were asked before, of a retry whose outcome is in doubt
    base: Options | None = None  # of a retry: the options that its caller gave


class OptionsTable:
    """Interns options, so that equal ones are one object."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Options] = {}

    def get(self, *fields: Any) -> Options:
        """The one `Options(*fields)`."""
        found = self._known.get(fields)
        if found is None:
            if len(self._known) >= OPTIONS_MAX:
                self._known.clear()
            found = self._known[fields] = Options(*fields)
        return found


class Trouble:
    """What went wrong with an operation so far; most never have one.

    `since_us`: first failure in the datacenter that it is tried in. `turn`: how many nodes answered that they cannot.
    `dc_index`: the datacenters before this one in the stated order it has given up. `failure`: the last error, where
    that proves that nothing was numbered. `tried`: the nodes that may have applied it, since `first_us`.
    """

    __slots__ = ("attempts", "dc_index", "failure", "first_us", "since_us", "tried", "turn")

    def __init__(self, now_us: int) -> None:
        self.attempts = 0
        self.turn = 0
        self.dc_index = 0
        self.since_us = now_us
        self.failure: GeokvError | None = None
        self.tried: tuple[str, ...] = ()
        self.first_us = now_us


class Operation:
    """One put, delete, get or admin request on its way. The host subclasses it and adds whom to tell.

    `value` is None for a delete and a get; an admin operation holds its AdminRequest there. `started_us` and
    `deadline_us` are of the host's monotonic clock. The machine owns the rest: `number` (with the client's random
    bytes the operation id, the same in every attempt), `trouble`, and `is_done` (told, or given up, before its call
    came back).
    """

    __slots__ = ("context", "deadline_us", "is_done", "key", "number", "options", "started_us", "trouble", "value")

    def __init__(
        self, options: Options, key: bytes, value: Any, started_us: int, deadline_us: int, context: bytes = b""
    ) -> None:
        self.options = options
        self.key = key
        self.value = value
        self.started_us = started_us
        self.deadline_us = deadline_us
        self.context = context
        self.number = 0
        self.trouble: Trouble | None = None
        self.is_done = False
