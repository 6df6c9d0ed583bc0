"""What the engine must know of the cells of a policy, besides how two of them merge.

Worker processes are told a policy by its name; here the name becomes functions. Cells of dots carry no version: theirs is 0.
How old those are that wait is told by who knows their records (`table_writer.Since`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from struct import Struct
from struct import error as struct_error
from typing import Final, NamedTuple

from geokv.core.cell import TAG, TOMBSTONE, lww_tail, lww_version
from geokv.core.conflict import Merge, Policy, stored_policy
from geokv.errors import RecordError

_U64 = Struct(">Q")


class Measured(NamedTuple):
    """Of some cells: their versions, how many wait to be collected (`oldest`: the least version of these), how many will."""

    version_min: int = 0
    version_max: int = 0
    tombstones: int = 0
    oldest: int = 0
    deadlines: int = 0
    first_deadline_ms: int = 0


@dataclass(frozen=True, slots=True)
class Traits:
    """`measure`: of one cell or more; `is_quick` where that looks at their heads only, and decodes none. `waits`: for cells of
    dots, whether one waits to be collected; None where versions tell.

    `ceiling`: bytes such that a cell above them stays as it is when it is merged with any of at most that version.
    """

    merge: Merge
    measure: Callable[[Sequence[bytes]], Measured]
    ceiling: Callable[[int], bytes]
    is_quick: bool
    waits: Callable[[bytes], bool] | None = None


def traits_of(policy: str) -> Traits:
    """Raises InvalidRequest for a policy that this version does not know."""
    known = stored_policy(policy)
    if known.kind is None and not known.earlier:
        return Traits(known.merge, _lww, _lww_ceiling, is_quick=True)
    return Traits(known.merge, partial(_of_dots, known), _unbounded, is_quick=False, waits=partial(_waits, known))


def _lww(cells: Sequence[bytes]) -> Measured:
    try:
        # Cells sort by version.
        version_min, version_max = lww_version(min(cells)), lww_version(max(cells))
        # `lww_tail`, without its call: each cell of each table goes this way.
        flagged = [cell for cell in cells if cell[cell.index(b"\0", cell.index(b"\0", 9) + 1) + 17]]
        if not flagged:
            return Measured(version_min, version_max)
        dead = [cell for cell in flagged if cell[lww_tail(cell)] & TOMBSTONE]
        deadlines = [_U64.unpack_from(cell, lww_tail(cell) + 1)[0] for cell in flagged if not cell[lww_tail(cell)] & TOMBSTONE]
        oldest = lww_version(min(dead)) if dead else 0
        return Measured(version_min, version_max, len(dead), oldest, len(deadlines), min(deadlines, default=0))
    except (ValueError, IndexError, struct_error):
        return Measured(0, max(map(lww_version, cells)))  # whatever they are, they are kept


def _of_dots(policy: Policy, cells: Sequence[bytes]) -> Measured:
    tombstones, deadlines = 0, list[int]()
    for cell in cells:
        try:
            waits, ends_ms = policy.waits(cell)
        except RecordError:
            continue  # it is kept
        tombstones += waits
        if ends_ms:
            deadlines.append(ends_ms)
    return Measured(0, 0, tombstones, 0, len(deadlines), min(deadlines, default=0))


def _waits(policy: Policy, cell: bytes) -> bool:
    try:
        return policy.waits(cell)[0]
    except RecordError:
        return False  # it is kept


def _lww_ceiling(version: int) -> bytes:
    # Cells sort by version, and one of the next version is longer than this.
    return TAG + (version + 1).to_bytes(8, "big")


def _unbounded(_: int) -> bytes:
    return _ABOVE_ALL  # every cell is merged with what is older


_ABOVE_ALL: Final = b"\xff" * 16
