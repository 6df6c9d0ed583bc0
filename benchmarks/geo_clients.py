"""The clients of `benchmarks.geo`: one process per datacenter, which does what it is told, a line of JSON at a time.

    {"do": "steady", "rate": 1333, "warm_up_s": 3, "seconds": 20, "probes_per_s": 1}    an open loop
    {"do": "fill", "records": 100000, "callers": 256}                                   a closed loop, as fast as it goes
        ──> one line of JSON with what was acknowledged, latencies in tenths of a millisecond with how often each occurred

An open loop sends at the offered rate whatever comes back, and a call's latency counts from the moment at which it
was due, so a stall of the cluster is seen by all calls that it delays. A *probe* is a key that one datacenter writes
and the clients of another read until it is there: what an application sees, in steps of PROBE_POLL_S. It checks the
nodes' own figures of lag from outside.

Invariants: at most WAITING_MAX calls wait at once; what is held back by that is counted. Ends when its standard input
does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from geokv import AsyncClient

KEY_BYTES: Final = 16
VALUE_BYTES: Final = 256
KEYS_PER_DC: Final = 50_000
VALUES_TOTAL: Final = 20_000  # so many lie between two that are equal: far more than one batch holds
WAITING_MAX: Final = 4_096
CALL_TIMEOUT_S: Final = 10.0
READY_TIMEOUT_S: Final = 30.0
TICK_S: Final = 0.002
BUCKETS_PER_MS: Final = 10  # latencies are counted in tenths of a millisecond
PROBE_POLL_S: Final = 0.004
PROBE_S_MAX: Final = 10.0

_TEXT: Final = """
account address amount archive balance basket battery bicycle blanket bottle branch bridge business camera
candle carpet castle century chapter charger climate coffee colour comfort company copper cotton counter
country courier curtain customer delivery deposit diesel discount district doctor dollar engine evening
exchange factory family feather figure finger forest format freight friend future garden glass harbour history
holiday hospital industry invoice island jacket journey kitchen ladder language leather letter library machine
magazine manager market material measure member message minute mirror moment morning mountain museum natural
network notebook number object office opinion orange order package painting paper parcel partner pattern
payment pencil picture pillow planet plastic platform pocket postage present process product project quality
quarter question receipt refund region repair return river school season second secret service silver spring
station street student summer supply surface system table ticket timber travel uniform valley vehicle village
voucher warehouse weather window winter without worker yellow
"""
_PEOPLE: Final = """
Ada Ahmed Aiko Alvaro Amina Anders Beatriz Chen Dagny Deepa Elif Farid Fatou Goran Hanna Ines Ivo Jamila Kofi
Lars Leila Lucia Magnus Mei Naveen Noor Olga Pablo Priya Ravi Rosa Samir Sofia Tariq Ulla Vera Wanjiru Yusuf
Zofia
"""
_PLACES: Final = "Accra Bergen Cusco Delhi Essen Fukuoka Ghent Hanoi Izmir Jaipur Kyiv Lagos Malaga Nantes Oslo Pune"
_WORDS, _NAMES, _CITIES = _TEXT.split(), _PEOPLE.split(), _PLACES.split()


def make_value(source: random.Random) -> bytes:
    """One cart of a shop as JSON text of exactly VALUE_BYTES bytes."""
    month, day, hour, minute = (source.randrange(*bounds) for bounds in ((1, 13), (1, 29), (24,), (60,)))
    items = [{"sku": f"{source.randrange(10**5):05d}", "n": source.randrange(1, 9)} for _ in range(source.randrange(1, 4))]
    cart = {
        "user": f"u-{source.randrange(10**6):06d}",
        "name": f"{source.choice(_NAMES)} {source.choice(_NAMES)}",
        "city": source.choice(_CITIES),
        "at": f"2026-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}Z",
        "items": items,
        "total": source.randrange(100, 100_000) / 100,
        "note": "",
    }
    text = json.dumps(cart, separators=(",", ":"))[:-2]  # without the last quotation mark and brace
    while len(text) < VALUE_BYTES:
        text += source.choice(_WORDS) + " "
    return (text[: VALUE_BYTES - 2] + '"}').encode("ascii")


def make_values(seed: int) -> list[bytes]:
    """Values like those of a service: text with a fixed form and changing content, the same for the same seed."""
    source = random.Random(seed)
    return [make_value(source) for _ in range(VALUES_TOTAL)]


def key_of(place: int, number: int) -> bytes:
    """A key of KEY_BYTES bytes; each datacenter's clients have keys of their own."""
    return b"cart:%02d:%08d" % (place, number)


def probe_key(place: int, number: int) -> bytes:
    return b"probe:%02d:%07d" % (place, number)


@dataclass
class Tally:
    """What the calls of one task came to. Times are those of the loop's clock."""

    opens_s: float = 0.0
    closes_s: float = float("inf")
    acknowledged: int = 0
    acknowledged_in_window: int = 0
    errors: int = 0
    first_error: str | None = None
    held_back: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    visible: Counter[int] = field(default_factory=Counter)
    probes_unseen: int = 0

    def acknowledge(self, due_s: float, now_s: float) -> None:
        """One write was acknowledged; it was due at `due_s`."""
        self.acknowledged += 1
        if self.opens_s <= now_s < self.closes_s:
            self.acknowledged_in_window += 1
        if self.opens_s <= due_s < self.closes_s:
            self.latencies[int((now_s - due_s) * 1_000 * BUCKETS_PER_MS)] += 1

    def fail(self, error: Exception) -> None:
        self.errors += 1
        self.first_error = self.first_error or f"{type(error).__name__}: {error}"

    def as_json(self) -> dict[str, Any]:
        return {
            "acknowledged": self.acknowledged,
            "acknowledged_in_window": self.acknowledged_in_window,
            "errors": self.errors,
            "first_error": self.first_error,
            "held_back": self.held_back,
            "latencies": sorted(self.latencies.items()),
            "visible": sorted(self.visible.items()),
            "probes_unseen": self.probes_unseen,
        }


