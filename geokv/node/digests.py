"""Digests: order-free sums over what lives in a node's own synced cells, per partition. Equal replicas at rest have the same
hash, and as much that lives, whichever of them have collected what was deleted; `cells` counts what is dead, too.

A large namespace is walked in steps, with other work between them: what is written meanwhile is counted or not.

Invariants: at most DIGESTS_MAX walks at a time; each is answered once, unless the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import mmh3

from geokv.core.ring import key_hash
from geokv.errors import GeokvError, Overloaded
from geokv.protocol.context import Context
from geokv.protocol.table import Table

STEP_CELLS: Final = 2_000
DIGESTS_MAX: Final = 4
Then = Callable[[dict[str, Any] | GeokvError], None]


class _Walk:
    __slots__ = ("cells", "policy", "shift", "sums", "then")

    def __init__(self, table: Table, then: Then) -> None:
        self.cells: Iterator[tuple[bytes, bytes]] = table.cells.items()
        self.policy = table.policy
        self.shift = table.placement.shift
        self.then = then
        self.sums: dict[int, list[int]] = {}  # partition -> cells, sum of hashes, live cells


class Digests:
    """Walks over tables, some cells at a time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._walks: list[_Walk] = []

    def start(self, table: Table, then: Then) -> None:
        """`then` gets the figures per partition, or the error of the disk. Raises Overloaded."""
        if len(self._walks) >= DIGESTS_MAX:
            raise Overloaded(f"{DIGESTS_MAX} digests are being made already", retry_after=1.0)
        self._walks.append(_Walk(table, then))
        self.tick()

    def wake_at_us(self) -> int | None:
        return self._context.now_us if self._walks else None

    def tick(self) -> None:
        """One step of the walk that waits longest."""
        if not self._walks:
            return
        walk = self._walks.pop(0)
        try:
            is_done = self._step(walk)
        except GeokvError as error:
            walk.then(error)
            return
        if is_done:
            sums = sorted(walk.sums.items())
            walk.then({str(p): {"cells": n, "hash": f"{total:016x}", "live": live} for p, (n, total, live) in sums})
        else:
            self._walks.append(walk)

    def _step(self, walk: _Walk) -> bool:
        now_ms, count = self._context.wall_ms, 0
        for key, stored in islice(walk.cells, STEP_CELLS):
            count += 1
            cell = walk.policy.living(stored, now_ms)
            entry = walk.sums.setdefault(key_hash(key) >> walk.shift, [0, 0, 0])
            entry[0] += 1
            if cell is None:
                continue
            entry[1] = (entry[1] + mmh3.hash64(key + b"\0" + cell, 0, x64arch=True, signed=False)[0]) & ((1 << 64) - 1)
            entry[2] += walk.policy.is_shown(stored, now_ms)
        return count < STEP_CELLS
