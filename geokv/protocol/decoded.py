"""Cells of dots that were changed last, decoded: for a key in use that is most of what an update costs.

    known   (cell, its state)
    asked   cell + delta + delta     ->  the state, joined with the two deltas: the rest is not decoded again

Shared by who makes deltas and who takes them in, so that a node decodes what it is sent once, whether it coordinates the next
update of the key, folds the cell, or both.

Whose updates come from elsewhere is not kept up for ever: after some deltas that nobody here has asked about, the entry
goes, and deltas are only appended.

Invariants: an entry is good as long as the table holds the very bytes that it was made from, or those with deltas behind them.
Bounded by number and by bytes; the oldest go first.
"""

from __future__ import annotations

from typing import Final

from geokv.core.cells.state import CellState
from geokv.core.conflict import Policy

DECODED_MAX: Final = 4_096
UNASKED_MAX: Final = 8  # deltas that an entry is joined with, and nobody asks
DECODED_BYTES_MAX: Final = 4 << 20  # of cells, encoded: decoded they are ten times as large


class Decoded:
    """See the module."""

    def __init__(self) -> None:
        self._states: dict[tuple[int, bytes], tuple[bytes, CellState, int]] = {}
        self._nbytes = 0

    def state(self, policy: Policy, namespace: int, key: bytes, cell: bytes | None) -> CellState:
        """The state of a stored cell. Who joins something to it must `keep` what comes of it, or `drop` it."""
        if cell is None:
            return policy.empty()
        known = self._states.get((namespace, key))
        if known is not None and known[0] is cell:
            if known[2]:
                self.keep(namespace, key, cell, known[1])
            return known[1]
        if known is not None and cell.startswith(known[0]):  # others have appended deltas since
            state = known[1]
            if len(cell) > len(known[0]):
                state.join(policy.decode(cell[len(known[0]) :]))
        else:
            state = policy.decode(cell)
        self.keep(namespace, key, cell, state)
        return state

    def keep(self, namespace: int, key: bytes, cell: bytes, state: CellState, unasked: int = 0) -> None:
        name, states = (namespace, key), self._states
        known = states.pop(name, None)
        states[name] = (cell, state, unasked)  # the newest
        self._nbytes += len(cell) if known is None else len(cell) - len(known[0])
        while len(states) > DECODED_MAX or self._nbytes > DECODED_BYTES_MAX:
            self.drop(*next(iter(states)))

    def drop(self, namespace: int, key: bytes) -> None:
        known = self._states.pop((namespace, key), None)
        self._nbytes -= len(known[0]) if known is not None else 0

    def forget(self, namespace: int) -> None:
        """The policy of a namespace was changed: its cells are seen otherwise from now on."""
        for held in [held for held in self._states if held[0] == namespace]:
            self.drop(*held)

    def append(self, policy: Policy, namespace: int, key: bytes, stored: bytes, delta: bytes, arriving: CellState) -> bytes:
        """The cell with an arriving delta (`arriving`, decoded) behind it, folded where that has outgrown it."""
        both = policy.behind(stored, delta)
        known = self._states.get((namespace, key))
        is_folded = policy.has_outgrown(both)
        if known is not None and known[2] >= UNASKED_MAX:
            self.drop(namespace, key)
            known = None
        if known is None or known[0] is not stored:
            return policy.fold(both) if is_folded else both
        state = known[1]
        state.join(arriving)
        if is_folded:
            both = policy.encode(state)
        self.keep(namespace, key, both, state, known[2] + 1)
        return both
