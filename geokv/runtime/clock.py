"""The two clocks of the real host, in microseconds: monotonic for the machines, wall for what people and
records see.
"""

from __future__ import annotations

import time


def monotonic_us() -> int:
    return time.monotonic_ns() // 1_000


def wall_us() -> int:
    return time.time_ns() // 1_000
