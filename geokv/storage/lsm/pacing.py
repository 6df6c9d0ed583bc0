"""Pacing: how fast the worker may write, changed while it works."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

_WAIT_S_MAX: Final = 0.25  # so that what is owed shrinks in steps, and a new rate finds it so


@dataclass(frozen=True, slots=True)
class Throttle:
    """How fast jobs may write, in bytes per second (0: as fast as it goes), and whether they may at all."""

    bytes_per_s: int = 0
    is_paused: bool = False


class Pacer:
    """Holds a job up before each write, as the newest `Throttle` says. The time of the work itself comes on top."""

    def __init__(self) -> None:
        self._throttle = Throttle()
        self._changed = threading.Condition()

    def set(self, throttle: Throttle) -> None:
        with self._changed:
            self._throttle = throttle
            self._changed.notify_all()

    def __call__(self, nbytes: int) -> None:
        owed = float(nbytes)
        with self._changed:
            while self._throttle.is_paused or (owed > 0 and self._throttle.bytes_per_s):
                if self._throttle.is_paused:
                    self._changed.wait()
                    continue
                rate = self._throttle.bytes_per_s
                wait_s = min(owed / rate, _WAIT_S_MAX)
                self._changed.wait(wait_s)
                owed -= wait_s * rate
