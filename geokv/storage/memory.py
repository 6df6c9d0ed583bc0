"""The engine `memory`, for caches: the cells of one namespace in memory, bounded, the least recently used go first.

    write    logged, replicated and shipped as any other, and put here
    full     what was not used for longest is evicted, and counted
    restart  nothing of it is there any more

Invariants: never above `bytes_max`, as far as the sizes counted here are what Python takes (they are near it). What was
evicted is absent here, whatever other replicas hold. Not here: everything durable.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

PAIR_OVERHEAD_BYTES: Final = 200  # two bytes objects and their place in an ordered dictionary
EVICTED_SHOWN_MAX: Final = 8


class MemoryCells:
    """See the module. One thread only."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self.evicted = self.evicted_bytes = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._evicted_last: deque[bytes] = deque(maxlen=EVICTED_SHOWN_MAX)

    def get(self, key: bytes, default: bytes | None = None) -> bytes | None:
        cell = self._entries.get(key)
        if cell is None:
            return default
        self._entries.move_to_end(key)
        return cell

    def look(self, keys: list[bytes]) -> tuple[list[bytes | None], list[bytes]]:
        return [self.get(key) for key in keys], []

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """None: what is not in memory is nowhere."""
        return []

    def load(self, keys: Iterable[bytes]) -> None:
        """There is nothing to load from."""

    def peek(self, key: bytes) -> bytes | None:
        return self._entries.get(key)

    def may_hold(self, key: bytes) -> bool:
        """Whether the disk may hold the key: there is none."""
        return False

    @property
    def ceiling(self) -> bytes:
        return b""

    def update(self, pairs: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]) -> None:
        entries = self._entries
        for key, cell in pairs.items() if isinstance(pairs, Mapping) else pairs:
            before = entries.pop(key, None)
            if before is not None:
                self.nbytes -= _size(key, before)
            entries[key] = cell
            self.nbytes += _size(key, cell)
        self._evict()

    def came(self, since: int) -> None:
        """Nothing is collected here, so nobody asks how old it is."""

    def merge_in(self, key: bytes, cell: bytes) -> None:
        """Recovery found it in the log; nothing of this engine survives a restart."""

    def resize(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._evict()

    def _evict(self) -> None:
        while self.nbytes > self.bytes_max:
            key, cell = self._entries.popitem(last=False)
            size = _size(key, cell)
            self.nbytes -= size
            self.evicted += 1
            self.evicted_bytes += size
            self._evicted_last.append(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._entries):
            cell = self._entries.get(key)
            if cell is not None:
                yield key, cell

    def keys(self) -> Iterator[bytes]:
        return (key for key, _ in self.items())

    def __len__(self) -> int:
        return len(self._entries)

    def figures(self) -> dict[str, Any]:
        """What it holds and what it has evicted since the start."""
        return {
            "bytes": self.nbytes,
            "evicted": self.evicted,
            "evicted_bytes": self.evicted_bytes,
            "evicted_last": [key.decode("utf-8", "backslashreplace") for key in self._evicted_last],
        }


def _size(key: bytes, cell: bytes) -> int:
    return len(key) + len(cell) + PAIR_OVERHEAD_BYTES
