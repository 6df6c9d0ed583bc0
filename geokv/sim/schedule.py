"""Virtual time: a heap of what happens when, and one stream of random numbers per concern.

Microseconds are integers. Two events at the same microsecond happen in the order in which they were scheduled, so a run is a
function of its seed alone. Each concern (network, disks, clocks, workload, faults …) draws from a generator of its own: a
change in how one of them draws leaves the others' choices as they were.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Final

MS: Final = 1_000
SECOND: Final = 1_000_000


def derived_rng(seed: int, concern: str) -> random.Random:
    """A generator that depends on the seed and the concern's name alone (not on PYTHONHASHSEED)."""
    digest = blake2b(f"{seed}/{concern}".encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


class Timer:
    """Something scheduled. `cancel` is cheap: the entry stays in the heap and is skipped."""

    __slots__ = ("action", "arguments", "when_us")

    def __init__(self, when_us: int, action: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
        self.when_us = when_us
        self.action = action
        self.arguments = arguments

    def cancel(self) -> None:
        self.action = None
        self.arguments = ()


class Schedule:
    """The queue of the whole simulated world."""

    def __init__(self) -> None:
        self.now_us = 0
        self.steps = 0
        self._order = 0
        self._heap: list[tuple[int, int, Timer]] = []

    def at(self, when_us: int, action: Callable[..., object], *arguments: Any) -> Timer:
        """Call `action(*arguments)` at `when_us`, or now where that has passed."""
        timer = Timer(max(when_us, self.now_us), action, arguments)
        self._order += 1
        heappush(self._heap, (timer.when_us, self._order, timer))
        return timer

    def after(self, delay_us: int, action: Callable[..., object], *arguments: Any) -> Timer:
        return self.at(self.now_us + delay_us, action, *arguments)

    def step(self) -> bool:
        """Do the next thing; False where nothing is scheduled."""
        heap = self._heap
        while heap:
            when_us, _, timer = heappop(heap)
            action = timer.action
            if action is not None:
                self.now_us = when_us
                self.steps += 1
                action(*timer.arguments)
                return True
        return False

    def run_until(self, until_us: int) -> None:
        """Do everything that is due up to `until_us`, and stand there."""
        heap = self._heap
        while heap and heap[0][0] <= until_us:
            when_us, _, timer = heappop(heap)
            action = timer.action
            if action is not None:
                self.now_us = when_us
                self.steps += 1
                action(*timer.arguments)
        self.now_us = max(self.now_us, until_us)

    def run_while(self, condition: Callable[[], bool], at_most_us: int) -> bool:
        """Go on while `condition()` holds, for `at_most_us`; True where it ended."""
        deadline_us = self.now_us + at_most_us
        while condition():
            if not self._heap or self._heap[0][0] > deadline_us:
                self.now_us = max(self.now_us, deadline_us)
                return not condition()
            self.step()
        return True
