"""The load that every system gets: so many callers, each with one call at a time, for so many seconds.

A closed loop: a caller sends its next call when the one before was answered. The first part of every phase
warms up and is not counted. What is counted are the calls that ended inside the window; their latency
includes what lay before. CPU is read at both edges of the window, of this process (the client), of the
servers, and of the whole machine: what is left over, others used, and figures from a machine that was busy
with something else say little.

Invariants:
- A read that finds nothing, or a value of another length, is an error, as is any exception of the client.
- With an error every caller goes on; the figures of a phase in which nothing succeeded are None.
- The same keys and values for all systems.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.common import BenchmarkError, cpu_seconds_of, machine_cpu_seconds, percentile, quotient
from benchmarks.systems import Caller, Cluster

KEY_BYTES = 16
VALUE_BYTES = 256
KEYS_TOTAL = 10_000
VALUES_TOTAL = 512
LOAD_CALLERS = 64
LOAD_ERRORS_MAX = 100
WARM_UP_SHARE = 0.25
WARM_UP_S_MAX = 1.0
PHASE_GRACE_S = 30.0
ERROR_PAUSE_S = 0.01  # so that a caller whose every call fails at once leaves time for the others

KEYS = [b"key-%012d" % number for number in range(KEYS_TOTAL)]
Call = Callable[[bytes], Awaitable[None]]


@dataclass
class Tally:
    """What the callers of one phase saw inside the window."""

    is_counting: bool = False
    is_over: bool = False
    latencies_ms: array[float] = field(default_factory=lambda: array("d"))
    errors: int = 0
    first_error: str | None = None


@dataclass(frozen=True)
class PhaseFigures:
    """One phase, measured. Figures that were not measured are None."""

    calls_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    client_cpu_us: float | None
    server_cpu_us: float | None
    other_cores: float | None
    errors: int
    first_error: str | None

    @property
    def cpu_us(self) -> float | None:
        """CPU of client and servers per call."""
        if self.client_cpu_us is None or self.server_cpu_us is None:
            return None
        return self.client_cpu_us + self.server_cpu_us


def make_values() -> list[bytes]:
    """Values that do not compress, the same in every run."""
    source = random.Random(1)
    return [source.randbytes(VALUE_BYTES) for _ in range(VALUES_TOTAL)]


def writing(caller: Caller, values: Sequence[bytes]) -> Call:
    """A call that puts the next value of `values` under the key it is given."""
    following = itertools.cycle(values)

    async def call(key: bytes) -> None:
        await caller.put(key, next(following))

    return call


def reading(get: Callable[[bytes], Awaitable[bytes | None]]) -> Call:
    """A call that gets the key it is given and checks that the value is whole."""

    async def call(key: bytes) -> None:
        value = await get(key)
        if value is None:
            raise BenchmarkError(f"read nothing under {key!r}, which was written before")
        if len(value) != VALUE_BYTES:
            raise BenchmarkError(f"read {len(value)} bytes under {key!r} instead of {VALUE_BYTES}")

    return call


async def load_keys(cluster: Cluster, values: Sequence[bytes]) -> None:
    """Writes every key once, so that every later read has something to find."""
    waiting = iter(zip(KEYS, itertools.cycle(values), strict=False))
    errors = 0

    async def one(caller: Caller) -> None:
        nonlocal errors
        for key, value in waiting:
            while not await _has_put(caller, key, value):
                errors += 1
                if errors > LOAD_ERRORS_MAX:
                    raise BenchmarkError(f"more than {LOAD_ERRORS_MAX} errors while the keys were first written")

    async with cluster.connect(LOAD_CALLERS) as callers, asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(one(caller))


async def _has_put(caller: Caller, key: bytes, value: bytes) -> bool:
    try:
        await caller.put(key, value)
    except Exception:  # the clients' error trees have nothing in common; they are counted above
        await asyncio.sleep(ERROR_PAUSE_S)
        return False
    return True


async def run_phase(calls: Sequence[Call], pids: Sequence[int], seconds: float, seed: int) -> PhaseFigures:
    """Runs one closed loop per call in `calls`, and counts for `seconds` after the warm-up."""
    tally = Tally()
    gc.collect()
    loops = [
        asyncio.create_task(_call_until_over(call, tally, random.Random(seed * 1_000 + number)))
        for number, call in enumerate(calls)
    ]
    try:
        figures = await _measure(tally, pids, seconds)
        tally.is_over = True
        await asyncio.wait_for(asyncio.gather(*loops), PHASE_GRACE_S)
    except TimeoutError:
        raise BenchmarkError(f"calls were still unanswered {PHASE_GRACE_S:.0f} s after the end") from None
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
    return figures


async def _call_until_over(call: Call, tally: Tally, source: random.Random) -> None:
    clock = time.perf_counter
    while not tally.is_over:
        key = KEYS[int(source.random() * KEYS_TOTAL)]
        started_s = clock()
        try:
            await call(key)
        except Exception as error:  # as above
            if not tally.errors:
                tally.first_error = f"{type(error).__name__}: {error}"
            tally.errors += 1
            await asyncio.sleep(ERROR_PAUSE_S)
            continue
        if tally.is_counting:
            tally.latencies_ms.append((clock() - started_s) * 1_000)


@dataclass(frozen=True)
class Clocks:
    """What has been used up to one moment, in seconds; None where it cannot be read."""

    elapsed_s: float
    client_s: float
    servers_s: float | None
    machine_s: float | None

    @classmethod
    def read(cls, pids: Sequence[int]) -> Clocks:
        servers_s = cpu_seconds_of(pids) if pids else None
        return cls(time.perf_counter(), time.process_time(), servers_s, machine_cpu_seconds())

    def since(self, earlier: Clocks) -> Clocks:
        """What was used between the two."""
        return Clocks(
            self.elapsed_s - earlier.elapsed_s,
            self.client_s - earlier.client_s,
            _minus(self.servers_s, earlier.servers_s),
            _minus(self.machine_s, earlier.machine_s),
        )

    @property
    def other_cores(self) -> float | None:
        """How many cores were busy with neither the client nor the servers."""
        others_s = _minus(_minus(self.machine_s, self.servers_s), self.client_s)
        return None if others_s is None else max(0.0, others_s / self.elapsed_s)


def _minus(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


async def _measure(tally: Tally, pids: Sequence[int], seconds: float) -> PhaseFigures:
    await asyncio.sleep(min(WARM_UP_S_MAX, seconds * WARM_UP_SHARE))
    before = Clocks.read(pids)
    tally.is_counting = True
    await asyncio.sleep(seconds)
    tally.is_counting = False
    return _figures(tally, Clocks.read(pids).since(before))


def _figures(tally: Tally, used: Clocks) -> PhaseFigures:
    ordered = sorted(tally.latencies_ms)
    calls = len(ordered)
    return PhaseFigures(
        calls_per_s=calls / used.elapsed_s if calls else None,
        p50_ms=percentile(ordered, 50),
        p99_ms=percentile(ordered, 99),
        client_cpu_us=quotient(used.client_s * 1e6, calls),
        server_cpu_us=quotient(None if used.servers_s is None else used.servers_s * 1e6, calls),
        other_cores=used.other_cores,
        errors=tally.errors,
        first_error=tally.first_error,
    )
