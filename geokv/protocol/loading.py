"""Loading: what a call needs and memory does not hold is read off the machine's thread, one batch at a time.

    read or write ── load(cells, keys, then) ──> Load ──> the host reads into the caches ──> Loaded ──> then(error)

While one Load is under way, what is wanted meanwhile waits and goes together in the next, as with frames of the log.

Invariants: `then` runs exactly once, unless the run ends. What was loaded is looked up again by whoever wanted it, over what
the memtable holds by then. Not here: what needs loading (`table`), the caches (the engine).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from geokv.core.limits import CALLS_MAX
from geokv.protocol.effects import Effect, Load, Log
from geokv.protocol.table import Cells

LOADS_WAITING_MAX: Final = CALLS_MAX
TOLD_MAX: Final = 64  # different errors that are told; all are counted
Then = Callable[[str], None]
"""Told why the cells cannot be read; empty: they are in memory."""


class Loading:
    """The node's way to cells that are on its disk only."""

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects
        self._waiting: list[tuple[Cells, list[bytes], Then]] = []
        self._under_way: list[tuple[Cells, list[bytes], Then]] = []
        self._token = 0
        self._told: set[str] = set()
        self.keys = 0
        self.unreadable = ""  # what could not be read last, and why

    def load(self, cells: Cells, keys: list[bytes], then: Then) -> None:
        """Have `keys` of `cells` read into memory, then run `then`."""
        if len(self._waiting) >= LOADS_WAITING_MAX:
            then(f"{len(self._waiting)} calls wait for the disk already")
            return
        self.keys += len(keys)
        self._waiting.append((cells, keys, then))
        self._launch()

    def loaded(self, token: int, errors: list[str]) -> None:
        """The Load under way is done; `errors` has one entry for each that wanted something."""
        assert token == self._token, f"Loaded({token}), expected {self._token}"
        done, self._under_way = self._under_way, []
        self._launch()
        for (_, _, then), error in zip(done, errors, strict=True):
            if error:
                self._tell(error)
            then(error)

    def _tell(self, error: str) -> None:
        self.unreadable = error
        if error not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(error)
            self._effects.append(Log("error", f"cells cannot be read: {error}"))

    def _launch(self) -> None:
        if self._waiting and not self._under_way:
            self._under_way, self._waiting = self._waiting, []
            self._token += 1
            self._effects.append(Load(self._token, [(cells, keys) for cells, keys, _ in self._under_way]))
