"""`python -m benchmarks.storage`: geokv's engine beside RocksDB and LMDB, all through Python, in one run.

16-byte keys and 256-byte values, in batches that are synced before they count. Each store has a process of its own and fresh
files on a real disk; they take turns. 1,000,000 pairs are loaded in random order, compaction included; then come
overwrites, gets in and out of the caches, absent keys, scans and a restart. What is not installed is skipped by name
(RocksDB is the extra `rocksdb`). Last, geokv with encryption at rest beside geokv without, by turns in one process.

Exits 1 when a store that is installed failed, 2 for arguments that make no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.common import BenchmarkError, cell, disk_directory, machine_facts, quotient, table
from benchmarks.stores import STORES, Geokv, Pairs, Store, WorkedJob
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.lsm.engine import LsmOptions
from geokv.storage.lsm.worker import NICENESS

VALUE_BYTES: Final = 256
BATCH: Final = 500
HOT: Final = 10_000
ROUNDS: Final = 3  # of what takes less than a second; the median counts
COUNTED_S: Final = 5.0  # for as long at a time loops are watched beside what only counts
STALL_PASSES: Final = 10  # so that each kind of job comes several times
ENCRYPTION_PAIRS: Final = 100_000
ENCRYPTION_ROUNDS: Final = 200
ENCRYPTION: Final = "encryption"  # its process
NEEDS: Final = {"geokv": "geokv", "rocksdb": "rocksdict", "lmdb": "lmdb"}
AIMS: Final = {
    "put_vs_rocksdb": 0.3,
    "cached_get_vs_rocksdb": 0.3,
    "absent_gets_per_s": 300_000,
    "overwrite_vs_empty": 0.7,
    "rss_mb": -300,  # at most
    "loop_stall_max_ms": -20,
    "restart_s": -5,
}


Tick = tuple[float, float]
"""When a loop's timer was due, and by how much it was late, in seconds."""


def key_of(number: int) -> bytes:
    return b"key-%012d" % number


def batches(numbers: list[int], rng: random.Random) -> Iterator[Pairs]:
    for start in range(0, len(numbers), BATCH):
        yield [(key_of(number), rng.randbytes(VALUE_BYTES)) for number in numbers[start : start + BATCH]]


# --- one store, in a process of its own --------------------------------------------------------------------------------


