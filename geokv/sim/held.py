"""What the engines of a world hold, as the checkers compare it: without the partitions whose claim a node took back."""

from __future__ import annotations

from collections.abc import Mapping

from geokv.core.ring import partition_of


class Held(dict[bytes, bytes]):
    """A node's cells. `answers(key)`: whether it claims to have what there is of that key."""

    def __init__(self, partitions: int, unserved: Mapping[int, frozenset[int]], namespace_of: Mapping[bytes, int]) -> None:
        super().__init__()
        self._partitions = partitions
        self._unserved = unserved
        self._namespace_of = namespace_of

    def answers(self, key: bytes) -> bool:
        lost = self._unserved.get(self._namespace_of.get(key, 0))
        return not lost or partition_of(key, self._partitions) not in lost
