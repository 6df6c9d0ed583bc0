"""The main job, and the parts of it that judge."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from geokv.lab.datasets import load_zones
from geokv.lab.demo.journal import Found, Journal, Write
from geokv.lab.demo.replicas import are_equal
from geokv.lab.demo.report import DemoReport, percentile, sparkline, thinned
from geokv.lab.demo.workload import shares

KEY = ("records", b"k")
KEYS_FOR_GOOD = ("acknowledged", "lost", "rpo_records", "detect_ms", "failover_ms", "converge_ms", "conflicts")


def written(version: int, value: bytes, dc: str = "here") -> Write:
    return Write(KEY, version, value, dc, 0.0, 0.1)


def journal_of(*writes: Write) -> Journal:
    journal = Journal()
    for write in writes:
        journal.note_acknowledged(write)
    return journal


@pytest.mark.timeout(300)  # three phases of seconds each, and processes to start: twenty seconds on an idle machine
def test_the_demo_loses_nothing_and_prints_what_scripts_rely_on(tmp_path: Path, small_topology: Path) -> None:
    """Losing a datacenter under load: exit code 0, nothing lost, all replicas equal, every promised figure measured."""
    command = [sys.executable, "-m", "geokv", "lab", "demo", "--topology", str(small_topology), "--seconds", "3", "--json"]
    done = subprocess.run([*command, "--rate", "30"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert list(report)[: len(KEYS_FOR_GOOD)] == list(KEYS_FOR_GOOD)
    assert report["lost"] == 0
    assert report["acknowledged"] > len(load_zones())
    assert report["replicas_equal"] is True
    assert report["replicas_read"] == 3
    assert report["lost_dc"] == "here"
    assert 0 <= report["detect_ms"] <= report["failover_ms"] <= 5_000
    assert report["converge_ms"] > 0
    phases = {(row["dc"], row["phase"]): row for row in report["latency"]}
    assert phases["here", "loss"]["writes"] > 0
    assert phases["there", "before"]["write_p99_ms"] >= phases["there", "before"]["write_p50_ms"] > 0


@pytest.mark.samples_from("check")
@pytest.mark.timeout(300)  # nine nodes and the default phases: half a minute on an idle machine
@pytest.mark.parametrize("proxies", ["embedded"])
def test_the_demo_in_full_takes_less_than_two_minutes(proxies: str) -> None:
    """Three datacenters of three nodes, as `geokv lab demo` runs them."""
    command = [sys.executable, "-m", "geokv", "lab", "demo", "--proxies", proxies, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["lost"], report["replicas_read"]) == (0, 9)
    assert report["seconds"] < 120


def test_a_write_that_one_replica_has_in_an_older_version_is_lost() -> None:
    """One replica that lags behind what was acknowledged is enough."""
    journal = journal_of(written(1, b"a"), written(2, b"b"))
    good = {"n1": {KEY: Found(2, b"b")}, "n2": {KEY: Found(2, b"b")}}
    assert journal.judge(good).lost == 0
    assert journal.judge({**good, "n2": {KEY: Found(1, b"a")}}).lost == 1
    assert journal.judge({**good, "n2": {KEY: Found(0, None)}}).lost == 2


def test_a_newer_write_stands_for_the_older_ones_even_if_nobody_knew_of_it() -> None:
    """A write of unknown outcome may be what a replica ends with."""
    journal = journal_of(written(1, b"a"))
    journal.note_unknown(KEY, b"maybe")
    verdict = journal.judge({"n1": {KEY: Found(5, b"maybe")}})
    assert (verdict.lost, verdict.foreign) == (0, 0)


def test_a_value_that_nobody_wrote_is_told() -> None:
    """Another value under the acknowledged version is a lost write; one that no client wrote is foreign."""
    journal = journal_of(written(1, b"a"))
    verdict = journal.judge({"n1": {KEY: Found(1, b"x")}})
    assert (verdict.lost, verdict.foreign) == (1, 1)


def test_a_key_that_no_replica_was_asked_for_is_unread() -> None:
    """Nothing counts as checked that was not read."""
    assert journal_of(written(1, b"a")).judge({"n1": {}}).unread == 1


def test_replicas_that_differ_are_told() -> None:
    """Two replicas with different values of a key are unequal, whichever is right."""
    journal = journal_of(written(1, b"a"), written(2, b"b"))
    assert journal.judge({"n1": {KEY: Found(2, b"b")}, "n2": {KEY: Found(1, b"a")}}).unequal == 1


def test_only_what_provably_crossed_is_a_conflict() -> None:
    """Stamps closer than the link is long, of different datacenters: a conflict; anything else is not."""
    ms = 1 << 16
    near = journal_of(written(100 * ms, b"a", "here"), written(110 * ms, b"b", "there"))
    far = journal_of(written(100 * ms, b"a", "here"), written(160 * ms, b"b", "there"))
    same = journal_of(written(100 * ms, b"a", "here"), written(110 * ms, b"b", "here"))
    assert [journal.conflicts(lambda one, other: 40.0) for journal in (near, far, same)] == [1, 0, 0]


def test_what_only_the_lost_datacenter_had_is_missing() -> None:
    """A write that no survivor holds, nor anything newer, is missing; one that any of them holds is not."""
    journal = journal_of(written(1, b"a", "here"), written(2, b"b", "there"))
    assert journal.missing("here", [{KEY: Found(0, None)}, {}]) == [written(1, b"a", "here")]
    assert journal.missing("here", [{KEY: Found(2, b"b")}]) == []


def test_digests_are_equal_only_where_every_owner_says_the_same() -> None:
    """A silent node, a missing cell or another hash is not equal; who owns nothing of a partition is not asked about it."""
    owners = {0: frozenset({"n1", "n2"}), 1: frozenset({"n2"})}
    cell = {"cells": 1, "hash": "aa"}
    assert are_equal({"n1": {"0": cell}, "n2": {"0": cell, "1": cell}}, owners)
    assert not are_equal({"n1": {"0": cell}, "n2": {"0": {"cells": 1, "hash": "bb"}}}, owners)
    assert not are_equal({"n1": {}, "n2": {"0": cell}}, owners)
    assert not are_equal({"n1": None, "n2": {"0": cell}}, owners)


def test_a_figure_that_was_not_measured_is_null_and_the_run_is_not_ok() -> None:
    """An empty report claims nothing."""
    report = DemoReport("loss", "c", "here", "real")
    tree = report.as_dict()
    assert [tree[key] for key in KEYS_FOR_GOOD[1:]] == [None] * 6
    assert not report.is_ok


def test_the_chart_shows_gaps_and_keeps_the_worst_of_what_it_thins() -> None:
    """An unknown sample is a gap; thinning keeps peaks."""
    assert sparkline([0, None, 10, 100], (10, 50)) == "▁·▂▃"
    assert thinned([1, 9, None, 2, 3, None], 3) == [9, 2, 3]
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2


def test_the_data_set_is_whole_and_shared_out_among_all() -> None:
    """Every zone goes to exactly one datacenter, and each gets some; the file states its source and its licence."""
    zones = load_zones()
    assert len({zone.name for zone in zones}) == len(zones) > 300
    found = shares(zones, ["a", "b", "c"])
    assert sorted(zone.name for part in found.values() for zone in part) == [zone.name for zone in zones]
    assert all(found.values())
    head = (Path(__file__).parents[2] / "geokv/lab/datasets/zones.tsv").read_text(encoding="utf-8")[:700]
    assert "Source:" in head and "public domain" in head
