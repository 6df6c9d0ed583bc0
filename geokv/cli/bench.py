"""`geokv bench`: load from many concurrent callers over the SDK, and what came of it.

Callers are tasks in one process; their calls coalesce into batches by themselves, as those of any program with the SDK do.

Not here: comparisons with other systems (benchmarks/).
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import Any

import click

from geokv.cli import exits
from geokv.cli.addresses import Place, place_options
from geokv.cli.kv import LEVEL_HELP
from geokv.cli.output import print_json, print_table


@dataclass(slots=True)
class Tally:
    """What one kind of operation came to."""

    milliseconds: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)


@click.command(short_help="Put load on a cluster and measure.")
@click.option("--namespace", default="default", show_default=True, help="Where the keys (bench/…) go.")
@click.option("--callers", type=click.IntRange(1, 4096), default=64, show_default=True, help="Concurrent callers.")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="How long.")
@click.option("--reads", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="The share of reads.")
@click.option("--keys", type=click.IntRange(1, 10_000_000), default=10_000, show_default=True, help="So many keys.")
@click.option("--value-bytes", type=click.IntRange(0, 1 << 20), default=256, show_default=True, help="Size of values.")
@click.option("--consistency", metavar="LEVEL", help=LEVEL_HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@place_options
def bench(
    namespace: str,
    callers: int,
    seconds: float,
    reads: float,
    keys: int,
    value_bytes: int,
    consistency: str | None,
    as_json: bool,
    place: Place,
) -> int:
    """Put load on a cluster and measure. Exit code 4 where nothing at all was answered."""
    load = Load(namespace, callers, seconds, reads, keys, os.urandom(value_bytes), consistency)
    report = asyncio.run(load.run(place))
    if as_json:
        print_json(report)
    else:
        columns = ("kind", "per_s", "p50_ms", "p99_ms", "failed")
        rows = [(kind, *(report[kind][column] for column in columns[1:])) for kind in ("writes", "reads")]
        print_table(("", "per s", "p50 ms", "p99 ms", "failed"), rows)
        for kind in ("writes", "reads"):
            for reason, count in report[kind]["failures"].items():
                click.echo(f"{kind}: {count} x {reason}", err=True)
    return exits.DONE if report["writes"]["done"] + report["reads"]["done"] else exits.UNAVAILABLE


@dataclass(slots=True)
class Load:
    """The load, and its callers."""

    namespace: str
    callers: int
    seconds: float
    reads: float
    keys: int
    value: bytes
    consistency: str | None
    tallies: dict[str, Tally] = field(default_factory=lambda: {"writes": Tally(), "reads": Tally()})

    async def run(self, place: Place) -> dict[str, Any]:
        from geokv.client import AsyncClient

        async with AsyncClient(place.addresses(), dc=place.dc, failover=place.failover, timeout=place.timeout_s) as client:
            await client.wait_ready()
            space = client.namespace(self.namespace)
            began_s = time.perf_counter()
            await asyncio.gather(*(self._call(space, number, began_s + self.seconds) for number in range(self.callers)))
            took_s = time.perf_counter() - began_s
        figures = {kind: _figures(tally, took_s) for kind, tally in self.tallies.items()}
        return {"callers": self.callers, "seconds": round(took_s, 3), "value_bytes": len(self.value), **figures}

    async def _call(self, space: Any, number: int, until_s: float) -> None:
        """One caller: one operation after the other."""
        import random

        from geokv.errors import GeokvError, InvalidRequest

        rng = random.Random(number)
        while (began_s := time.perf_counter()) < until_s:
            key = b"bench/%08d" % rng.randrange(self.keys)
            kind = "reads" if rng.random() < self.reads else "writes"
            tally = self.tallies[kind]
            try:
                if kind == "reads":
                    await space.get(key, consistency=self.consistency)
                else:
                    await space.put(key, self.value, consistency=self.consistency)
            except InvalidRequest:
                raise  # the same for every caller, for ever: the request is wrong, not the cluster
            except GeokvError as error:
                tally.failures[type(error).__name__] = tally.failures.get(type(error).__name__, 0) + 1
            else:
                tally.milliseconds.append((time.perf_counter() - began_s) * 1000)


def _figures(tally: Tally, seconds: float) -> dict[str, Any]:
    ordered = sorted(tally.milliseconds)

    def at(share: float) -> float | None:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) if ordered else None

    return {
        "done": len(ordered),
        "per_s": round(len(ordered) / seconds, 1),
        "p50_ms": at(0.50),
        "p99_ms": at(0.99),
        "failed": sum(tally.failures.values()),
        "failures": tally.failures,
    }
