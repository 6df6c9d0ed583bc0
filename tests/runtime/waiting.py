"""Waiting for a condition with a deadline, on the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Return once `condition()` is true; fail after the deadline."""
    deadline_s = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_s, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.005)
