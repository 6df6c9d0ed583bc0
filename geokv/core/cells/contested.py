"""Where concurrent updates met in a cell: what the conflict journal notes, by the dots of those who met.

    contested(kind, state)              all places at which more than one live item stands
    met_by(kind, state, dot)            the items that the update `dot` met, once it is joined

All items of a place are alive, so none of them had seen another: that is what concurrent means. A rule of the type then shows
one, all of them, or none. Items about which nothing is decided (counts, equal additions) are never contested.

Not here: an addition that survives a removal which had not seen it, which stands alone (`outlived`); the journal itself
(bounded, per namespace), and what a value was before.
"""

from __future__ import annotations

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.context import Dot
from geokv.core.cells.state import CellState
from geokv.core.cells.view import Entry, View


def contested(kind: CellType, state: CellState) -> dict[bytes, list[Entry]]:
    """Place -> its items in the order of their dots, where there are several that differ."""
    places: dict[bytes, list[Entry]] = {}
    for entry in View(state).entries():
        place = kind.place(entry.payload)
        if place is not None:
            places.setdefault(place, []).append(entry)
    return {
        place: sorted(entries) for place, entries in sorted(places.items()) if len({entry.payload for entry in entries}) > 1
    }


def met_by(kind: CellType, state: CellState, dot: Dot) -> list[Entry]:
    """The items that an update met where it was taken in; none if it was alone, or dead when it came (who saw it was first)."""
    for entries in contested(kind, state).values():
        if any((entry.origin, entry.number) == dot for entry in entries):
            return [entry for entry in entries if (entry.origin, entry.number) != dot]
    return []
