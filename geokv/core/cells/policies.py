"""The table of cell types. All that is chosen by a policy's name is chosen here and in `core.conflict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.counter_bounded import CounterBounded
from geokv.core.cells.counter_pn import CounterPn
from geokv.core.cells.extremes import Max, Min
from geokv.core.cells.flags import FlagDw, FlagEw
from geokv.core.cells.hll import Hll
from geokv.core.cells.map_rr import MapRr
from geokv.core.cells.register_lww import RegisterLww
from geokv.core.cells.sets import SetAw, SetGrow, SetRw
from geokv.core.cells.siblings import RegisterMv, Siblings
from geokv.core.cells.sorted_set import SortedSet
from geokv.errors import InvalidRequest

_FIELDS: Final = {
    one.name: one
    for one in (
        CounterPn(),
        FlagDw(),
        FlagEw(),
        Hll(),
        Max(),
        Min(),
        RegisterLww(),
        RegisterMv(),
        SetAw(),
        SetGrow(),
        SetRw(),
        SortedSet(),
    )
}
_WHOLE: Final = (Siblings(), CounterBounded(), MapRr(_FIELDS))  # policies only: not the type of a field, or a map of them
CELL_TYPES: Final[Mapping[str, CellType]] = _FIELDS | {one.name: one for one in _WHOLE}

assert len({one.tag for one in CELL_TYPES.values()}) == len(CELL_TYPES) and min(one.tag for one in CELL_TYPES.values()) > 1


def type_of(name: str) -> CellType:
    """Raises InvalidRequest for a type that there is not."""
    kind = CELL_TYPES.get(name)
    if kind is None:
        raise InvalidRequest(f"{name!r} is no type of cell: there are {', '.join(sorted(CELL_TYPES))}")
    return kind
