"""`python -m benchmarks.peers --steady`: what flushes and compactions leave of geokv's rate of writes.

Three nodes, 256 callers, puts of random keys among 1,000,000 (`--writes` in all). The rate is measured in windows: those
before any node has begun its first flush, and all of it; beside them what compaction is behind by.

What they are compared with: the first version kept its cells in a dict, as the engine `memory` still does, over the same log,
quorum and network. So the same writers write to such a namespace first and last, and the mean of both is `first_per_s`.
`--first FILE`, the JSON of `benchmarks.peers` with another version on the same machine, takes that one's rate instead.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.common import cell, machine_facts, quotient, table
from benchmarks.systems import Caller
from benchmarks.systems.geokv import Geokv
from benchmarks.workload import make_values

CALLERS: Final = 256
KEYS: Final = 1_000_000
WINDOW_S: Final = 2.0
FIRST_S: Final = 10.0
IN_DICTS: Final = "dicts"
DICT_BYTES_MAX: Final = 2 << 30  # more than is written in that time


class _Writers:
    """Callers that put random keys until they are told to stop."""

    def __init__(self, callers: Sequence[Caller]) -> None:
        self.done = 0
        self.errors = 0
        self._values = make_values()
        self._is_over = False
        self._tasks = [asyncio.create_task(self._call(caller, number)) for number, caller in enumerate(callers)]

    async def _call(self, caller: Caller, number: int) -> None:
        source = random.Random(number)
        while not self._is_over:
            try:
                await caller.put(b"key-%012d" % source.randrange(KEYS), source.choice(self._values))
                self.done += 1
            except Exception:  # counted: a writer that is told to wait is part of the result
                self.errors += 1
                await asyncio.sleep(0.05)

    async def window(self, seconds: float) -> float:
        """Writes per second of the next seconds."""
        before, at = self.done, time.perf_counter()
        await asyncio.sleep(seconds)
        return (self.done - before) / (time.perf_counter() - at)

    async def stop(self) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)


async def _first(directory: Path) -> float:
    """Writes per second where cells stand in dicts, on three fresh nodes."""
    with tempfile.TemporaryDirectory(prefix="bench-first-", dir=directory) as place:
        async with Geokv().start(Path(place)) as cluster:
            await asyncio.to_thread(cluster.create_namespace, IN_DICTS, engine="memory", memory_bytes_max=DICT_BYTES_MAX)
            async with cluster.connect(CALLERS, IN_DICTS) as callers:
                writers = _Writers(callers)
                await writers.window(WINDOW_S)
                rate = await writers.window(FIRST_S)
                await writers.stop()
    return rate


async def measure(directory: Path, writes: int, first_per_s: float | None) -> dict[str, Any]:
    """All figures. `first_per_s`: None to measure it here. Raises GeokvError where the cluster does not start."""
    firsts = [] if first_per_s is not None else [await _first(directory)]
    with tempfile.TemporaryDirectory(prefix="bench-steady-", dir=directory) as place:
        async with Geokv().start(Path(place)) as cluster, cluster.connect(CALLERS) as callers:
            windows: list[dict[str, Any]] = []
            begun = time.perf_counter()
            writers = _Writers(callers)
            while writers.done < writes:
                rate = await writers.window(WINDOW_S)
                nodes = await asyncio.to_thread(_storage, cluster.addresses)
                windows.append(
                    {
                        "at_s": time.perf_counter() - begun,
                        "writes_per_s": rate,
                        "flushes": max(node["flushes"] for node in nodes),
                        "is_quiet": not any(node["flushes"] or node["running"] for node in nodes),
                        "debt_bytes": sum(node["debt_bytes"] for node in nodes),
                    }
                )
            done, seconds = writers.done, time.perf_counter() - begun
            await writers.stop()
    if first_per_s is None:
        firsts.append(await _first(directory))
        first_per_s = sum(firsts) / len(firsts)
    quiet = [one["writes_per_s"] for one in windows[1:] if one["is_quiet"]]
    before_flush = sum(quiet) / len(quiet) if quiet else None
    steady = done / seconds
    return {
        "machine": machine_facts(directory),
        "writes": done,
        "errors": writers.errors,
        "before_flush_per_s": before_flush,
        "steady_per_s": steady,
        "first_per_s": first_per_s,
        "first_rounds_per_s": firsts,
        "before_flush_vs_first": quotient(before_flush, first_per_s),
        "steady_vs_first": quotient(steady, first_per_s),
        "steady_vs_before_flush": quotient(steady, before_flush),
        "compaction_debt_bytes": [[round(one["at_s"], 1), one["debt_bytes"]] for one in windows],
        "windows": windows,
    }


def _storage(addresses: list[str]) -> list[dict[str, Any]]:
    from geokv.lab.ask import ask

    return [ask(address, "status", timeout_s=10.0)["storage"] for address in addresses]


def first_of(path: Path) -> float:
    """geokv's writes per second for 256 callers in a result file of `benchmarks.peers`. Raises KeyError, ValueError."""
    return float(json.loads(path.read_text(encoding="utf-8"))["median"]["geokv"][str(CALLERS)]["writes_per_s"])


def show(figures: dict[str, Any]) -> None:
    """The figures for people."""
    debts = [nbytes for _, nbytes in figures["compaction_debt_bytes"]]
    rows = [[name, cell(value, 2)] for name, value in figures.items() if value is None or isinstance(value, int | float)]
    rows += [
        ["compaction behind, at most, MiB", cell(max(debts, default=0) / (1 << 20))],
        ["compaction behind, at the end, MiB", cell(debts[-1] / (1 << 20) if debts else None)],
    ]
    print(table(["", "here"], rows))
