"""What callers get back: the result of a put, delete or get, and the list of results of a call with many items.

The objects are made once per operation, so they are slim: what a whole call has in common stands in one `CallFacts`,
and `achieved` is put together when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from geokv.core.cells.wire import decode_value
from geokv.core.quorum import Consistency
from geokv.errors import Conflicting, GeokvError
from geokv.protocol.requests import Outcome

_MICRO = 1e-6


class Achieved(NamedTuple):
    """What was really reached: `level` is the highest level that `replicas` copies in the datacenter amount to.

    `dcs`: datacenters that hold it, the answering one included (of a read: the one that answered).
    """

    level: Consistency
    replicas: int
    dcs: int


class CallFacts:
    """What the operations of one call have in common."""

    __slots__ = ("coordinator", "dc", "level", "replicas")

    def __init__(self, coordinator: str, dc: str, replicas: int, level: Consistency) -> None:
        self.coordinator = coordinator
        self.dc = dc
        self.replicas = replicas  # copies that the datacenter keeps
        self.level = level  # that was asked for


def _level(replicas: int, of: int) -> Consistency:
    if replicas >= of > 1:
        return Consistency.ALL
    if replicas >= of // 2 + 1:
        return Consistency.QUORUM if of > 1 else Consistency.ALL
    return Consistency.TWO if replicas == 2 else Consistency.ONE if replicas == 1 else Consistency.DEFAULT


class PutResult:
    """A put or delete that was done. `outcome` is Outcome.APPLIED, SUPERSEDED (a newer write won) or PENDING (written
    here; not yet in as many datacenters as asked). `version` orders the writes of a key; `elapsed` is in seconds, with
    all retries.
    """

    __slots__ = ("_dcs", "_elapsed_us", "_facts", "_outcome", "_replicas", "version")

    error: None = None

    def __init__(self, outcome: int, version: int, replicas: int, dcs: int, facts: CallFacts, elapsed_us: int) -> None:
        self._outcome = outcome
        self.version = version
        self._replicas = replicas
        self._dcs = dcs
        self._facts = facts
        self._elapsed_us = elapsed_us

    @property
    def outcome(self) -> Outcome:
        """APPLIED, SUPERSEDED (a newer write won) or PENDING (written here, not yet in as many datacenters as asked)."""
        return Outcome(self._outcome)

    @property
    def achieved(self) -> Achieved:
        """What was really reached: the level, the copies in this datacenter, and how many datacenters have it."""
        facts = self._facts
        if facts.level is Consistency.EACH_QUORUM and self._outcome != Outcome.PENDING:
            return Achieved(Consistency.EACH_QUORUM, self._replicas, self._dcs)
        return Achieved(_level(self._replicas, facts.replicas), self._replicas, self._dcs)

    @property
    def context(self) -> bytes:
        """For the next put of the key: it is ordered after this one."""
        return self.version.to_bytes(8, "big")

    @property
    def coordinator(self) -> str:
        """The name of the node that answered."""
        return self._facts.coordinator

    @property
    def dc(self) -> str:
        """The datacenter that answered."""
        return self._facts.dc

    @property
    def elapsed(self) -> float:
        """Seconds from the call to its answer, with all retries."""
        return self._elapsed_us * _MICRO

    def __repr__(self) -> str:
        return (
            f"PutResult(outcome={self.outcome.name}, version={self.version}, achieved={self.achieved},"
            f" coordinator={self.coordinator!r}, elapsed={self.elapsed:.6f})"
        )


class CellPutResult(PutResult):
    """A put or delete in a namespace whose policy is not `lww`."""

    __slots__ = ("_context",)

    def __init__(
        self, outcome: int, version: int, replicas: int, dcs: int, facts: CallFacts, elapsed_us: int, context: bytes
    ) -> None:
        super().__init__(outcome, version, replicas, dcs, facts, elapsed_us)
        self._context = context

    @property
    def context(self) -> bytes:
        """For the next put of the key: it replaces what this one saw, and what this one wrote."""
        return self._context


class GetResult:
    """What a get found. `value` is None where the key is absent; `found` tells absent from empty."""

    __slots__ = ("_elapsed_us", "_facts", "_replicas", "found", "value", "version")

    error: None = None
    policy: str = "lww"

    def __init__(self, value: Any, found: bool, version: int, replicas: int, facts: CallFacts, elapsed_us: int) -> None:
        self.value = value
        self.found = found
        self.version = version
        self._replicas = replicas
        self._facts = facts
        self._elapsed_us = elapsed_us

    @property
    def context(self) -> bytes:
        """For the next put of the key: it is ordered after what was read here. Empty where nothing was ever written."""
        return self.version.to_bytes(8, "big") if self.version else b""

    @property
    def siblings(self) -> list[Any]:
        """All concurrent values: one, or none, but for the policies that keep several."""
        return [self.value] if self.found else []

    @property
    def achieved(self) -> Achieved:
        """What was really asked: the level that the copies which answered amount to."""
        return Achieved(_level(self._replicas, self._facts.replicas), self._replicas, 1)

    @property
    def coordinator(self) -> str:
        """The name of the node that answered."""
        return self._facts.coordinator

    @property
    def dc(self) -> str:
        """The datacenter that answered."""
        return self._facts.dc

    @property
    def elapsed(self) -> float:
        """Seconds from the call to its answer, with all retries."""
        return self._elapsed_us * _MICRO

    def __repr__(self) -> str:
        size = f"{len(self.value)} bytes" if isinstance(self.value, bytes) else type(self.value).__name__
        return (
            f"GetResult(found={self.found}, value={size if self.found else None}, version={self.version},"
            f" achieved={self.achieved}, coordinator={self.coordinator!r}, elapsed={self.elapsed:.6f})"
        )


Resolver = Callable[[list[Any]], Any]
_SEVERAL = frozenset({"siblings", "register_mv"})
_STORED = _SEVERAL | {"register_lww"}  # policies whose values are what was put


class CellResult(GetResult):
    """What a get found in a namespace whose `policy` is not `lww`.

    `value` is what the policy shows: a number, a set, a dictionary. Under `siblings` and `register_mv` it is the one value, or
    what the handle's `resolver` makes of several; without a resolver several raise Conflicting. `siblings` has them all.
    """

    __slots__ = ("_context", "_resolver", "_shown", "policy")

    def __init__(
        self, policy: str, packed: bytes | None, context: bytes, replicas: int, facts: CallFacts, elapsed_us: int
    ) -> None:
        """Raises WireError for a value that is none of this policy."""
        self.policy = policy
        self.found = packed is not None
        self.version = 0
        self._shown: Any = decode_value(policy, packed) if packed is not None else None
        self._context = context
        self._replicas = replicas
        self._facts = facts
        self._elapsed_us = elapsed_us
        self._resolver: Resolver | None = None

    def through(self, decode: Callable[[bytes], Any] | None, resolver: Resolver | None) -> None:
        """Read the values with a codec, and make one of several with a resolver."""
        self._resolver = resolver
        if decode is not None and self.found and self.policy in _STORED:
            self._shown = [decode(one) for one in self._shown] if self.policy in _SEVERAL else decode(self._shown)

    @property
    def value(self) -> Any:
        if self.policy not in _SEVERAL or not self.found:
            return self._shown
        if len(self._shown) == 1:
            return self._shown[0]
        if self._resolver is not None:
            return self._resolver(list(self._shown))
        raise Conflicting(
            f"the key has {len(self._shown)} concurrent values: read them in .siblings, and put one back with .context;"
            " or give the namespace handle a resolver",
            siblings=tuple(self._shown),
        )

    @property
    def siblings(self) -> list[Any]:
        """All concurrent values, in one order at all replicas."""
        if not self.found:
            return []
        return list(self._shown) if self.policy in _SEVERAL else [self._shown]

    @property
    def context(self) -> bytes:
        """For the next put of the key: it replaces what was read here. Empty where nothing was ever written."""
        return self._context

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(policy={self.policy!r}, found={self.found}, siblings={len(self.siblings)},"
            f" achieved={self.achieved}, coordinator={self.coordinator!r}, elapsed={self.elapsed:.6f})"
        )


class FailedItem:
    """An item of a call with many that failed: `error` says why. It has no other fields."""

    __slots__ = ("error",)

    def __init__(self, error: GeokvError) -> None:
        self.error = error

    def __repr__(self) -> str:
        return f"FailedItem({self.error!r})"


class Results(Sequence[Any]):
    """One entry per item, in the order given: a PutResult or GetResult, or a FailedItem. `results[i].error` is None or
    why.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[PutResult | GetResult | FailedItem]) -> None:
        self._items = list(items)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    @property
    def errors(self) -> dict[int, GeokvError]:
        """The error of each item that failed, by its index."""
        return {index: item.error for index, item in enumerate(self._items) if item.error is not None}

    def raise_first(self) -> Results:
        """Raise the first item's error, if any failed; otherwise the results themselves."""
        for item in self._items:
            if item.error is not None:
                raise item.error
        return self

    def __repr__(self) -> str:
        return f"Results({len(self._items)} items, {len(self.errors)} failed)"
