"""Caches: least recently used goes first, bounded in bytes.

The block cache of a node holds blocks of tables by number and place, raw or
decoded. A namespace's row cache holds the single cells that cost a read, merged over all tables, so that a hot key
among cold ones needs no whole block to stay.

Invariants: never above `bytes_max`, as far as the sizes counted here are what Python really takes (they are near
it). Losing an entry costs a read, never an answer. Any thread may call anything.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

PAIR_OVERHEAD_BYTES: Final = 130  # two bytes objects and their place in a dictionary
ENTRY_OVERHEAD_BYTES: Final = 150

Block = bytes | dict[bytes, bytes]


class BlockCache:
    """Blocks of tables."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self.misses = 0
        self._entries: OrderedDict[int, Block] = OrderedDict()
        self._sizes: dict[int, int] = {}
        self._lock = threading.Lock()

    def get(self, block_id: int) -> Block | None:
        block = self._entries.get(block_id)
        if block is None:
            self.misses += 1
            return None
        try:
            self._entries.move_to_end(block_id)
        except KeyError:  # another thread has just evicted it
            pass
        return block

    def put(self, block_id: int, block: Block) -> None:
        """Add, or replace (a raw block by its decoded form)."""
        size = _block_bytes(block)
        if size > self.bytes_max:
            return
        with self._lock:
            self.bytes += size - self._sizes.get(block_id, 0)
            self._sizes[block_id] = size
            self._entries[block_id] = block
            while self.bytes > self.bytes_max:
                oldest, _ = self._entries.popitem(last=False)
                self.bytes -= self._sizes.pop(oldest)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._entries

    def __len__(self) -> int:
        return len(self._entries)


def _block_bytes(block: Block) -> int:
    if type(block) is dict:
        return sum(map(len, block)) + sum(map(len, block.values())) + PAIR_OVERHEAD_BYTES * len(block) + ENTRY_OVERHEAD_BYTES
    return len(block) + ENTRY_OVERHEAD_BYTES


class RowCache:
    """Cells of one namespace, as its tables have them: each merged over all tables of one moment.

    What was read from tables that have been replaced since must not come in. So a reader notes the `generation`
    before it looks at the tables; it is odd while they are being replaced, and another one afterwards.
    """

    def __init__(self) -> None:
        self.bytes_max = 0  # until `resize`
        self.bytes = 0
        self.generation = 0
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        cell = self._entries.get(key)
        if cell is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:  # another thread has just evicted it
                pass
        return cell

    def put(self, key: bytes, cell: bytes, generation: int) -> None:
        size = len(key) + len(cell) + PAIR_OVERHEAD_BYTES
        if size > self.bytes_max:
            return
        with self._lock:
            if generation != self.generation or generation % 2:
                return
            self._take(key)
            self._entries[key] = cell
            self.bytes += size
            self._shrink()

    def resize(self, bytes_max: int) -> None:
        with self._lock:
            self.bytes_max = bytes_max
            self._shrink()

    def close(self, flushed: Iterable[dict[bytes, bytes]] | None) -> None:
        """Take nothing in until `open`; forget the keys that were flushed, all keys where it is None."""
        with self._lock:
            self.generation += 1
            if flushed is None:
                self._entries.clear()
                self.bytes = 0
                return
        for cells in flushed:
            for key in [key for key in tuple(self._entries) if key in cells]:
                with self._lock:
                    self._take(key)

    def open(self) -> None:
        """The new tables stand."""
        with self._lock:
            self.generation += 1

    def _shrink(self) -> None:
        while self.bytes > self.bytes_max:
            oldest, cell = self._entries.popitem(last=False)
            self.bytes -= len(oldest) + len(cell) + PAIR_OVERHEAD_BYTES

    def _take(self, key: bytes) -> None:
        cell = self._entries.pop(key, None)
        if cell is not None:
            self.bytes -= len(key) + len(cell) + PAIR_OVERHEAD_BYTES

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)
