"""The engine: the cells of every namespace, and what of them is on the disk.

A node puts cells into it when they are synced in the log, so the log is its journal: the engine keeps none of its own.
What it has made durable ends at a position in the log, where recovery begins.

    begin_flush, next_compaction   plan a job: a value, for whoever runs it
    install                        lets what a job made stand

Invariants: what a job made is live only once `install` has returned; after a failed one all is as it was.
Not here: how two cells merge (`core.conflict`), when to flush (`node.upkeep`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from geokv.core.hlc import hlc_ms
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.position import Position


@dataclass(frozen=True, slots=True)
class Held:
    """What a namespace holds that waits to be collected.

    `tombstones` and `deadlines` (cells that expire, or have) in tables; `in_memory`: of both in memtables, an estimate where
    these are large. `oldest` and `oldest_in_memory`: HLCs that no tombstone there is older than, 0 where there is none;
    `is_dated`: whether they are known of all tombstones.
    """

    tombstones: int = 0
    deadlines: int = 0
    first_deadline_ms: int = 0
    in_memory: int = 0
    is_estimate: bool = False
    oldest: int = 0
    oldest_in_memory: int = 0
    first_deadline_in_memory_ms: int = 0
    is_dated: bool = True

    def oldest_ms(self, clock_ms: int) -> int | None:
        """Nothing that waits does so for longer: of tombstones since they were made, of expired cells since their deadline.

        None where nothing waits, or it is not known of all.
        """
        if not (self.is_dated and self.count(clock_ms)):
            return None
        made = [hlc_ms(hlc) for hlc in (self.oldest, self.oldest_in_memory) if hlc]
        ended = [ms for ms in (self.first_deadline_ms, self.first_deadline_in_memory_ms) if 0 < ms < clock_ms]
        return min(made + ended, default=None)

    def count(self, clock_ms: int) -> int:
        """How many may be collected once they are stable, about."""
        has_expired = 0 < self.first_deadline_ms < clock_ms
        return self.tombstones + self.in_memory + (self.deadlines if has_expired else 0)


class Engine(Protocol):
    """What a node needs of an engine."""

    @property
    def position(self) -> Position:
        """Where in the log recovery begins."""

    @property
    def meta(self) -> bytes:
        """The node's own state at `position`; empty where nothing was ever flushed."""

    def define(self, namespace: int, policy: str) -> None:
        """The policy of a namespace was changed: from now on its cells merge as this one says."""

    def check_holds(self, engine: str) -> None:
        """Raises InvalidRequest, with what to do, where a namespace of that engine cannot be kept here."""

    def create(self, namespace: int, policy: str, engine: str) -> Any:
        """The cells of a namespace (`protocol.table.Cells`), made where they are not there yet. Raises as `check_holds`."""

    def restored(self) -> None:
        """All namespaces that `meta` knows are created. Raises StorageError where cells of one are lost."""

    def set_dictionary(self, namespace: int, is_on: bool) -> None:
        """Whether its tables are to be written with a trained dictionary, from the next job on. For others: nothing."""

    def drop(self, namespace: int) -> None:
        """Forget a namespace and its cells. No error where it is not there."""

    def load(self, pairs: Iterable[tuple[int, Iterable[tuple[bytes, bytes]]]], position: Position, meta: bytes) -> None:
        """Begin with these cells, in key order, durably. For an engine that holds nothing."""

    def begin_flush(self, end: Position, meta: bytes) -> Any:
        """A job that makes all up to `end` durable in tables."""

    def flush_again(self, failed: Any) -> Any:
        """The same job once more."""

    def next_compaction(self, rules: Mapping[int, CollectionRule] | None = None) -> Any | None:
        """The most overdue compaction; `rules`: what may be collected, by namespace. None where none is due."""

    def held(self, namespace: int) -> Held:
        """What waits to be collected."""

    def is_worth_shedding(self, namespace: int, clock_ms: int) -> bool:
        """Whether a compaction would be made for the sake of what may be collected, were all of it stable."""

    @property
    def collected(self) -> Mapping[int, int]:
        """By namespace: about how many tombstones and expired cells were collected since the engine was opened."""

    @property
    def wants_compaction(self) -> bool:
        """Whether it should be asked for one though none was due the last time."""

    def damaged(self) -> tuple[Any, ...]:
        """Live tables that were found damaged, to be set aside (`protocol.quarantine.Damaged`)."""

    def quarantined(self) -> tuple[Any, ...]:
        """The tables that were set aside: kept, and neither read nor merged."""

    def begin_quarantine(self, tables: Iterable[Any]) -> Any:
        """A job that sets damaged tables aside."""

    def full_compaction(self, namespace: int) -> Any | None:
        """All tables of a namespace into one run; None where it has none, or there is no such namespace."""

    def debt_bytes(self) -> int:
        """What compaction is behind by."""

    def figures(self) -> dict[str, int]:
        """What an operator wants to know, by name."""
