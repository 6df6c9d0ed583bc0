"""`python -m benchmarks.geo`: three datacenters of three nodes on this machine, 80 ms apart, under load, and after a
cut.

Nine real nodes with the proxies of `geokv lab` between them, and a process with clients near each datacenter:

    steady   writes at QUORUM at a steady offered rate: what is acknowledged, lag, whether lag grows, bytes on the WAN
    search   (--search) the same at rising rates: the highest that is held without growing lag
    drain    one datacenter is cut off, the others take 200,000 records, the cut heals: how fast it catches up

Lag is a record's age when it comes in at the node that receives it in another datacenter; clocks are one here, so it
is exact. In the end all replicas are compared: they must be equal, or the benchmark exits 1.

Clients, nodes and proxies share the cores of this machine; it says how busy each was, and how much was used by
others. Exits 1 where it failed, 2 for arguments that make no sense; an aim that is not met is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import zstandard

from benchmarks.common import BenchmarkError, disk_directory, machine_facts, quotient
from benchmarks.geo_clients import KEY_BYTES, KEYS_PER_DC, VALUE_BYTES, make_value
from benchmarks.geo_lab import GeoLab, Snapshot
from benchmarks.geo_load import WARM_UP_S, dc_figures, events_between, process_figures, run_load
from benchmarks.geo_report import (
    Figures,
    aims,
    bucket_limit,
    bucket_percentile,
    dcs_table,
    processes_table,
    rounded,
)
from benchmarks.peers import OTHER_CORES_MAX, raise_open_files_limit, write_json
from geokv.errors import GeokvError
from geokv.lab.wan.server import Kind

RATE_DEFAULT: Final = 4_100.0  # a little above the aim, so that an edge of the window does not decide
SECONDS_DEFAULT: Final = 20.0
ROUND_TRIP_MS: Final = 80
RECORDS_DEFAULT: Final = 200_000
FILL_CALLERS: Final = 256
FILL_PER_S_MIN: Final = 200.0
DRAIN_S_MAX: Final = 180.0
DRAIN_POLL_S: Final = 0.25
SEARCH_STEP: Final = 1.2
SEARCH_STEPS_DOWN_MAX: Final = 12
SEARCH_SECONDS: Final = 10.0
SEARCH_RATE_MAX: Final = 100_000.0
EQUAL_S_MAX: Final = 30.0
PHASES: Final = ("steady", "drain")
EXIT_FAILED, EXIT_USAGE = 1, 2


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    rate: float
    seconds: float
    round_trip_ms: int
    records: int
    phases: tuple[str, ...]
    is_search: bool
    probes_per_s: float
    proxies: Kind | None
    directory: Path
    json_file: Path | None

    def as_json(self) -> Figures:
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "warm_up_s": WARM_UP_S,
            "round_trip_ms": self.round_trip_ms,
            "drain_records": self.records,
            "phases": list(self.phases),
            "key_bytes": KEY_BYTES,
            "value_bytes": VALUE_BYTES,
            "keys": KEYS_PER_DC,
            "probes_per_s": self.probes_per_s,
            "consistency": "QUORUM",
            "value_alone_compressed": rounded(_compressed(1), 3),
            "values_by_hundred_compressed": rounded(_compressed(100), 3),
        }


def say(line: str) -> None:
    """Progress goes to standard error; standard output is the result."""
    print(line, file=sys.stderr, flush=True)


def _compressed(together: int) -> float:
    """What zstd makes of so many of the values at a time, as a share: how compressible they are."""
    source = random.Random(0)
    text = b"".join(make_value(source) for _ in range(together))
    return len(zstandard.ZstdCompressor(level=3).compress(text)) / len(text)


def empty_result(settings: Settings) -> Figures:
    """All keys, nothing measured."""
    return {
        "writes_per_s": None,
        "lag_p50_ms": None,
        "lag_p99_ms": None,
        "one_way_ms": settings.round_trip_ms / 2,
        "drain_per_s": None,
        "wan_bytes_per_payload_byte": None,
        "lag_is_growing": None,
        "highest_writes_per_s": None,
        "write_p50_ms": None,
        "write_p99_ms": None,
        "write_errors": None,
        "replicas_are_equal": None,
        "other_cores": None,
        "machine": machine_facts(settings.directory),
        "settings": settings.as_json(),
        "proxies": None,
        "steady": None,
        "search": None,
        "drain": None,
        "aims": [],
        "failed": None,
    }


# --- steady load ------------------------------------------------------------------------------------------------


def measure_steady(lab: GeoLab, settings: Settings, result: Figures) -> None:
    """The steady phase into the result."""
    say(f"steady: {settings.rate:,.0f} writes/s for {settings.seconds:g} s ...")
    bytes_before = lab.wan_bytes()
    before = lab.snapshot()
    load = run_load(lab, settings.rate, settings.seconds, settings.probes_per_s, result["one_way_ms"])
    lab.settle()
    after = lab.snapshot()
    payload_bytes = load.acknowledged * (KEY_BYTES + VALUE_BYTES) * (len(lab.dcs) - 1)
    wan = lab.wan_bytes() - bytes_before
    buckets = load.buckets()
    result |= {
        "writes_per_s": rounded(load.writes_per_s),
        "lag_p50_ms": rounded(bucket_percentile(buckets, 50)),
        "lag_p99_ms": rounded(bucket_percentile(buckets, 99)),
        "wan_bytes_per_payload_byte": rounded(quotient(wan, payload_bytes), 4),
        "lag_is_growing": load.grows,
        "write_p50_ms": load.write_percentile(50),
        "write_p99_ms": load.write_percentile(99),
        "write_errors": load.errors,
        "other_cores": rounded(load.other_cores, 2),
    }
    result["steady"] = {
        "is_sustained": load.is_sustained,
        "lag_p99_ms_at_most": bucket_limit(buckets, 99),
        "lag_records": {("more" if limit == float("inf") else f"{limit:g}"): count for limit, count in buckets if count},
        "halves": [half.as_json() for half in load.halves],
        "visible_p50_ms": load.visible_percentile(50),
        "visible_p99_ms": load.visible_percentile(99),
        "visible_probes": sum(count for found in load.clients.values() for _, count in found["visible"]),
        "probes_unseen": sum(found["probes_unseen"] for found in load.clients.values()),
        "held_back": sum(found["held_back"] for found in load.clients.values()),
        "first_error": next((found["first_error"] for found in load.clients.values() if found["first_error"]), None),
        "wan_bytes": wan,
        "payload_bytes": payload_bytes,
        "batch_bytes_per_payload_byte": _shipped(before, after, "ship.wire_bytes", payload_bytes),
        "record_bytes_per_payload_byte": _shipped(before, after, "ship.raw_bytes", payload_bytes),
        "dcs": {dc: dc_figures(lab, load, dc) for dc in lab.dcs},
        "processes": process_figures(load),
        "events": events_between(before, after),
    }


def _shipped(before: Snapshot, after: Snapshot, name: str, payload_bytes: int) -> float | None:
    return rounded(quotient(after.sum(name) - before.sum(name), payload_bytes), 4)


# --- the highest rate -------------------------------------------------------------------------------------------


def search(lab: GeoLab, settings: Settings, result: Figures) -> None:
    """Raise the rate step by step until it is not held, then try once between the last two."""
    tried: list[Figures] = []

    def is_held(rate: float) -> bool:
        lab.settle()
        load = run_load(lab, rate, SEARCH_SECONDS, 0.0, result["one_way_ms"])
        first, second = load.halves
        tried.append(
            {
                "offered_per_s": round(rate),
                "writes_per_s": rounded(load.writes_per_s),
                "is_sustained": load.is_sustained,
                "lag_is_growing": load.grows,
                "write_errors": load.errors,
                "halves": [first.as_json(), second.as_json()],
            }
        )
        held = "held" if load.is_sustained else "not held"
        say(f"search: {rate:,.0f}/s offered, {load.writes_per_s:,.0f}/s acknowledged: {held}")
        return load.is_sustained

    highest_held(is_held, settings.rate)
    result["search"] = tried
    result["highest_writes_per_s"] = max((each["writes_per_s"] for each in tried if each["is_sustained"]), default=None)


def highest_held(is_held: Callable[[float], bool], first: float) -> float | None:
    """The highest rate tried that is held: up (or down) from `first` in steps of SEARCH_STEP, then once in between."""
    rate = first
    if is_held(rate):
        while rate * SEARCH_STEP <= SEARCH_RATE_MAX and is_held(rate * SEARCH_STEP):
            rate *= SEARCH_STEP
    else:
        while not is_held(rate := rate / SEARCH_STEP):
            if rate < first / SEARCH_STEP**SEARCH_STEPS_DOWN_MAX:
                return None
    between = rate * SEARCH_STEP**0.5
    return between if is_held(between) else rate


# --- drain ------------------------------------------------------------------------------------------------------


def measure_drain(lab: GeoLab, settings: Settings, result: Figures) -> None:
    """Cut the last datacenter off, write elsewhere, heal, and watch what it lacks become nothing."""
    away, others = lab.dcs[-1], lab.dcs[:-1]
    say(f"drain: {away} is cut off while {' and '.join(others)} take {settings.records:,} records ...")
    lab.settle()
    lab.lab.links.isolate_dc(away)
    filled = _fill(lab, others, settings.records)
    lab.settle(others)
    backlog = lab.unshipped_to(away)
    say(f"drain: {backlog:,} records wait for {away}; the cut heals ...")
    begun_s = time.monotonic()
    lab.lab.links.heal_dc(away)
    series = list(_watch_drain(lab, away, begun_s))
    took_s = series[-1][0]
    is_done = series[-1][1] == 0
    result["drain_per_s"] = rounded(backlog / took_s) if is_done and backlog else None
    result["drain"] = {
        **filled,
        "backlog_records": backlog,
        "seconds": rounded(took_s, 2) if is_done else None,
        "first_after_s": next((at_s for at_s, left in series if left < backlog), None),
        "left": series[-1][1],
        "series": [[at_s, left] for at_s, left in series],
    }
    if not is_done:
        raise BenchmarkError(f"{series[-1][1]:,} of {backlog:,} records had still not reached {away} after {DRAIN_S_MAX:g} s")


def _fill(lab: GeoLab, dcs: Sequence[str], records: int) -> Figures:
    order = {"do": "fill", "records": records // len(dcs), "callers": FILL_CALLERS}
    begun_s = time.monotonic()
    waiting = lab.order(dict.fromkeys(dcs, order), 60 + records / FILL_PER_S_MIN)
    found = [future.result() for future in waiting.values()]
    took_s = time.monotonic() - begun_s
    acknowledged = sum(each["acknowledged"] for each in found)
    return {
        "acknowledged": acknowledged,
        "errors": sum(each["errors"] for each in found),
        "first_error": next((each["first_error"] for each in found if each["first_error"]), None),
        "fill_writes_per_s": rounded(acknowledged / took_s),
    }


def _watch_drain(lab: GeoLab, away: str, begun_s: float) -> Iterator[tuple[float, int]]:
    """(seconds since the heal, records still missing), until none is or the time is over."""
    while True:
        left = lab.unshipped_to(away)
        took_s = time.monotonic() - begun_s
        yield round(took_s, 2), left
        if left == 0 or took_s > DRAIN_S_MAX:
            return
        time.sleep(DRAIN_POLL_S)


# --- the whole --------------------------------------------------------------------------------------------------


def measure(settings: Settings) -> Figures:
    """Everything that was asked for. What fails is told in `failed`, with the figures measured until then."""
    result = empty_result(settings)
    with tempfile.TemporaryDirectory(prefix="bench-geo-", dir=settings.directory) as place:
        try:
            with GeoLab(Path(place), settings.round_trip_ms, settings.proxies, say) as lab:
                result["proxies"] = lab.proxies
                _measure_phases(lab, settings, result)
        except (BenchmarkError, GeokvError) as error:
            result["failed"] = f"{type(error).__name__}: {error}"
            say(f"FAILED: {error}")
    result["aims"] = [aim.as_json() for aim in aims(result)]
    return result


def _measure_phases(lab: GeoLab, settings: Settings, result: Figures) -> None:
    if "steady" in settings.phases:
        measure_steady(lab, settings, result)
    if settings.is_search:
        search(lab, settings, result)
    if "drain" in settings.phases:
        measure_drain(lab, settings, result)
    lab.settle()
    result["replicas_are_equal"] = _become_equal(lab)
    if not result["replicas_are_equal"]:
        raise BenchmarkError(f"the replicas are not equal {EQUAL_S_MAX:g} s after the last write")


def _become_equal(lab: GeoLab) -> bool:
    """Shipping counts a quorum of each datacenter; the last replica may need a moment more."""
    deadline_s = time.monotonic() + EQUAL_S_MAX
    while not lab.replicas_are_equal():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(1)
    return True


def print_report(result: Figures) -> None:
    """The machine, the tables and the aims, on standard output."""
    for name, fact in result["machine"].items():
        print(f"{name}: {'-' if fact is None else fact}")
    print(f"proxies: {result['proxies'] or '-'}, round trip {result['one_way_ms'] * 2:g} ms\n")
    if result["steady"]:
        print(dcs_table(result["steady"]["dcs"]))
        print()
        print(processes_table(result["steady"]["processes"]))
        seen = result["steady"]
        print(f"\nlag, halves of the time: {seen['halves']}")
        print(f"seen by clients elsewhere after p50 {seen['visible_p50_ms']} ms, p99 {seen['visible_p99_ms']} ms")
    if result["drain"]:
        drained = {name: figure for name, figure in result["drain"].items() if name != "series"}
        print(f"drain: {drained}")
    if result["search"] is not None:
        print(f"highest rate held: {result['highest_writes_per_s'] or '-'} writes/s")
    print(f"replicas are equal: {result['replicas_are_equal']}\n")
    print("\n".join(aim.line() for aim in aims(result)))
    others = result["other_cores"]
    if others is not None and others > OTHER_CORES_MAX:
        print(f"WARNING: other processes used {others:.1f} cores; run it where nothing else runs")
    if result["failed"]:
        print(f"FAILED: {result['failed']}")


# --- from the command line --------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked one by one; ends the program with 2 where they make no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.geo", description=(__doc__ or ""), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    number = _number
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into this file")
    parser.add_argument("--rate", type=number("rate", 30, 100_000), default=RATE_DEFAULT, help="writes/s offered in all (4100)")
    parser.add_argument("--seconds", type=number("seconds", 2, 3_600), default=SECONDS_DEFAULT, help="under steady load (20)")
    parser.add_argument("--round-trip-ms", type=_whole("round trip", 0, 2_000), default=ROUND_TRIP_MS, help="between all (80)")
    parser.add_argument("--records", type=_whole("records", 100, 5_000_000), default=RECORDS_DEFAULT, help="backlog (200000)")
    parser.add_argument("--phases", type=_phases, default=PHASES, help="which, of steady,drain (steady,drain)")
    parser.add_argument("--search", action="store_true", help="search the highest rate without growing lag")
    parser.add_argument("--probes-per-s", type=number("probes", 0, 20), default=1.0, help="probe keys per datacenter (1)")
    parser.add_argument("--proxies", choices=("real", "embedded"), help="Toxiproxy or the lab's own (what there is)")
    parser.add_argument("--directory", type=Path, help="where the nodes write; on a real disk")
    return parser.parse_args(arguments)


def _number(what: str, least: float, most: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        with contextlib.suppress(ValueError):
            if least <= float(text) <= most:
                return float(text)
        raise argparse.ArgumentTypeError(f"{what} must be a number from {least:g} to {most:g}, not {text!r}")

    return convert


def _whole(what: str, least: int, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if text.isdecimal() and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{what} must be a whole number from {least} to {most}, not {text!r}")

    return convert


def _phases(text: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in asked:
        if name not in PHASES:
            raise argparse.ArgumentTypeError(f"unknown phase {name!r}; there are {', '.join(PHASES)}")
    return asked


def _proxies(text: str | None) -> Kind | None:
    kinds: dict[str | None, Literal["real", "embedded"] | None] = {None: None, "real": "real", "embedded": "embedded"}
    return kinds[text]


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and returns the exit code."""
    asked = parse(arguments)
    try:
        directory = disk_directory(asked.directory)
    except (BenchmarkError, OSError) as error:
        say(f"benchmarks.geo: {error}")
        return EXIT_USAGE
    if asked.json is not None and not asked.json.absolute().parent.is_dir():
        say(f"benchmarks.geo: the folder of {asked.json} does not exist; make it first")
        return EXIT_USAGE
    settings = Settings(
        asked.rate,
        asked.seconds,
        asked.round_trip_ms,
        asked.records,
        asked.phases,
        asked.search,
        asked.probes_per_s,
        _proxies(asked.proxies),
        directory,
        asked.json,
    )
    raise_open_files_limit()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # unwinds like Ctrl-C does, so that everything is ended
    try:
        result = measure(settings)
    except KeyboardInterrupt:
        say("benchmarks.geo: stopped; nothing is left running")
        return 128 + signal.SIGINT
    if settings.json_file is not None:
        write_json(settings.json_file, result)
    print_report(result)
    return EXIT_FAILED if result["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
