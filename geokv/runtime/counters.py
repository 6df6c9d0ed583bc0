"""What the real host counts: events by name, and times in a few fixed buckets. Touched on the loop thread only.

Names are dotted (`transport.dropped`), as the machines' own notes are; they go out as one metric each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

NAMES_MAX: Final = 4096
STALL_MS_BOUNDS: Final = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0)


class Histogram:
    """Counts per bucket; `bounds` are upper bounds, one more bucket is beyond them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.largest = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.largest = max(self.largest, value)


class Counters:
    """Counts by name; `overflow` takes what comes after NAMES_MAX names, so that a bug cannot fill the memory."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self.stall_ms = Histogram(STALL_MS_BOUNDS)

    def add(self, name: str, count: int = 1) -> None:
        if name not in self._counts and len(self._counts) >= NAMES_MAX:
            name = "counters.overflow"
        self._counts[name] += count

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def as_dict(self) -> dict[str, int | float]:
        """All counts, and the loop's stalls as flat names."""
        stalls = self.stall_ms
        flat: dict[str, int | float] = dict(self._counts)
        flat["loop.stall_ms_max"] = round(stalls.largest, 3)
        flat["loop.stall_ms_sum"] = round(stalls.total, 3)
        flat["loop.ticks"] = sum(stalls.counts)
        for bound, count in zip((*stalls.bounds, "more"), stalls.counts, strict=True):
            flat[f"loop.stalls_up_to_{bound:g}_ms" if isinstance(bound, float) else "loop.stalls_longer"] = count
        return flat
