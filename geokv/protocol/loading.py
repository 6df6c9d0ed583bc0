"""Loading: what a call needs and memory does not hold is read off the machine's thread, one batch at a time.

    read or write ── load(cells, keys, then) ──> Load ──> the host reads into the caches ──> Loaded ──> then(error)

While one Load is under way, what is wanted meanwhile waits and goes together in the next, as with frames of the log. What
nobody waits for any more by then is dropped: a disk that is slow is not asked for what came too late.

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
_Wish = tuple[Cells, list[bytes], Then, Callable[[], bool]]


class Loading:
    """The node's way to cells that are on its disk only."""

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects
        self._waiting: list[_Wish] = []
        self._under_way: list[_Wish] = []
        self._token = 0
        self._told: set[str] = set()
        self.keys = 0  # that the disk was asked for
        self.dropped = 0  # calls whose callers were gone before the disk was asked
        self.unreadable = ""  # what could not be read last, and why

    def load(self, cells: Cells, keys: list[bytes], then: Then, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Have `keys` of `cells` read into memory, then run `then`.

        `is_wanted`: asked before the disk is: whether anybody still waits. If not, `then` is told so.
        """
        if len(self._waiting) >= LOADS_WAITING_MAX:
            then(f"{len(self._waiting)} calls wait for the disk already")
            return
        self._waiting.append((cells, keys, then, is_wanted))
        self._launch()

    def loaded(self, token: int, errors: list[str]) -> None:
        """The Load under way is done; `errors` has one entry for each that wanted something."""
        assert token == self._token, f"Loaded({token}), expected {self._token}"
        done, self._under_way = self._under_way, []
        self._launch()
        for (_, _, then, _), error in zip(done, errors, strict=True):
            if error:
                self._tell(error)
            then(error)

    def _tell(self, error: str) -> None:
        self.unreadable = error
        if error not in self._told and len(self._told) < TOLD_MAX:
            self._told.add(error)
            self._effects.append(Log("error", f"cells cannot be read: {error}"))

    def _launch(self) -> None:
        if not self._waiting or self._under_way:
            return
        waiting, self._waiting = self._waiting, []
        gone: list[Then] = []
        for wish in waiting:
            if wish[3]():
                self._under_way.append(wish)
                self.keys += len(wish[1])
            else:
                gone.append(wish[2])
        if self._under_way:
            self._token += 1
            self._effects.append(Load(self._token, [(cells, keys) for cells, keys, _, _ in self._under_way]))
        self.dropped += len(gone)
        for then in gone:
            then("nobody waits for it any more")
