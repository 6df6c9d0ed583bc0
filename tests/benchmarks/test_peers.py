import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from benchmarks.common import BenchmarkError
from benchmarks.peers import SYSTEMS, SYSTEMS_USUAL, Settings, as_json, compare, parse, write_json
from benchmarks.report import empty_figures
from benchmarks.systems import Caller, Cluster
from benchmarks.workload import VALUE_BYTES, Call, make_values, reading, run_phase

CHECKOUT = Path(__file__).resolve().parents[2]


class MemoryCluster:
    """A system without servers: a dictionary, with what a test wants to go wrong."""

    version = "memory 1"

    def __init__(self, *, forgets: bool) -> None:
        self.pids: list[int] = [os.getpid()]
        self._stored: dict[bytes, bytes] = {}
        self._forgets = forgets

    @asynccontextmanager
    async def connect(self, callers: int) -> AsyncIterator[list[Caller]]:
        yield [self] * callers

    async def put(self, key: bytes, value: bytes) -> None:
        await asyncio.sleep(0)
        self._stored[key] = value

    async def get(self, key: bytes) -> bytes | None:
        await asyncio.sleep(0)
        return None if self._forgets else self._stored.get(key)

    async def get_local(self, key: bytes) -> bytes | None:
        return await self.get(key)


class MemorySystem:
    def __init__(
        self,
        name: str,
        journal: list[str],
        *,
        why_missing: str | None = None,
        fails: bool = False,
        forgets: bool = False,
    ) -> None:
        self.name = name
        self._journal = journal
        self._why_missing = why_missing
        self._fails = fails
        self._forgets = forgets

    def missing(self) -> str | None:
        return self._why_missing

    def start(self, directory: Path) -> AbstractAsyncContextManager[Cluster]:
        return self._start(directory)

    @asynccontextmanager
    async def _start(self, directory: Path) -> AsyncIterator[Cluster]:
        assert not os.listdir(directory), "every round begins with an empty directory"  # noqa: PTH208
        self._journal.append(f"{self.name} up")
        if self._fails:
            raise BenchmarkError("it does not start")
        yield MemoryCluster(forgets=self._forgets)
        self._journal.append(f"{self.name} down")


def settings_for(directory: Path, systems: tuple[str, ...], *, rounds: int = 1) -> Settings:
    return Settings(rounds, 0.1, systems, (1, 4), directory, directory / "result.json")


async def test_systems_take_turns_and_only_one_is_up(tmp_path: Path) -> None:
    """A, B, A, B, with A ended before B begins."""
    journal: list[str] = []
    systems = [MemorySystem(name, journal) for name in ("etcd", "redis")]
    await compare(settings_for(tmp_path, ("etcd", "redis"), rounds=2), systems)
    assert journal == ["etcd up", "etcd down", "redis up", "redis down"] * 2


async def test_the_result_has_its_promised_shape(tmp_path: Path) -> None:
    """machine, rounds, median by system and callers, ratios; the file is what was returned."""
    settings = settings_for(tmp_path, ("geokv", "etcd"), rounds=2)
    results = await compare(settings, [MemorySystem(name, []) for name in settings.systems])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result == json.loads(json.dumps(as_json(settings, results)))
    assert {"machine", "rounds", "median", "ratios", "aims", "skipped", "failed", "settings"} <= result.keys()
    assert len(result["rounds"]) == 2
    for system in settings.systems:
        assert list(result["median"][system]) == ["1", "4"]
        for figures in result["median"][system].values():
            assert figures.keys() == empty_figures(system).keys()
            assert all(figure is not None for figure in figures.values())
            assert figures["writes_per_s"] > 0
            assert figures["errors"] == 0
    assert result["ratios"]["4"]["writes_per_s"]["etcd"] > 0
    assert os.listdir(tmp_path) == ["result.json"]  # noqa: PTH208


