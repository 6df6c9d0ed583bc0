"""What the conflict layer costs: `python -m benchmarks.conflicts --json FILE`.

Quorum writes of counters and of sets with a hundred elements beside plain `lww` writes, on three real nodes: the same
callers, the same keys, the kinds taking turns round by round, medians compared. And what cells weigh and what merging them
takes, without any node.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.common import cell, machine_facts, median, quotient, table
from geokv.client import AsyncClient
from geokv.core.cells import codec
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update
from geokv.core.origin import Origin
from geokv.testing import Cluster

KEYS: Final = 200
ELEMENTS: Final = 100
VALUE: Final = random.Random(1).randbytes(256)
Call = Callable[[int], Awaitable[object]]


@dataclass
class Report:
    """The figures; writes a second of each kind, and the two ratios that count."""

    lww_writes_per_s: float | None = None
    counter_writes_per_s: float | None = None
    set_writes_per_s: float | None = None
    counter_vs_lww_writes: float | None = None
    set_vs_lww_writes: float | None = None
    counter_bytes_9_actors: int | None = None
    set_bytes_per_element: float | None = None
    merge_10k_ms: float | None = None
    delta_into_10k_ms: float | None = None


# --- cells alone ----------------------------------------------------------------------------------------------------


def _origin(number: int) -> bytes:
    return Origin(f"dc-{number % 3}", f"dc-{number % 3}-node-{number // 3}", 1_700_000_000_000 + number).packed()


def _grown(kind: str, operations: list[tuple[int, Operation]]) -> CellState:
    """The state after operations by so many actors, each numbered as a stream with other keys in it would be."""
    state = CellState()
    for number, (actor, operation) in enumerate(operations, start=1):
        state.join(update(type_of(kind), state, operation, Dot(_origin(actor), 7 * number)))
    return state


def counter_bytes() -> int:
    """A counter that nine nodes have counted to a million together."""
    steps = [(actor, Operation("increment", (111_111 // 3,))) for actor in range(9) for _ in range(3)]
    return len(codec.encode(type_of("counter_pn").tag, _grown("counter_pn", steps)))


def set_bytes() -> float:
    """What a set of a hundred elements weighs besides the elements, for each."""
    elements = [b"element-%03d" % number for number in range(ELEMENTS)]
    steps = [(number % 3, Operation("add", (element,))) for number, element in enumerate(elements)]
    cell_bytes = len(codec.encode(type_of("set_aw").tag, _grown("set_aw", steps)))
    return (cell_bytes - sum(map(len, elements))) / ELEMENTS


def _large(first: int, actor: int) -> CellState:
    """A decoded set of 10,000 elements: half are this actor's own, half came from a third one and are in both sets."""
    state = CellState()
    for owner, numbers in ((actor, range(1, 5_001)), (2, range(1, 5_001))):
        origin = _origin(owner)
        state.context.add(origin, 0, numbers[-1])
        state.items[origin] = {number: b"element-%05d" % (first * (owner == actor) + number) for number in numbers}
    return state


def merge_times_ms() -> tuple[float, float]:
    """(two sets of 10,000 elements, a delta of one element into such a set), the best of several."""
    kind, merges, deltas = type_of("set_aw"), [], []
    gc.disable()
    for turn in range(7):
        mine, theirs = _large(0, 0), _large(5_000, 1)
        merges.append(_timed_ms(lambda mine=mine, theirs=theirs: mine.join(theirs)))  # type: ignore[misc]
        delta = update(kind, mine, Operation("add", (b"one more %d" % turn,)), Dot(_origin(5), 1))
        deltas.append(_timed_ms(lambda mine=mine, delta=delta: mine.join(delta)))  # type: ignore[misc]
    gc.enable()
    return min(merges), min(deltas)


def _timed_ms(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


# --- writes ---------------------------------------------------------------------------------------------------------


async def writes_per_s(call: Call, keys: int, callers: int, seconds: float) -> float:
    """Closed loop: each caller sends its next call when the one before was answered. The first quarter warms up."""
    done = 0
    is_counting, is_over = False, False
    rng = random.Random(7)

    async def caller() -> None:
        nonlocal done
        while not is_over:
            await call(rng.randrange(keys))
            done += is_counting

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    await asyncio.sleep(seconds / 4)
    is_counting, began = True, time.perf_counter()
    await asyncio.sleep(seconds)
    counted, took = done, time.perf_counter() - began
    is_over = True
    await asyncio.gather(*tasks)
    return counted / took


async def measure_writes(addresses: list[str], keys: int, callers: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Writes a second per kind and round."""
    rng = random.Random(3)
    async with AsyncClient(addresses, timeout=20) as kv:
        for name, policy in (("plain", "lww"), ("counted", "counter_pn"), ("grouped", "set_aw")):
            await kv.create_namespace(name, policy=policy)
        names: set[str] = set()
        while not {"plain", "counted", "grouped"} <= names:  # each node has to hear of them
            names = set.intersection(*[{one["name"] for one in await kv.namespaces()} for _ in range(6)])
        plain, counted, grouped = kv.namespace("plain"), kv.counters("counted"), kv.sets("grouped")
        elements = [f"element-{number:03d}" for number in range(ELEMENTS)]
        for number in range(keys):
            (await grouped.add_many(f"key-{number:012d}", elements)).raise_first()
        calls: dict[str, Call] = {
            "lww": lambda key: plain.put(f"key-{key:012d}", VALUE),
            "counter": lambda key: counted.increment(f"key-{key:012d}"),
            "set": lambda key: grouped.add(f"key-{key:012d}", rng.choice(elements)),
        }
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(await writes_per_s(call, keys, callers, seconds))
    return found


def measure(keys: int, callers: int, rounds: int, seconds: float) -> Report:
    report = Report(counter_bytes_9_actors=counter_bytes(), set_bytes_per_element=set_bytes())
    report.merge_10k_ms, report.delta_into_10k_ms = merge_times_ms()
    with Cluster(nodes=3) as cluster:
        found = asyncio.run(measure_writes(cluster.addresses, keys, callers, rounds, seconds))
    report.lww_writes_per_s, report.counter_writes_per_s, report.set_writes_per_s = (
        median(found[name]) for name in ("lww", "counter", "set")
    )
    report.counter_vs_lww_writes = quotient(report.counter_writes_per_s, report.lww_writes_per_s)
    report.set_vs_lww_writes = quotient(report.set_writes_per_s, report.lww_writes_per_s)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, with the machine")
    parser.add_argument("--keys", type=int, default=KEYS, help="keys of each kind, sets of 100 elements among them (200)")
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers (64)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, in which the kinds take turns (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of one kind in one round (2)")
    asked = parser.parse_args()
    report = measure(asked.keys, asked.callers, asked.rounds, asked.seconds)
    figures = asdict(report)
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures | {"machine": machine_facts(Path.cwd())}, indent=2) + "\n", encoding="utf-8")
    print(table(["figure", "value"], [[name, cell(value, 3)] for name, value in figures.items()]))


if __name__ == "__main__":
    main()
