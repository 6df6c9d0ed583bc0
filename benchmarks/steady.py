"""`python -m benchmarks.peers --steady`: what flushes and compactions leave of geokv's rate of writes.

Three nodes, 256 callers, puts of random keys among 1,000,000 (`--writes` in all). The rate is measured in windows: those
before the first flush of any node, and all of it; beside them what compaction is behind by. `--first FILE`, the JSON of
`benchmarks.peers` with the version to compare with, on the same machine, gives the two ratios; without it they are null.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.common import cell, machine_facts, quotient, table
from benchmarks.systems.geokv import Geokv
from benchmarks.workload import make_values

CALLERS: Final = 256
KEYS: Final = 1_000_000
WINDOW_S: Final = 2.0


async def measure(directory: Path, writes: int, first_per_s: float | None) -> dict[str, Any]:
    """All figures. Raises GeokvError where the cluster does not start."""
    values = make_values()
    with tempfile.TemporaryDirectory(prefix="bench-steady-", dir=directory) as place:
        async with Geokv().start(Path(place)) as cluster, cluster.connect(CALLERS) as callers:
            done, errors, is_over = 0, 0, False

            async def call(number: int) -> None:
                nonlocal done, errors
                source = random.Random(number)
                while not is_over:
                    try:
                        await callers[number].put(b"key-%012d" % source.randrange(KEYS), source.choice(values))
                        done += 1
                    except Exception:  # counted: a writer that is told to wait is part of the result
                        errors += 1
                        await asyncio.sleep(0.05)

            windows: list[dict[str, Any]] = []
            begun = time.perf_counter()
            tasks = [asyncio.create_task(call(number)) for number in range(len(callers))]
            while done < writes:
                before, at = done, time.perf_counter()
                await asyncio.sleep(WINDOW_S)
                rate = (done - before) / (time.perf_counter() - at)
                nodes = await asyncio.to_thread(_storage, cluster.addresses)
                windows.append(
                    {
                        "at_s": time.perf_counter() - begun,
                        "writes_per_s": rate,
                        "flushes": max(node["flushes"] for node in nodes),
                        "debt_bytes": sum(node["debt_bytes"] for node in nodes),
                    }
                )
            seconds = time.perf_counter() - begun
            is_over = True
            await asyncio.gather(*tasks)
    quiet = [one["writes_per_s"] for one in windows[1:] if not one["flushes"]]
    before_flush = sum(quiet) / len(quiet) if quiet else None
    steady = done / seconds
    return {
        "machine": machine_facts(directory),
        "writes": done,
        "errors": errors,
        "before_flush_per_s": before_flush,
        "steady_per_s": steady,
        "first_per_s": first_per_s,
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
