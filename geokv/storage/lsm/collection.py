"""Collection: when a compaction may leave out a tombstone or an expired cell.

All of these must hold, and each has its own place:

    every replica has it, nothing older is on its way    `is_stable`: its dots are within what is stable of their streams
    every clock has passed its version and deadline      `clock_ms`: the slowest owner's (cells of dots have neither)
    the inputs are all that this replica has of the key  `compaction`: no other table may hold it (their filters say)
    the memtable was flushed since stability was seen    `since`: the engine ignores the rule before that

The last two are the same thought: an older put may have arrived after the delete, so the delete can lie deeper than
it. Left out too early, it would bring the older put back.

Invariants: without a rule nothing is ever left out. Not here: what is stable (`protocol.stability`), the count of collections
that moves before (`node.collector`), what makes a cell of a policy dead (`core.conflict`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from geokv.core.cells.context import Dot
from geokv.core.conflict import IsStable, Policy
from geokv.core.ring import partition_of
from geokv.errors import RecordError
from geokv.storage.position import Position


@dataclass(frozen=True, slots=True)
class CollectionRule:
    """What of a namespace may go. `stable`: (origin, partition) -> number up to which its stream is stable; `closed`: origin ->
    partitions in which all that it ever wrote is."""

    partitions: int
    stable: Mapping[tuple[bytes, int], int]
    clock_ms: int
    since: Position
    closed: Mapping[bytes, frozenset[int]] = field(default_factory=dict)

    def covers(self, policy: Policy, key: bytes, cell: bytes) -> bool:
        """Whether the cell is dead, for everyone, for good."""
        partition = partition_of(key, self.partitions)
        try:
            return policy.is_over(cell, self.stable_in(partition), self.clock_ms)
        except RecordError:
            return False  # whatever it is, it is kept

    def stable_in(self, partition: int) -> IsStable:
        """Of dots in that partition, whether they are stable."""
        return lambda dot: self.is_stable(dot, partition)

    def is_stable(self, dot: Dot, partition: int) -> bool:
        if dot.number <= self.stable.get((dot.origin, partition), 0):
            return True
        return partition in self.closed.get(dot.origin, ())