async def test_a_missing_system_is_skipped_with_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps its keys, its figures are null, and a line says what is missing."""
    settings = settings_for(tmp_path, ("geokv", "etcd"))
    absent = MemorySystem("etcd", [], why_missing="no etcd on the PATH")
    results = await compare(settings, [MemorySystem("geokv", []), absent])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["median"]["etcd"] == {"1": empty_figures("etcd"), "4": empty_figures("etcd")}
    assert result["skipped"] == {"etcd": "no etcd on the PATH"}
    assert result["median"]["geokv"]["4"]["writes_per_s"] > 0
    assert result["ratios"]["4"]["writes_per_s"] == {"etcd": None}
    assert results.failed == {}
    assert "skipped etcd: no etcd on the PATH" in capsys.readouterr().err


async def test_a_system_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    """Its figures are null, and it is listed as failed, not as skipped."""
    settings = settings_for(tmp_path, ("etcd", "redis"))
    results = await compare(settings, [MemorySystem("etcd", [], fails=True), MemorySystem("redis", [])])
    result = as_json(settings, results)
    assert "it does not start" in result["failed"]["etcd"]
    assert result["skipped"] == {}
    assert result["median"]["etcd"]["1"]["writes_per_s"] is None
    assert result["median"]["redis"]["1"]["writes_per_s"] > 0


async def test_reads_that_find_nothing_are_errors_and_no_figures(tmp_path: Path) -> None:
    """A store that loses everything is not fast."""
    settings = settings_for(tmp_path, ("etcd",))
    results = await compare(settings, [MemorySystem("etcd", [], forgets=True)])
    figures = as_json(settings, results)["median"]["etcd"]["4"]
    assert figures["reads_per_s"] is None
    assert figures["read_p50_ms"] is None
    assert figures["cpu_us_per_read"] is None
    assert figures["errors"] > 0
    assert figures["writes_per_s"] > 0


async def test_a_phase_counts_what_its_callers_did() -> None:
    """Two callers whose calls take 10 ms each make about 200 calls a second, at 10 ms or a little more."""

    async def call(_: bytes) -> None:
        await asyncio.sleep(0.01)

    figures = await run_phase([call, call], [], 0.5, seed=1)
    assert figures.calls_per_s is not None
    assert figures.p50_ms is not None
    assert 20 < figures.calls_per_s <= 210
    assert figures.p50_ms >= 9.9
    assert figures.server_cpu_us is None
    assert figures.cpu_us is None


async def test_values_of_another_length_are_errors() -> None:
    """A read is checked, not only counted."""

    async def get(_: bytes) -> bytes:
        return b"x" * (VALUE_BYTES - 1)

    call: Call = reading(get)
    with pytest.raises(BenchmarkError, match="255 bytes"):
        await call(b"key")
    assert {len(value) for value in make_values()} == {VALUE_BYTES}
    assert make_values() == make_values()


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """No half-written result, and no file beside it."""
    path = tmp_path / "result.json"
    path.write_text("old")
    write_json(path, {"machine": "µ"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"machine": "µ"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_usual_arguments() -> None:
    """Five rounds of the four systems with 1, 64 and 256 callers."""
    asked = parse([])
    assert (asked.rounds, asked.systems, asked.callers) == (
        5,
        ("geokv", "etcd", "redis", "nats"),
        (1, 64, 256),
    )
    assert set(SYSTEMS_USUAL) < set(SYSTEMS)
    assert {name: make().name for name, make in SYSTEMS.items()} == {name: name for name in SYSTEMS}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rounds", "0"], "rounds must be a whole number"),
        (["--seconds", "nan"], "seconds must be a number"),
        (["--systems", "etcd,riak"], "unknown system 'riak'"),
        (["--callers", "1,-2"], "callers must be a whole number"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_the_command_skips_what_is_not_on_the_path(tmp_path: Path) -> None:
    """For real, in a process of its own (about a second): exit 0, nulls in the file, lines on the screen."""
    result_file = tmp_path / "result.json"
    environment = os.environ | {"PATH": str(tmp_path), "GOBIN": str(tmp_path)}
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.peers",
            "--systems",
            "etcd,redis,nats",
            "--json",
            str(result_file),
        ],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(result_file.read_text(encoding="utf-8"))
    for system in ("etcd", "redis", "nats"):
        assert f"skipped {system}: no " in ended.stdout
        for callers in ("1", "64", "256"):
            assert set(result["median"][system][callers].values()) == {None}
    assert "not measured" in ended.stdout
