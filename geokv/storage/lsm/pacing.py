"""Pacing: how fast the worker may write, changed while it works."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

PROGRESS_S: Final = 1.0
_WAIT_S_MAX: Final = 0.25  # so that what is owed shrinks in steps, and a new rate finds it so


@dataclass(frozen=True, slots=True)
class Throttle:
    """How fast jobs may write, in bytes per second (0: as fast as it goes), and whether they may at all."""

    bytes_per_s: int = 0
    is_paused: bool = False


class Progress:
    """Tells, each PROGRESS_S, whether something was done since the last time: called whenever it was."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._was_done = False
        threading.Thread(target=self._watch, name="geokv-progress", daemon=True).start()

    def __call__(self) -> None:
        self._was_done = True

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(PROGRESS_S):
            if self._was_done:
                self._was_done = False
                with suppress(OSError):  # nobody listens any more: the process is about to end
                    self._tell()


class Pacer:
    """Holds a job up before each write, as the newest `Throttle` says. The time of the work itself comes on top."""

    def __init__(self, progress: Callable[[], None] = lambda: None) -> None:
        """`progress`: called whenever this is, and now and then while a job is held up, which is no standstill."""
        self._progress = progress
        self._throttle = Throttle()
        self._changed = threading.Condition()

    def set(self, throttle: Throttle) -> None:
        with self._changed:
            self._throttle = throttle
            self._changed.notify_all()

    def __call__(self, nbytes: int) -> None:
        owed = float(nbytes)
        self._progress()
        with self._changed:
            while self._throttle.is_paused or (owed > 0 and self._throttle.bytes_per_s):
                self._progress()
                if self._throttle.is_paused:
                    self._changed.wait(PROGRESS_S)
                    continue
                rate = self._throttle.bytes_per_s
                wait_s = min(owed / rate, _WAIT_S_MAX)
                self._changed.wait(wait_s)
                owed -= wait_s * rate
