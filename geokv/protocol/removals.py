"""What this node took away lately: so that it can tell when an update arrives that outlives it (`core.cells.outlived`).

In memory only and bounded, the keys whose removals are the oldest go first: what is forgotten, or was done before a restart, is
not noted in the journal. The hot path asks for (namespace, key) in `held`, and no more.
"""

from __future__ import annotations

from geokv.core.cells.cell_type import CellType
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.outlived import Removal
from geokv.core.cells.state import CellState
from geokv.core.cells.view import Entry
from geokv.core.limits import REMOVALS_MAX, REMOVALS_PER_KEY_MAX


class Removals:
    """See the module. `held`: of each key, by what was done and oldest first. What was done twice has seen all that it had seen
    the first time, so the newest is enough.
    """

    def __init__(self) -> None:
        self.held: dict[tuple[int, bytes], dict[Operation, Removal]] = {}
        self._count = 0

    def keep(self, namespace: int, key: bytes, removal: Removal) -> None:
        """Remember what was done."""
        operation = removal.operation._replace(context=None)
        kept = self.held[namespace, key] = self.held.pop((namespace, key), {})
        self._count += operation not in kept
        kept.pop(operation, None)
        kept[operation] = removal
        if len(kept) > REMOVALS_PER_KEY_MAX:
            del kept[next(iter(kept))]
            self._count -= 1
        while self._count > REMOVALS_MAX:
            self._count -= len(self.held.pop(next(iter(self.held))))

    def missed_by(
        self, namespace: int, key: bytes, kind: CellType, arriving: CellState, dot: Dot
    ) -> tuple[Removal, Entry] | None:
        """The newest removal that an arriving update outlives, and its item."""
        for removal in reversed(self.held.get((namespace, key), {}).values()):
            entry = removal.missed(kind, arriving, dot)
            if entry is not None:
                return removal, entry
        return None

    def forget(self, namespace: int) -> None:
        """A namespace was deleted, or its policy was changed."""
        for held in [held for held in self.held if held[0] == namespace]:
            self._count -= len(self.held.pop(held))