class Clients:
    """All clients of one datacenter: tasks that share one AsyncClient, as those of an application do."""

    def __init__(self, client: AsyncClient, place: int, places: int) -> None:
        self._client = client
        self._place = place
        self._others = [other for other in range(places) if other != place]
        self._values = make_values(place)
        self._source = random.Random(place)
        self._probes = 0

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order and say what came of it."""
        gc.collect()
        gc.freeze()
        if order.pop("do") == "fill":
            return (await self._fill(**order)).as_json()
        return (await self._steady(**order)).as_json()

    async def _write(self, index: int, due_s: float, tally: Tally) -> None:
        key = key_of(self._place, int(self._source.random() * KEYS_PER_DC))
        try:
            await self._client.put(key, self._values[index % VALUES_TOTAL], consistency="QUORUM")
        except Exception as error:  # whatever it is, the load goes on and it is told
            tally.fail(error)
        else:
            tally.acknowledge(due_s, asyncio.get_running_loop().time())

    # --- as fast as it goes

    async def _fill(self, records: int, callers: int) -> Tally:
        tally, left = Tally(), iter(range(records))

        async def caller() -> None:
            for index in left:
                await self._write(index, 0.0, tally)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(callers):
                tasks.create_task(caller())
        return tally

    # --- at a steady rate

    async def _steady(self, rate: float, warm_up_s: float, seconds: float, probes_per_s: float, probe_after_s: float) -> Tally:
        begins_s = asyncio.get_running_loop().time()
        tally = Tally(begins_s + warm_up_s, begins_s + warm_up_s + seconds)
        whole_s = warm_up_s + seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._offer(rate, begins_s, whole_s, tally))
            if probes_per_s:
                first, self._probes = self._probes, self._probes + int(whole_s * probes_per_s)
                times_s = [begins_s + (at + 1) / probes_per_s for at in range(self._probes - first)]
                tasks.create_task(self._write_probes(first, times_s, tally))
                for other in self._others:
                    tasks.create_task(self._see_probes(other, first, [at_s + probe_after_s for at_s in times_s], tally))
        return tally

    async def _offer(self, rate: float, begins_s: float, whole_s: float, tally: Tally) -> None:
        clock = asyncio.get_running_loop().time
        waiting: set[asyncio.Task[None]] = set()
        sent, last = 0, int(rate * whole_s)
        while sent < last:
            due = min(last, int((clock() - begins_s) * rate))
            may = min(due, sent + WAITING_MAX - len(waiting))
            tally.held_back = max(tally.held_back, due - may)
            for index in range(sent, may):
                task = asyncio.create_task(self._write(index, begins_s + (index + 1) / rate, tally))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
            sent = max(sent, may)
            if clock() - begins_s > whole_s + CALL_TIMEOUT_S:
                break
            await asyncio.sleep(TICK_S)
        if waiting:
            await asyncio.wait(waiting)

    # --- probes

    async def _write_probes(self, first: int, times_s: Sequence[float], tally: Tally) -> None:
        for number, at_s in enumerate(times_s, first):
            await _until(at_s)
            with _counted(tally):
                await self._client.put(probe_key(self._place, number), str(time.time()).encode(), consistency="QUORUM")

    async def _see_probes(self, other: int, first: int, times_s: Sequence[float], tally: Tally) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number, at_s in enumerate(times_s, first):
                tasks.create_task(self._see(probe_key(other, number), at_s, tally))

    async def _see(self, key: bytes, from_s: float, tally: Tally) -> None:
        """Read a key until it is there, and count how long ago it was written then."""
        await _until(from_s)
        ends_s = time.monotonic() + PROBE_S_MAX
        with _counted(tally):
            while time.monotonic() < ends_s:
                got = await self._client.get(key, consistency="ONE")
                if got.value is not None:
                    tally.visible[int((time.time() - float(got.value)) * 1_000 * BUCKETS_PER_MS)] += 1
                    return
                await asyncio.sleep(PROBE_POLL_S)
        tally.probes_unseen += 1


class _counted(contextlib.AbstractContextManager[None]):  # noqa: N801 (used like a function)
    """Errors inside are counted and go no further."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, Exception):
            self._tally.fail(error)
        return isinstance(error, Exception)


async def _until(at_s: float) -> None:
    await asyncio.sleep(max(0.0, at_s - asyncio.get_running_loop().time()))


async def _serve(addresses: list[str], dc: str, place: int, places: int) -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def more() -> None:
        line = sys.stdin.readline()
        if line:
            lines.put_nowait(line)
        else:  # whoever gives the orders is gone
            loop.remove_reader(sys.stdin.fileno())
            task.cancel()

    async with AsyncClient(addresses, dc=dc, timeout=CALL_TIMEOUT_S) as client:
        clients = Clients(client, place, places)
        await client.wait_ready(READY_TIMEOUT_S)
        loop.add_reader(sys.stdin.fileno(), more)
        _answer({"ready": dc})
        while True:
            _answer(await clients.do(json.loads(await lines.get())))


def _answer(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geo_clients", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", action="append", required=True)
    parser.add_argument("--dc", required=True)
    parser.add_argument("--place", type=int, required=True)
    parser.add_argument("--places", type=int, required=True)
    asked = parser.parse_args(arguments)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner, contextlib.suppress(asyncio.CancelledError):
        runner.run(_serve(asked.address, asked.dc, asked.place, asked.places))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
