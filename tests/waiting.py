"""Waiting for what real processes do in their own time."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(is_so: Callable[[], object], seconds: float = 30.0) -> None:
    """Ask until it is so. Fails when it is not in that time."""
    deadline_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not become true in time"
        time.sleep(0.05)
