"""The memtable: what came since the last flush, a dictionary with an order made when someone scans.

The dictionary holds keys and encoded cells, bytes only, which the garbage collector does not walk. A put is an
assignment and nothing else; the order takes in what came since it was last asked for, from the dictionary's end.

When one is no longer needed it is emptied in steps: freeing a million objects at once would hold the interpreter lock
for some 70 ms, and with it the event loop.

Invariants: keys come by assignment and never leave. A frozen one does not change while anyone may read it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice

from sortedcontainers import SortedList

from geokv.core.hlc import NO_HLC
from geokv.storage.position import Position


class Memtable:
    """`cells` is for the hot path. `until`: where the log stood when it was frozen.

    `since`: an HLC that nothing in it which waits to be collected is older than; 0 where that is not known.
    """

    __slots__ = ("_order", "cells", "since", "until")

    def __init__(self) -> None:
        self.cells: dict[bytes, bytes] = {}
        self.since = NO_HLC
        self.until = Position()
        self._order = SortedList()

    def pairs(self, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop, in order. To be used up before anything is put."""
        new = len(self.cells) - len(self._order)
        if new:
            self._order.update(list(islice(reversed(self.cells), new)))
        cells = self.cells
        for key in self._order.irange(start, stop, (True, False)):
            yield key, cells[key]


def empty(memtables: list[Memtable]) -> None:
    """Free what these hold, step by step, where nobody else has them any more; else the last one who reads frees them."""
    for memtable in memtables:
        if sys.getrefcount(memtable) <= _REFERENCES and sys.getrefcount(memtable.cells) <= _CELLS_REFERENCES:
            cells = memtable.cells
            while cells:
                cells.popitem()


def _references() -> tuple[int, int]:
    """What `empty` counts where it alone holds a memtable."""
    for memtable in [Memtable()]:
        return sys.getrefcount(memtable), sys.getrefcount(memtable.cells)
    raise AssertionError


_REFERENCES, _CELLS_REFERENCES = _references()
