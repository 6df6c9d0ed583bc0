"""Merging sorted runs, newest first, stretch by stretch.

    runs[0]   b'          d'       (newest)
    runs[1]   b   c                          ->   b'+b   c   d'+d
    runs[2]           d

A stretch is some keys in order, and their cells. Of all runs what stands up to the least of the last keys at hand is merged
at once, as dictionaries: most of it happens inside the interpreter's own loops, so a pair costs a fraction of what it would
if each went through a heap.

Of equal keys the newest cell comes first. Where it is whole it stands alone; where it is Partial the older ones are
merged into it until a whole one was met.

Invariants: keys come out strictly rising, each once. A cell that comes out Partial met no whole one. Inputs are read
as far as is asked for, one stretch ahead at most.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from geokv.core.conflict import Merge
from geokv.core.partial import Partial, fold

Stretch = tuple[list[bytes], list[bytes]]
"""Keys, strictly rising, and their cells; never empty."""
STRETCH_BYTES: Final = 512 * 1024  # of cells: with so many a stretch ends, whoever makes it


def merged(runs: Sequence[Iterable[Stretch]], merge: Merge) -> Iterator[Stretch]:
    """One sorted stream of all runs, the newest run first."""
    live = [_Run(iter(run)) for run in runs]
    while live := [run for run in live if run.has_more()]:
        if len(live) == 1:
            yield from live[0].all()
            return
        bound = min(run.keys[-1] for run in live)
        newest: dict[bytes, bytes] = {}
        for run in live:
            older = run.take(bound)
            for key in newest.keys() & older.keys():
                newest[key] = fold(merge, newest[key], older[key])
            newest = older | newest
        keys = sorted(newest)
        yield keys, [newest[key] for key in keys]


class _Run:
    """A run, and the stretch of it that is at hand, from `_at` on."""

    __slots__ = ("_at", "_cells", "_rest", "keys")

    def __init__(self, rest: Iterator[Stretch]) -> None:
        self._rest = rest
        self.keys: list[bytes] = []
        self._cells: list[bytes] = []
        self._at = 0

    def has_more(self) -> bool:
        if self._at == len(self.keys):
            self.keys, self._cells = next(self._rest, ([], []))
            self._at = 0
        return bool(self.keys)

    def take(self, bound: bytes) -> dict[bytes, bytes]:
        """What is at hand up to that key."""
        begin, self._at = self._at, bisect_right(self.keys, bound, self._at)
        return dict(zip(self.keys[begin : self._at], self._cells[begin : self._at], strict=True))

    def all(self) -> Iterator[Stretch]:
        yield self.keys[self._at :], self._cells[self._at :]
        yield from self._rest


def whole(stretches: Iterable[Stretch]) -> Iterator[Stretch]:
    """The same pairs where nothing older exists: a Partial is all there is, hence whole."""
    for keys, cells in stretches:
        yield keys, [bytes(cell) if type(cell) is Partial else cell for cell in cells]


def in_stretches(pairs: Iterable[tuple[bytes, bytes]], most: int = 256) -> Iterator[Stretch]:
    """Pairs in the order of their keys as stretches of at most so many, or of STRETCH_BYTES in cells."""
    keys, cells, size = list[bytes](), list[bytes](), 0
    for key, cell in pairs:
        keys.append(key)
        cells.append(cell)
        size += len(cell)
        if len(keys) == most or size >= STRETCH_BYTES:
            yield keys, cells
            keys, cells, size = [], [], 0
    if keys:
        yield keys, cells


def pairs_of(stretches: Iterable[Stretch]) -> Iterator[tuple[bytes, bytes]]:
    """Inverse of `in_stretches`."""
    for keys, cells in stretches:
        yield from zip(keys, cells, strict=True)


def prefix_end(prefix: bytes) -> bytes | None:
    """The least key above all keys with this prefix; None where there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
