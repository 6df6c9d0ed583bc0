"""The clocks of one simulated machine: a monotonic one that starts anywhere and drifts, and a wall clock that does worse.

    true time ──┬─ monotonic = start + true * (1 + drift)             never back, never stopped
                └─ wall      = epoch + skew + true * (1 + drift)      may be stepped either way, may be frozen

Nodes measure with the first and stamp with the second; neither is ever compared across machines.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from geokv.sim.schedule import Schedule

EPOCH_US: Final = 1_780_000_000_000_000
_PPM: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ClockOptions:
    """How far the clocks are off. All of it stays inside the drift limit that nodes follow.

    Half of the machines keep good time; the others are off by up to `skew_ms_max` either way.
    """

    skew_ms_max: int = 3_000
    drift_ppm_max: int = 200


class Clocks:
    """Both clocks of one machine."""

    def __init__(self, schedule: Schedule, rng: random.Random, options: ClockOptions) -> None:
        self._schedule = schedule
        self._drift_ppm = rng.randint(-options.drift_ppm_max, options.drift_ppm_max)
        self._start_us = rng.randrange(1, 10_000_000_000)
        worst_ms = rng.choice((options.skew_ms_max // 20, options.skew_ms_max))
        self._skew_us = rng.randint(-worst_ms, worst_ms) * 1_000
        self._frozen_us: int | None = None
        self.error_us_max = abs(self._skew_us)  # the worst that the wall clock was off so far

    def monotonic_us(self) -> int:
        now_us = self._schedule.now_us
        return self._start_us + now_us + now_us * self._drift_ppm // _PPM

    def true_us(self, monotonic_us: int) -> int:
        """When, in true time, the monotonic clock will have reached `monotonic_us`."""
        elapsed = monotonic_us - self._start_us
        return -(-elapsed * _PPM // (_PPM + self._drift_ppm)) + 1

    def wall_us(self) -> int:
        if self._frozen_us is not None:
            return self._frozen_us
        now_us = self._schedule.now_us
        return EPOCH_US + self._skew_us + now_us + now_us * self._drift_ppm // _PPM

    def step(self, by_us: int) -> None:
        """The wall clock is set, forwards or backwards."""
        if self._frozen_us is not None:
            self._frozen_us += by_us
        self._skew_us += by_us
        self._note_error()

    def freeze(self) -> None:
        """The wall clock stands still."""
        self._frozen_us = self.wall_us()

    def thaw(self) -> None:
        """The wall clock goes on, from where the true one has got to meanwhile."""
        self._note_error()
        self._frozen_us = None

    def _note_error(self) -> None:
        self.error_us_max = max(self.error_us_max, abs(self.wall_us() - EPOCH_US - self._schedule.now_us))
