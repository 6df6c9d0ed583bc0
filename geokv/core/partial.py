"""A partial cell: one that was not yet merged with what older places hold of its key.

A get goes from new to old: memtable, frozen memtables, tables. Where writers merge before they put, the first cell
that it meets is all there is. A log holds deltas, though, and a flush that reads nothing but the log cannot merge
them with older tables. So such a cell says of itself that the search goes on:

    type is bytes      whole: what is older adds nothing
    type is Partial    to be merged with the next older cell of the key, unless there is none

A Partial is its own bytes, so a merge takes it as it is.

Invariants: what leaves the engine to its callers is plain bytes. Merging whole over anything changes nothing, which
holds because every merge is idempotent and the whole one already has the older ones in it.
"""

from __future__ import annotations

from geokv.core.conflict import Merge


class Partial(bytes):
    """See the module."""

    __slots__ = ()


def fold(merge: Merge, newer: bytes, older: bytes) -> bytes:
    """The cell that stands for both. Partial only where both are."""
    if type(newer) is not Partial:
        return newer
    merged = bytes(merge(newer, older))
    return Partial(merged) if type(older) is Partial else merged
