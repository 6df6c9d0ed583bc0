"""Which updates outlive a removal that had not seen them: what the conflict journal notes where nothing is left of the removal.

Where adding wins, what takes away leaves no item behind, so the cell alone does not tell that it lost. Its coordinator can:

    eu  remove milk    takes eu 5                            eu has seen eu 5 and us 7
    us  add milk       replaces eu 5, and names it as 'seen and gone'
    arriving at eu: it names what is about milk, and was gone there once the removal was done. So us still had it, and had not
    seen the removal; and the removal had not seen us 9.

An update that names nothing of what the removal had seen is not told apart from one that had seen the removal: it is left out.
So is one whose only such name is its own chain from 0 on: that is how it replaces the very first record of its origin, but also
how it begins anew where its coordinator has collected the key, the removal with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.context import CausalContext, Dot, Spans, subtract_spans
from geokv.core.cells.operation import Operation
from geokv.core.cells.state import CellState, Totals
from geokv.core.cells.view import Entry, View


class Removal(NamedTuple):
    """What took away, as its coordinator remembers it. `seen`: by its cell once it was done; `marks`: what a reset counted."""

    dot: Dot
    stamp: int
    operation: Operation
    seen: CausalContext
    marks: Mapping[bytes, Mapping[bytes, Totals]]

    def survivors(self, kind: CellType, state: CellState) -> list[Entry]:
        """The items that it is about, and has left, but for what its own origin wrote since. Without a context: none."""
        own, number = self.dot
        return [one for one in kind.subject(View(state), self.operation) if one.origin != own or one.number < number]

    def missed(self, kind: CellType, arriving: CellState, dot: Dot) -> Entry | None:
        """The item of the update `dot`, of which `arriving` is the delta, where neither had seen the other."""
        for entry in kind.subject(View(arriving), self.operation):
            if (entry.origin, entry.number) == dot:
                named = arriving.context.spans.items()
                return entry if any(_is_named(self.seen, origin, spans, dot) for origin, spans in named) else None
        return None

    def left_of(self, kind: CellType, entry: Entry) -> bytes:
        """The payload of a survivor, less what a reset counted of it."""
        return kind.beyond(entry.payload, self.marks.get(entry.origin, {}))


def _is_named(seen: CausalContext, origin: bytes, spans: Spans, dot: Dot) -> bool:
    """Whether the spans of an update name, besides the update itself, what `seen` has."""
    if origin == dot.origin:
        spans = spans[:-2] if spans[-2] == 0 else subtract_spans(spans, (dot.number - 1, dot.number))
    return subtract_spans(spans, seen.spans.get(origin, ())) != spans
