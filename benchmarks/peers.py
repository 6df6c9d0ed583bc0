"""`python -m benchmarks.peers`: geokv beside etcd, Redis and NATS JetStream, three local nodes each.

16-byte keys and 256-byte values; every write is on the disks of a majority before it is acknowledged. The
systems take turns, round after round, so that a machine that gets slower or faster meanwhile does so for all
of them; the medians of the rounds are compared. Only the system that is being measured runs, with fresh files
on a real disk each time. All callers, of every system, are tasks of one asyncio loop in this one process,
which shares the cores with the servers.

What is not installed is skipped by name (benchmarks/install_peers says how to get it); exits 1 when a system
that is installed failed, 2 for arguments that make no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import steady
from benchmarks.common import BenchmarkError, disk_directory, machine_facts
from benchmarks.report import (
    OURS,
    BySystem,
    Figures,
    aims,
    aims_text,
    disturbance,
    empty_figures,
    figures_of,
    figures_table,
    local_figure,
    medians,
    ratios,
)
from benchmarks.systems import Caller, Cluster, System
from benchmarks.systems.etcd import Etcd
from benchmarks.systems.geokv import Geokv
from benchmarks.systems.nats import Nats
from benchmarks.systems.redis import Redis
from benchmarks.workload import (
    KEY_BYTES,
    KEYS_TOTAL,
    VALUE_BYTES,
    Call,
    PhaseFigures,
    load_keys,
    make_values,
    reading,
    run_phase,
    writing,
)

SYSTEMS: dict[str, Callable[[], System]] = {
    OURS: Geokv,
    "etcd": Etcd,
    "redis": Redis,
    "nats": Nats,
    "redis_bare": functools.partial(Redis, is_bare=True),
}
SYSTEMS_USUAL = (OURS, "etcd", "redis", "nats")
CALLERS = (1, 64, 256)
CALLERS_MAX = 1_000
OPEN_FILES_WANTED = 16_384
OTHER_CORES_MAX = 0.3  # the kernel's own share, which counts among the others, stays below
EXIT_FAILED, EXIT_USAGE = 1, 2


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    rounds: int
    seconds: float
    systems: tuple[str, ...]
    callers: tuple[int, ...]
    directory: Path
    json_file: Path | None


@dataclass
class Results:
    """What was measured so far."""

    machine: dict[str, Any]
    rounds: list[BySystem] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def say(line: str) -> None:
    """Progress goes to standard error; standard output is the result."""
    print(line, file=sys.stderr, flush=True)


async def compare(settings: Settings, systems: Sequence[System]) -> Results:
    """All rounds of all systems that are installed; writes the JSON file after every round."""
    results = Results(machine_facts(settings.directory) | {"client_loop": _loop_name()})
    installed = [system for system in systems if _is_installed(system, results)]
    for number in range(1, settings.rounds + 1):
        results.rounds.append({})
        for system in installed:
            results.rounds[-1][system.name] = await _measure_or_report(system, settings, results, number)
        if settings.json_file is not None:
            write_json(settings.json_file, as_json(settings, results))
    return results


def _is_installed(system: System, results: Results) -> bool:
    reason = system.missing()
    if reason is not None:
        results.skipped[system.name] = reason
        say(f"skipped {system.name}: {reason}")
    return reason is None


async def _measure_or_report(system: System, settings: Settings, results: Results, number: int) -> dict[str, Figures]:
    """One round of one system; when it fails, says so and leaves the figures of this round unmeasured."""
    try:
        return await _measure(system, settings, results, number)
    except Exception as error:  # whatever a system does, the others are still to be measured
        results.failed[system.name] = f"round {number}: {type(error).__name__}: {error}"
        say(f"FAILED {system.name}, {results.failed[system.name]}")
        return {str(callers): empty_figures(system.name) for callers in settings.callers}


async def _measure(system: System, settings: Settings, results: Results, number: int) -> dict[str, Figures]:
    measured: dict[str, Figures] = {}
    values = make_values()
    with tempfile.TemporaryDirectory(prefix=f"bench-{system.name}-", dir=settings.directory) as place:
        async with system.start(Path(place)) as cluster:
            results.versions[system.name] = cluster.version
            await load_keys(cluster, values)
            for callers in settings.callers:
                figures = await _measure_callers(system.name, cluster, callers, settings.seconds, number, values)
                measured[str(callers)] = figures
                _say_figures(system.name, number, callers, figures)
    return measured


async def _measure_callers(
    name: str, cluster: Cluster, callers: int, seconds: float, number: int, values: Sequence[bytes]
) -> Figures:
    async with cluster.connect(callers) as connected:

        async def phase(calls: list[Call], kind: str) -> PhaseFigures:
            figures = await run_phase(calls, cluster.pids, seconds, seed=number)
            if figures.errors:
                say(f"  {name}, {callers} callers: {figures.errors} errors in {kind}: {figures.first_error}")
            return figures

        return figures_of(
            name,
            await phase(writing_calls(connected, values), "writes"),
            await phase([reading(caller.get) for caller in connected], "reads"),
            await phase([reading(caller.get_local) for caller in connected], "local reads"),
        )


def writing_calls(callers: Sequence[Caller], values: Sequence[bytes]) -> list[Call]:
    """A writing call per caller."""
    return [writing(caller, values) for caller in callers]


def _say_figures(name: str, number: int, callers: int, figures: Figures) -> None:
    shown = ", ".join(
        f"{figure} " + ("-" if figures[figure] is None else f"{figures[figure]:,.0f}")
        for figure in ("writes_per_s", "reads_per_s", local_figure(name))
    )
    say(f"round {number}, {name}, {callers} callers: {shown}")


def as_json(settings: Settings, results: Results) -> dict[str, Any]:
    """The whole result; the keys are described in benchmarks/report.py."""
    middle = medians(results.rounds, settings.systems, settings.callers)
    return {
        "machine": results.machine,
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "callers": list(settings.callers),
            "systems": list(settings.systems),
            "key_bytes": KEY_BYTES,
            "value_bytes": VALUE_BYTES,
            "keys": KEYS_TOTAL,
        },
        "versions": results.versions,
        "skipped": results.skipped,
        "failed": results.failed,
        "rounds": [{"round": number, "figures": each} for number, each in enumerate(results.rounds, 1)],
        "median": middle,
        "ratios": ratios(middle),
        "aims": aims(middle),
    }


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Replaces the file as a whole."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def print_report(settings: Settings, results: Results) -> None:
    """The machine, the table and the aims, on standard output."""
    middle = medians(results.rounds, settings.systems, settings.callers)
    for name, fact in results.machine.items():
        print(f"{name}: {'-' if fact is None else fact}")
    print(f"versions: {', '.join(results.versions.values()) or '-'}")
    print(f"\nmedians of {settings.rounds} rounds of {settings.seconds:g} s, 3 local nodes each\n")
    print(figures_table(middle))
    print(f"\n{aims_text(middle)}")
    others = disturbance(middle)
    if others is not None and others > OTHER_CORES_MAX:
        print(f"WARNING: other processes used up to {others:.1f} cores; run it where nothing else runs")
    for system, reason in results.skipped.items():
        print(f"skipped {system}: {reason}")
    for system, reason in results.failed.items():
        print(f"FAILED {system}: {reason}")


# --- from the command line ----------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, checked one by one; ends the program with 2 where they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into this file")
    parser.add_argument("--rounds", type=_whole("rounds", 100), default=5, help="rounds in alternation (5)")
    parser.add_argument("--seconds", type=_seconds, default=3.0, help="length of each measurement (3)")
    parser.add_argument("--systems", type=_systems, default=SYSTEMS_USUAL, help=_systems_help())
    parser.add_argument("--callers", type=_callers, default=CALLERS, help="concurrent callers (1,64,256)")
    parser.add_argument("--directory", type=Path, help="where the servers write; on a real disk")
    parser.add_argument("--steady", action="store_true", help="only geokv, through flushes and compactions: benchmarks.steady")
    parser.add_argument("--writes", type=_whole("writes", 10**9), default=2_000_000, help="with --steady (2000000)")
    parser.add_argument("--first", type=Path, metavar="FILE", help="with --steady: the result file to compare with")
    return parser.parse_args(arguments)


def _whole(what: str, most: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{what} must be a whole number from 1 to {most}, not {text!r}")
        return int(text)

    return convert


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.1 <= float(text) <= 600:
            return float(text)
    raise argparse.ArgumentTypeError(f"seconds must be a number from 0.1 to 600, not {text!r}")


def _systems_help() -> str:
    return f"which, of {','.join(SYSTEMS)} ({','.join(SYSTEMS_USUAL)})"


def _systems(text: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in asked:
        if name not in SYSTEMS:
            raise argparse.ArgumentTypeError(f"unknown system {name!r}; there are {', '.join(SYSTEMS)}")
    return asked


def _callers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(_whole("callers", CALLERS_MAX), text.split(","))))


def _loop_name() -> str:
    kind = type(asyncio.get_running_loop())
    return f"{kind.__module__}.{kind.__qualname__}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop for every system where it is installed, the loop of Python for every system where it is not."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def raise_open_files_limit() -> None:
    """256 callers with a connection each, on both sides, need more than the usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(OPEN_FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _until_stopped(settings: Settings) -> Results:
    """As `compare`, and SIGTERM unwinds like Ctrl-C does, so that every server is ended."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await compare(settings, [SYSTEMS[name]() for name in settings.systems])


def _run_steady(asked: argparse.Namespace, directory: Path) -> int:
    try:
        first_per_s = steady.first_of(asked.first) if asked.first is not None else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        say(f"benchmarks.peers: {asked.first} is no result file of this benchmark: {error!r}")
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        figures = runner.run(steady.measure(directory, asked.writes, first_per_s))
    steady.show(figures)
    if asked.json is not None:
        write_json(asked.json, figures)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Runs the comparison and returns the exit code."""
    asked = parse(arguments)
    try:
        directory = disk_directory(asked.directory)
    except (BenchmarkError, OSError) as error:
        say(f"benchmarks.peers: {error}")
        return EXIT_USAGE
    if asked.json is not None and not asked.json.absolute().parent.is_dir():
        say(f"benchmarks.peers: the folder of {asked.json} does not exist; make it first")
        return EXIT_USAGE
    settings = Settings(asked.rounds, asked.seconds, asked.systems, asked.callers, directory, asked.json)
    raise_open_files_limit()
    if asked.steady:
        return _run_steady(asked, directory)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            results = runner.run(_until_stopped(settings))
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("benchmarks.peers: stopped; no server is left running")
        return 128 + signal.SIGINT
    print_report(settings, results)
    return EXIT_FAILED if results.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
