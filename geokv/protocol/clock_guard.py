"""Whether this node's own wall clock is the one that is wrong: held against the median of all clocks that it can see.

    own clock     0 s      peers  +61 s  +60 s  +62 s      median +60.5 s: it is this one that is off
                  0 s             +61 s   0 s   +1 s       median +0.5 s: somebody else is

Under `lww` a clock that is ahead wins over concurrent writes of others, and one that is behind loses to them. So a node whose
clock is beyond the fail limit from the median of at least three takes no `lww` writes until it is set right; other owners of
the key take them. What it stamped before stays, and loses to any later write that saw it.

Invariants: decided from live peers only, at every heartbeat; with fewer than three clocks nothing is decided.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

from geokv.core.limits import DRIFT_MS_WARN
from geokv.protocol.context import Context

CLOCKS_MIN: Final = 3
LOOKS_MAX: Final = 256


class ClockGuard:
    """`off_ms`: how far the own clock is ahead of the median (None: not known). `refusal`: why `lww` writes are not taken.

    `stamped_while_off`: how many `lww` writes this run has stamped when its clock was, or may have been, beyond the limit: all
    since it was last seen to be right.
    """

    def __init__(self, context: Context, fail_ms: int) -> None:
        self._context = context
        self._fail_ms = fail_ms
        self._was_warned = False
        self._stamped_when_right = 0
        self._looks: deque[tuple[int, int]] = deque(maxlen=LOOKS_MAX)  # (when, how many were stamped by then)
        self.stamped = 0  # lww writes of this run, as the coordinator counts them
        self.stamped_while_off = 0
        self.off_ms: int | None = None
        self.refusal = ""

    def tick(self) -> None:
        """Look at what the peers have stated of their clocks."""
        context = self._context
        seen = [peer for peer in context.peers.by_name.values() if peer.echo_us and context.is_live(peer.name)]
        skews = [peer.skew_ms for peer in seen]
        self.off_ms = None if len(skews) + 1 < CLOCKS_MIN else -round(median([0, *skews]))
        off_ms = self.off_ms or 0
        self._warn(abs(off_ms) > DRIFT_MS_WARN, off_ms)
        refusal = ""
        if abs(off_ms) > self._fail_ms:
            where = "ahead of" if off_ms > 0 else "behind"
            refusal = f"the clock of {context.node} is {abs(off_ms) / 1000:.1f} s {where} the others' median: set it right"
        if refusal:
            self._count_stamped()
        elif self.off_ms is not None:
            self._was_right(min(peer.heard_us for peer in seen))
        self._looks.append((context.now_us, self.stamped))
        if refusal and not self.refusal:
            context.note("clock.refuses_lww")
            context.log("error", f"{refusal}; until then this node takes no lww writes (limit {self._fail_ms} ms)")
        elif self.refusal and not refusal:
            context.log("info", f"the clock of {context.node} is right again; lww writes are taken")
        self.refusal = refusal

    def _was_right(self, at_us: int) -> None:
        """The clock was right when the oldest of the others' statements came; what was stamped since then is not known yet."""
        while self._looks and self._looks[0][0] <= at_us:
            self._stamped_when_right = self._looks.popleft()[1]

    def _count_stamped(self) -> None:
        """What was stamped since the clock was last seen to be right stays, and is told: a later write that saw it wins."""
        count = self.stamped - self._stamped_when_right
        self._stamped_when_right = self.stamped
        if count:
            self.stamped_while_off += count
            self._context.note("clock.lww_stamped_while_off", count)
            text = f"{count} lww writes of {self._context.node} were stamped while its clock was off"
            self._context.log("warning", f"{text}: they win over concurrent ones, and lose to later ones that saw them")

    def _warn(self, is_off: bool, off_ms: int) -> None:
        if is_off and not self._was_warned:
            self._context.note("clock.off")
            text = f"the clock of {self._context.node} is {off_ms} ms off the median of the clocks that it can see"
            self._context.log("warning", f"{text} (warned from {DRIFT_MS_WARN} ms on)")
        self._was_warned = is_off
