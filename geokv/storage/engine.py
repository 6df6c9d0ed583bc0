"""The engine: the cells of every namespace, by key. Here the one that holds them all in memory.

A put is `table[key] = cell` on a plain dictionary and nothing else. The order of keys is made when someone
scans, from the keys that came since the last scan: a dictionary keeps the order of insertion, so they are the
ones at its end.

Invariants: keys enter a table by assignment and leave it through `remove` only. What `freeze` returned never
changes. Not here: durability (the log and the checkpoint), and how two cells merge (`core.conflict`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Protocol

from sortedcontainers import SortedList

_SCAN_STEP: Final = 256

Table = dict[bytes, bytes]


class Engine(Protocol):
    """What a node needs of an engine."""

    def create(self, namespace: int) -> Table:
        """The table of a namespace, made where it is not there yet."""

    def drop(self, namespace: int) -> None:
        """Forget a namespace and its cells. No error where it is not there."""

    def table(self, namespace: int) -> Table:
        """The table itself, for the hot path: read it, and assign to it. KeyError where there is none."""

    def get(self, namespace: int, key: bytes) -> bytes | None: ...

    def remove(self, namespace: int, key: bytes) -> None:
        """Take a key away (collection of a tombstone). No error where it is not there."""

    def scan(self, namespace: int, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop, in key order; what is put meanwhile may be seen or not."""

    def freeze(self) -> dict[int, Table]:
        """All tables as they are now, for a checkpoint."""

    def namespaces(self) -> Iterable[int]: ...

    def __len__(self) -> int:
        """The number of pairs."""

    def total_bytes(self) -> int:
        """Bytes of keys and cells. Walks everything: for status, not for a write."""


class MemoryEngine:
    """See the module."""

    def __init__(self) -> None:
        self._tables: dict[int, Table] = {}
        self._orders: dict[int, SortedList] = {}

    def create(self, namespace: int) -> Table:
        return self._tables.setdefault(namespace, {})

    def drop(self, namespace: int) -> None:
        self._tables.pop(namespace, None)
        self._orders.pop(namespace, None)

    def table(self, namespace: int) -> Table:
        return self._tables[namespace]

    def get(self, namespace: int, key: bytes) -> bytes | None:
        table = self._tables.get(namespace)
        return None if table is None else table.get(key)

    def remove(self, namespace: int, key: bytes) -> None:
        table = self._tables.get(namespace, {})
        if table.pop(key, None) is not None and (order := self._orders.get(namespace)) is not None:
            order.discard(key)

    def scan(self, namespace: int, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        # In steps, each looked up anew, so that puts and other scans may go on in between.
        is_start_wanted = True
        while namespace in self._tables:
            table, order = self._tables[namespace], self._order(namespace)
            step = list(islice(order.irange(start, stop, (is_start_wanted, False)), _SCAN_STEP))
            for key in step:
                if (cell := table.get(key)) is not None:
                    yield key, cell
            if len(step) < _SCAN_STEP:
                return
            start, is_start_wanted = step[-1], False

    def _order(self, namespace: int) -> SortedList:
        """The keys of a namespace in order, brought up to date with what was put since the last time."""
        table = self._tables[namespace]
        order = self._orders.get(namespace)
        if order is None:
            order = self._orders[namespace] = SortedList()
        order.update(list(islice(reversed(table), len(table) - len(order))))
        return order

    def freeze(self) -> dict[int, Table]:
        return {namespace: table.copy() for namespace, table in self._tables.items()}

    def namespaces(self) -> Iterable[int]:
        return tuple(self._tables)

    def __len__(self) -> int:
        return sum(map(len, self._tables.values()))

    def total_bytes(self) -> int:
        return sum(sum(map(len, table)) + sum(map(len, table.values())) for table in self._tables.values())
