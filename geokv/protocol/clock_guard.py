"""Whether this node's own wall clock is the one that is wrong: held against the median of all clocks that it can see.

    own clock     0 s      peers  +61 s  +60 s  +62 s      median +60.5 s: it is this one that is off
                  0 s             +61 s   0 s   +1 s       median +0.5 s: somebody else is

Under `lww` a clock that is ahead wins over concurrent writes of others, and one that is behind loses to them. So a node whose
clock is beyond the fail limit from the median of at least three takes no `lww` writes until it is set right; other owners of
the key take them. What it stamped before stays, and loses to any later write that saw it.

Invariants: decided from live peers only, at every heartbeat; with fewer than three clocks nothing is decided.
"""

from __future__ import annotations

from statistics import median
from typing import Final

from geokv.core.limits import DRIFT_MS_WARN
from geokv.protocol.context import Context

CLOCKS_MIN: Final = 3


class ClockGuard:
    """`off_ms`: how far the own clock is ahead of the median (None: not known). `refusal`: why `lww` writes are not taken."""

    def __init__(self, context: Context, fail_ms: int) -> None:
        self._context = context
        self._fail_ms = fail_ms
        self._was_warned = False
        self.off_ms: int | None = None
        self.refusal = ""

    def tick(self) -> None:
        """Look at what the peers have stated of their clocks."""
        context = self._context
        skews = [peer.skew_ms for peer in context.peers.by_name.values() if peer.echo_us and context.is_live(peer.name)]
        self.off_ms = None if len(skews) + 1 < CLOCKS_MIN else -round(median([0, *skews]))
        off_ms = self.off_ms or 0
        self._warn(abs(off_ms) > DRIFT_MS_WARN, off_ms)
        refusal = ""
        if abs(off_ms) > self._fail_ms:
            where = "ahead of" if off_ms > 0 else "behind"
            refusal = f"the clock of {context.node} is {abs(off_ms) / 1000:.1f} s {where} the others' median: set it right"
        if refusal and not self.refusal:
            context.note("clock.refuses_lww")
            context.log("error", f"{refusal}; until then this node takes no lww writes (limit {self._fail_ms} ms)")
        elif self.refusal and not refusal:
            context.log("info", f"the clock of {context.node} is right again; lww writes are taken")
        self.refusal = refusal

    def _warn(self, is_off: bool, off_ms: int) -> None:
        if is_off and not self._was_warned:
            self._context.note("clock.off")
            text = f"the clock of {self._context.node} is {off_ms} ms off the median of the clocks that it can see"
            self._context.log("warning", f"{text} (warned from {DRIFT_MS_WARN} ms on)")
        self._was_warned = is_off
