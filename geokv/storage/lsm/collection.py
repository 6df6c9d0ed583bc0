"""Collection: when a compaction may leave out a tombstone or an expired cell.

All of these must hold, and each has its own place:

    every replica has it, nothing older is on its way    `covers`: its dot is within what is stable of its stream
    every clock has passed its version and deadline      `clock_ms`: the slowest owner's
    the inputs are all that this replica has of the key  `compaction`: no other table may hold it (their filters say)
    the memtable was flushed since stability was seen    `since`: the engine ignores the rule before that

The last two are the same thought: an older put may have arrived after the delete, so the delete can lie deeper than
it. Left out too early, it would bring the older put back.

Invariants: without a rule nothing is ever left out. Not here: what is stable, and the count of collections that the
node moves before (the conflict layer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from geokv.core.cell import LwwCell, decode_lww
from geokv.core.hlc import hlc_ms
from geokv.core.ring import partition_of
from geokv.errors import RecordError
from geokv.storage.position import Position


@dataclass(frozen=True, slots=True)
class CollectionRule:
    """What of an `lww` namespace may go. `stable`: (origin, partition) -> number up to which its stream is stable."""

    partitions: int
    stable: Mapping[tuple[bytes, int], int]
    clock_ms: int
    since: Position

    def covers(self, key: bytes, cell: bytes) -> bool:
        """Whether the cell is dead, for everyone, for good."""
        try:
            decoded = decode_lww(cell)
        except RecordError:
            return False  # whatever it is, it is kept
        if not self._is_dead(decoded) or hlc_ms(decoded.version) >= self.clock_ms:
            return False
        return decoded.number <= self.stable.get((decoded.origin, partition_of(key, self.partitions)), 0)

    def _is_dead(self, cell: LwwCell) -> bool:
        return cell.is_tombstone or 0 < cell.deadline_ms < self.clock_ms
