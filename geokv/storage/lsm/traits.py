"""What the engine must know of the cells of a policy, besides how two of them merge.

Worker processes are told a policy by its name; here the name becomes functions. A policy that states nothing here
gets version 0 for every cell and has nothing that could be collected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from geokv.core.cell import TAG, lww_tail, lww_version
from geokv.core.conflict import Merge, merge_of


@dataclass(frozen=True, slots=True)
class Traits:
    """`measure` gives of some cells the lowest and the highest version, and how many are tombstones or have a deadline.

    `ceiling`: bytes such that a cell above them stays as it is when it is merged with any of at most that version.
    """

    merge: Merge
    measure: Callable[[Sequence[bytes]], tuple[int, int, int]]
    ceiling: Callable[[int], bytes]


def traits_of(policy: str) -> Traits:
    """Raises InvalidRequest for a policy that this version does not know."""
    return Traits(merge_of(policy), *_TRAITS.get(policy, (_unmeasured, _unbounded)))


def _lww(cells: Sequence[bytes]) -> tuple[int, int, int]:
    try:
        # Cells sort by version.
        return lww_version(min(cells)), lww_version(max(cells)), sum([cell[lww_tail(cell)] != 0 for cell in cells])
    except (ValueError, IndexError):
        return 0, max(map(lww_version, cells)), 0  # whatever it is, it is kept


def _unmeasured(_: Sequence[bytes]) -> tuple[int, int, int]:
    return 0, 0, 0


def _lww_ceiling(version: int) -> bytes:
    # Cells sort by version, and one of the next version is longer than this.
    return TAG + (version + 1).to_bytes(8, "big")


def _unbounded(_: int) -> bytes:
    return _ABOVE_ALL  # every cell is merged with what is older


_ABOVE_ALL: Final = b"\xff" * 16
_Measure = Callable[[Sequence[bytes]], tuple[int, int, int]]
_TRAITS: Final[dict[str, tuple[_Measure, Callable[[int], bytes]]]] = {"lww": (_lww, _lww_ceiling)}
