"""Merging sorted runs of pairs into one, newest first.

    runs[0]   b'          d'       (newest)
    runs[1]   b   c                          ->   b'+b   c   d'+d
    runs[2]           d

Of equal keys the newest cell comes first. Where it is whole it stands alone; where it is Partial the older ones are
merged into it until a whole one was met.

Invariants: keys come out strictly rising, each once. A cell that comes out Partial met no whole one. Inputs are read
as far as is asked for, one pair ahead at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import merge as heap_merge

from geokv.core.conflict import Merge
from geokv.core.partial import Partial, fold

Pair = tuple[bytes, bytes]


def merged(runs: Sequence[Iterable[Pair]], merge: Merge) -> Iterator[Pair]:
    """One sorted stream of all runs, the newest run first."""
    if len(runs) == 1:
        yield from runs[0]
        return
    stream = heap_merge(*[_ranked(rank, run) for rank, run in enumerate(runs)])
    first = next(stream, None)
    if first is None:
        return
    last_key, _, cell = first
    for key, _, older in stream:
        if key != last_key:
            yield last_key, cell
            last_key, cell = key, older
        elif type(cell) is Partial:
            cell = fold(merge, cell, older)
    yield last_key, cell


def whole(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The same pairs where nothing older exists: a Partial is all there is, hence whole."""
    for key, cell in pairs:
        yield key, bytes(cell) if type(cell) is Partial else cell


def _ranked(rank: int, run: Iterable[Pair]) -> Iterator[tuple[bytes, int, bytes]]:
    for key, cell in run:
        yield key, rank, cell


def prefix_end(prefix: bytes) -> bytes | None:
    """The least key above all keys with this prefix; None where there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None