def measure(name: str, directory: Path, pairs: int) -> dict[str, Any]:
    """All figures of one store."""
    rng = random.Random(7)
    numbers = list(range(pairs))
    rng.shuffle(numbers)
    figures: dict[str, Any] = {}
    first = min(pairs // 5, 100_000)
    place = directory / "0"
    store = _opened(name, place)
    empty = [_puts(store, numbers[:first], rng)]
    begun = time.perf_counter()
    _puts(store, numbers[first:], rng)
    store.settle()
    loaded_s = time.perf_counter() - begun
    figures["load_per_s"] = (pairs - first) / loaded_s if pairs > first else None
    user_bytes = pairs * (16 + VALUE_BYTES)
    written = store.written_bytes()
    figures["write_amplification"] = quotient(written, user_bytes)
    hot = [key_of(rng.randrange(pairs)) for _ in range(min(HOT, pairs))]
    for _ in range(2):
        _gets(store, hot)  # into the caches
    figures["cached_get_per_s"] = max(_gets(store, hot) for _ in range(5))
    figures["get_per_s"] = _gets(store, [key_of(rng.randrange(pairs)) for _ in range(100_000)])
    figures["absent_get_per_s"] = _gets(store, [b"absent-%09d" % rng.randrange(10**9) for _ in range(200_000)], is_there=False)
    figures["scan_per_s"] = _scans(store, pairs, rng)
    figures["debt_bytes"] = store.debt_bytes()
    store.close()
    del store  # with its caches, which would count beside those of the next
    gc.collect()
    begun = time.perf_counter()
    store = _opened(name, place)
    assert store.get(key_of(1)) is not None
    figures["restart_s"] = time.perf_counter() - begun
    for _ in range(2):
        _gets(store, [key_of(rng.randrange(pairs)) for _ in range(100_000)])
    figures["rss_mb"] = _rss_mb()
    overwrites = []
    for _ in range(ROUNDS):
        overwrites.append(_puts(store, [rng.randrange(pairs) for _ in range(first)], rng))
        store.settle()  # so that each begins as in an empty store, with nothing beside it
    figures["overwrite_per_s"] = median(overwrites)
    if isinstance(store, Geokv):
        figures |= asyncio.run(_stalls(store, pairs, rng))
    store.close()
    pattern = "*.sst" if name == "geokv" else "*"
    files = [path for path in place.rglob(pattern) if path.is_file()]
    figures["space_amplification"] = sum(path.stat().st_blocks * 512 for path in files) / user_bytes
    for number in range(1, ROUNDS):
        with closing(_opened(name, directory / str(number))) as other:
            empty.append(_puts(other, numbers[:first], rng))
    figures["put_empty_per_s"] = median(empty)
    return figures


def _opened(name: str, directory: Path) -> Store:
    directory.mkdir(exist_ok=True)
    return STORES[name](directory)


def _puts(store: Store, numbers: list[int], rng: random.Random) -> float:
    made = list(batches(numbers, rng)) if len(numbers) <= 200_000 else batches(numbers, rng)
    begun = time.perf_counter()
    for batch in made:
        store.put(batch)
    return len(numbers) / (time.perf_counter() - begun)


def _gets(store: Store, keys: list[bytes], is_there: bool = True) -> float:
    get = store.get
    begun = time.perf_counter()
    found = sum([get(key) is not None for key in keys])
    seconds = time.perf_counter() - begun
    assert found == (len(keys) if is_there else 0), f"{found} of {len(keys)} found"
    return len(keys) / seconds


def _scans(store: Store, pairs: int, rng: random.Random) -> float:
    """Pairs per second in scans of 1,000."""
    count = 0
    begun = time.perf_counter()
    for _ in range(50):
        count += sum(1 for _ in islice(store.scan(key_of(rng.randrange(pairs))), 1000))
    return count / (time.perf_counter() - begun)


async def _stalls(store: Geokv, pairs: int, rng: random.Random) -> dict[str, Any]:
    """How late a loop's timer was at most while flushes and compactions run; in the same loop while none does; and while
    nothing of the engine runs, but a thread and a process of the worker's niceness count, which is the machine's part.
    """
    loop = asyncio.get_running_loop()
    sys.setswitchinterval(0.0005)  # as a node's process has it
    ticks: list[Tick] = []

    async def latest(work: Callable[[], Any]) -> float:
        begun, done = len(ticks), loop.run_in_executor(None, work)
        while not done.done():
            due = loop.time() + 0.002
            await asyncio.sleep(0.002)
            ticks.append((due, loop.time() - due))
        await done
        return 1e3 * max([late for _, late in ticks[begun:]], default=0.0)

    def write(count: int) -> None:
        for batch in batches([rng.randrange(pairs) for _ in range(count)], rng):
            store.put(batch)

    def write_and_settle() -> None:
        write(pairs // 4)
        store.settle()

    # Less than a memtable first, so that there is nothing beside it; what stalls then is the machine's.
    quiet = await latest(lambda: write(70_000))
    busy = await latest(_count)
    before = len(store.jobs)
    worst = [await latest(write_and_settle) for _ in range(STALL_PASSES)]
    by_kind = stalls_of(store.jobs[before:], ticks)
    return {
        "loop_stall_quiet_ms": quiet,
        "loop_stall_busy_ms": busy,
        "loop_stall_max_ms": max([min(stalls) for stalls in by_kind.values()], default=None),
        "loop_stall_worst_ms": max(worst),
        "loop_stalls_ms": by_kind,
    }


def stalls_of(jobs: list[WorkedJob], ticks: list[Tick]) -> dict[str, list[float]]:
    """Of each kind of job, how late the loop was at most during one, in ms, for the longer half of them, least first.

    What a job does to a loop, every job of its kind and size does; what the machine does meanwhile comes and goes, and only
    adds (a virtual one that hands freed memory back stops its processors for up to 90 ms). So the least is the job's.
    """
    found: dict[str, list[float]] = {}
    for kind in sorted({job.kind for job in jobs}):
        spans = sorted([(job.ended_s - job.begun_s, job.begun_s, job.ended_s) for job in jobs if job.kind == kind])
        longer = spans[len(spans) // 2 :]
        worst = [
            max([late for due, late in ticks if due + late > begun and due < ended], default=0) for _, begun, ended in longer
        ]
        found[kind] = sorted(1e3 * late for late in worst)
    return found


def _latest(ticks: list[Tick], begun_s: float, ended_s: float) -> float:
    return max([late for due, late in ticks if due + late > begun_s and due < ended_s], default=0.0)


def _count() -> None:
    with subprocess.Popen([sys.executable, "-c", f"import os; os.nice({NICENESS})\nwhile True: pass"]) as beside:
        end_s = time.perf_counter() + COUNTED_S
        while time.perf_counter() < end_s:
            pass
        beside.kill()


def measure_encryption(directory: Path, pairs: int) -> dict[str, Any]:
    """What encryption costs: the same work by turns, so that both meet the same machine; ratios of medians."""
    uncached = LsmOptions(block_cache_bytes=0, row_cache_bytes=0)  # each get decrypts and decompresses a block
    keys_given = Keys(KeyRing({"bench": bytes(range(32))}, "bench"))
    stores = {
        "plain": Geokv(directory / "plain", None, uncached),
        "encrypted": Geokv(directory / "encrypted", keys_given, uncached),
    }
    loaded = min(pairs, ENCRYPTION_PAIRS)
    taken: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        begun, begun_cpu = time.perf_counter(), time.process_time()
        work()
        taken.setdefault(name, []).append((time.process_time() - begun_cpu, time.perf_counter() - begun))

    rng = random.Random(11)
    for numbers in batches(list(range(loaded)), rng):
        for name, store in stores.items():
            timed(f"put_{name}", partial(store.put, numbers))
    for store in stores.values():
        store.settle()
    for _ in range(ENCRYPTION_ROUNDS):
        keys = [key_of(rng.randrange(loaded)) for _ in range(500)]
        for name, store in stores.items():
            timed(f"get_{name}", partial(_gets, store, keys))
    for store in stores.values():
        store.close()

    def ratio(what: str, index: int) -> float:
        plain, encrypted = (median(one[index] for one in taken[f"{what}_{name}"]) for name in stores)
        return plain / encrypted

    return {
        f"encrypted_{what}_vs_plain{suffix}": ratio(what, index)
        for what in ("put", "get")
        for index, suffix in ((0, "_cpu"), (1, ""))
    }


def _rss_mb() -> float | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return None


# --- all of them ---------------------------------------------------------------------------------------------------------


def run(stores: list[str], directory: Path, pairs: int) -> dict[str, dict[str, Any]]:
    """Measure one store after the other. Raises BenchmarkError where one fails."""
    found: dict[str, dict[str, Any]] = {}
    for name in [*stores, ENCRYPTION]:
        with tempfile.TemporaryDirectory(prefix=f"geokv-storage-{name}-", dir=directory) as place:
            command = [sys.executable, "-m", "benchmarks.storage", "--only", name, "--directory", place, "--pairs", str(pairs)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"{name} failed: {done.stderr.strip()[-1500:]}")
        found[name] = json.loads(done.stdout)
    return found


def summary(found: dict[str, dict[str, Any]], pairs: int) -> dict[str, Any]:
    """The figures that have aims, by name; None for what was not measured."""
    ours = found.get("geokv", {})
    rocksdb, lmdb = found.get("rocksdb", {}), found.get("lmdb", {})
    return {
        "pairs": pairs,
        "put_vs_rocksdb": quotient(ours.get("load_per_s"), rocksdb.get("load_per_s")),
        "put_vs_lmdb": quotient(ours.get("load_per_s"), lmdb.get("load_per_s")),
        "cached_get_vs_rocksdb": quotient(ours.get("cached_get_per_s"), rocksdb.get("cached_get_per_s")),
        **found.get(ENCRYPTION, {}),
        "absent_gets_per_s": ours.get("absent_get_per_s"),
        "overwrite_vs_empty": quotient(ours.get("overwrite_per_s"), ours.get("put_empty_per_s")),
        "rss_mb": ours.get("rss_mb"),
        "loop_stall_max_ms": ours.get("loop_stall_max_ms"),
        "restart_s": ours.get("restart_s"),
        "write_amplification": ours.get("write_amplification"),
        "space_amplification": ours.get("space_amplification"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into this file")
    parser.add_argument("--pairs", type=int, default=1_000_000, help="how many are loaded (1000000)")
    parser.add_argument("--directory", type=Path, help="where the stores write; on a real disk")
    parser.add_argument("--only", choices=(*STORES, ENCRYPTION), help=argparse.SUPPRESS)  # the process of one store
    asked = parser.parse_args()
    if asked.pairs < 1_000:
        parser.error("--pairs must be at least 1000")
    if asked.only == ENCRYPTION:
        print(json.dumps(measure_encryption(asked.directory, asked.pairs)))
        return 0
    if asked.only:
        print(json.dumps(measure(asked.only, asked.directory, asked.pairs)))
        return 0
    try:
        directory = disk_directory(asked.directory)
        there = [name for name in STORES if importlib.util.find_spec(NEEDS[name]) is not None]
        for name in STORES:
            if name not in there:
                print(f"{name} is skipped: {NEEDS[name]} is not installed (pip install 'geokv[rocksdb]')")
        found = run(there, directory, asked.pairs)
    except BenchmarkError as error:
        print(f"benchmarks.storage: {error}", file=sys.stderr)
        return 1
    figures = summary(found, asked.pairs)
    _show({name: one for name, one in found.items() if name in STORES}, figures)
    if asked.json is not None:
        tree = {**figures, "stores": found, "aims": AIMS, "machine": machine_facts(directory)}
        asked.json.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    return 0


def _show(found: dict[str, dict[str, Any]], figures: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name for one in found.values() for name in one if not isinstance(one[name], dict)))
    digits = {name: 2 if name.endswith(("amplification", "_s")) and not name.endswith("per_s") else 0 for name in names}
    print(table(["", *found], [[name, *(cell(one.get(name), digits[name]) for one in found.values())] for name in names]))
    rows = []
    for name, figure in figures.items():
        aim = AIMS.get(name)
        wanted = "" if aim is None else f"at least {aim:g}" if aim > 0 else f"at most {-aim:g}"
        is_met = aim is None or figure is None or (figure >= aim if aim > 0 else figure <= -aim)
        rows.append([name, cell(figure, 2), wanted, "" if is_met else "missed"])
    print()
    print(table(["", "here", "aim", ""], rows))


if __name__ == "__main__":
    sys.exit(main())
