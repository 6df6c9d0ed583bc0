"""Hybrid logical clock: 48 bits of wall milliseconds, 16 bits of counter, in one integer.

An HLC strictly rises along a node's log, stays close to the wall clock, and moves past what it is told. A remote stamp
further ahead than the drift limit is not followed: a clock that is off by minutes drags nobody along.

Invariants: `stamp` never returns a value twice nor one below an earlier one; nothing beyond `bound` is handed out
before the bound was made durable (the node raises it ahead of time, so a restart starts above everything that was
ever stamped).

After Kulkarni et al. 2014. Not here: the LWW version, which may run ahead of the HLC (see `core.cell`).
"""

from __future__ import annotations

from typing import Final

COUNTER_BITS: Final = 16
HLC_MAX: Final = (1 << 64) - 1
NO_HLC: Final = HLC_MAX + 1  # above all of them: the least of none


def hlc_from_ms(wall_ms: int) -> int:
    return wall_ms << COUNTER_BITS


def hlc_ms(hlc: int) -> int:
    return hlc >> COUNTER_BITS


class HybridClock:
    """A node's HLC. Time comes in as an argument, in wall milliseconds."""

    __slots__ = ("drift_ms_max", "last", "refused")

    def __init__(self, last: int = 0, drift_ms_max: int = 60_000) -> None:
        self.last = last
        self.drift_ms_max = drift_ms_max
        self.refused = 0

    def stamp(self, wall_ms: int) -> int:
        """The next stamp: the wall clock where it is ahead, else the last stamp plus one."""
        wall = wall_ms << COUNTER_BITS
        self.last = wall if wall > self.last else self.last + 1
        return self.last

    def stamps(self, wall_ms: int, count: int) -> int:
        """The first of `count` consecutive stamps."""
        first = self.stamp(wall_ms)
        self.last = first + count - 1
        return first

    def observe(self, remote: int, wall_ms: int) -> bool:
        """Move past `remote`; False, and unmoved, where it is beyond the drift limit."""
        if remote <= self.last:
            return True
        if remote >> COUNTER_BITS > wall_ms + self.drift_ms_max:
            self.refused += 1
            return False
        self.last = remote
        return True
