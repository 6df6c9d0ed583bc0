"""What the engine must know of the cells of a policy, besides how two of them merge.

Worker processes are told a policy by its name; here the name becomes functions. A policy that states nothing here
gets version 0 for every cell and has nothing that could be collected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from geokv.core.cell import lww_tail, lww_version
from geokv.core.conflict import Merge, merge_of


@dataclass(frozen=True, slots=True)
class Traits:
    """`measure` gives (version, whether it is a tombstone or has a deadline) of a cell."""

    merge: Merge
    measure: Callable[[bytes], tuple[int, bool]]


def traits_of(policy: str) -> Traits:
    """Raises InvalidRequest for a policy that this version does not know."""
    return Traits(merge_of(policy), _MEASURES.get(policy, _unmeasured))


def _lww(cell: bytes) -> tuple[int, bool]:
    try:
        return lww_version(cell), cell[lww_tail(cell)] != 0
    except (ValueError, IndexError):
        return 0, False  # whatever it is, it is kept


def _unmeasured(_: bytes) -> tuple[int, bool]:
    return 0, False


_MEASURES: Final[dict[str, Callable[[bytes], tuple[int, bool]]]] = {"lww": _lww}
