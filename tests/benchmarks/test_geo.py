import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.geo import Settings, empty_result, highest_held, main, parse
from benchmarks.geo_clients import (
    BUCKETS_PER_MS,
    KEY_BYTES,
    KEYS_PER_DC,
    VALUE_BYTES,
    Tally,
    key_of,
    make_value,
    make_values,
    probe_key,
)
from benchmarks.geo_lab import topology_with
from benchmarks.geo_load import process_figures
from benchmarks.geo_report import (
    Half,
    aims,
    bucket_limit,
    bucket_percentile,
    is_growing,
    is_sustained,
    lag_buckets,
    merged_percentile,
)

CHECKOUT = Path(__file__).resolve().parents[2]
PROMISED = {"writes_per_s", "lag_p50_ms", "lag_p99_ms", "one_way_ms", "drain_per_s", "wan_bytes_per_payload_byte"}


def settings_of(directory: Path) -> Settings:
    return Settings(4_100, 20, 80, 200_000, ("steady", "drain"), False, 1, None, directory, None)


def lag_metrics(**counts: int) -> dict[str, float]:
    return {f"ship.lag_ms_bucket.{limit.removeprefix('at_')}": count for limit, count in counts.items()}


# --- load -----------------------------------------------------------------------------------------------------------


def test_values_are_text_of_the_promised_size_and_no_two_alike() -> None:
    """Every value is JSON text of 256 bytes, and hardly one is there twice."""
    values = make_values(1)
    assert {len(value) for value in values} == {VALUE_BYTES}
    assert all(json.loads(value)["user"].startswith("u-") for value in values[:500])
    assert len(set(values)) == len(values)


def test_values_are_the_same_in_every_run_and_other_ones_in_another_datacenter() -> None:
    """The load can be repeated, and datacenters do not send the same bytes."""
    assert make_value(random.Random(3)) == make_value(random.Random(3))
    assert make_value(random.Random(3)) != make_value(random.Random(4))


def test_keys_have_the_promised_size_and_belong_to_one_datacenter() -> None:
    """16 bytes each, for the first and the last, and clients of two datacenters never meet on one."""
    keys = {key_of(place, number) for place in (0, 2) for number in (0, KEYS_PER_DC - 1)}
    assert {len(key) for key in keys | {probe_key(1, 0)}} == {KEY_BYTES}
    assert len(keys) == 4


def test_a_latency_counts_from_when_the_call_was_due() -> None:
    """A call that had to wait for its turn is as slow as its caller saw it, and is counted where it ended."""
    tally = Tally(opens_s=10.0, closes_s=20.0)
    tally.acknowledge(due_s=12.0, now_s=12.5)
    tally.acknowledge(due_s=9.9, now_s=10.1)  # due before the window, ended inside
    tally.acknowledge(due_s=19.9, now_s=20.4)  # due inside, ended after
    assert (tally.acknowledged, tally.acknowledged_in_window) == (3, 2)
    assert dict(tally.latencies) == {500 * BUCKETS_PER_MS: 2}


# --- figures --------------------------------------------------------------------------------------------------------


def test_lag_is_what_was_counted_between_two_readings() -> None:
    """What the nodes had counted before the load is not in it."""
    before, after = lag_metrics(at_50=7, at_60=1, more=0), lag_metrics(at_50=17, at_60=1, more=3)
    assert lag_buckets([before, before], [after, after]) == [(50.0, 20), (60.0, 0), (float("inf"), 6)]


def test_a_percentile_stands_inside_its_bucket() -> None:
    """Between the limits of the bucket that holds it, as far as its share of that bucket."""
    buckets = [(40.0, 0), (50.0, 90), (100.0, 10)]
    assert bucket_percentile(buckets, 45) == pytest.approx(45.0)
    assert bucket_percentile(buckets, 99) == pytest.approx(95.0)
    assert bucket_limit(buckets, 99) == 100.0


def test_a_percentile_beyond_the_last_bucket_is_not_made_up() -> None:
    """Nor is one of nothing."""
    assert bucket_percentile([(50.0, 1), (float("inf"), 99)], 50) is None
    assert bucket_limit([(50.0, 1), (float("inf"), 99)], 50) is None
    assert bucket_percentile([(50.0, 0)], 50) is None


def test_percentiles_of_processes_are_those_of_all_calls_together() -> None:
    """Not the mean of theirs."""
    assert merged_percentile([[(10, 98)], [(500, 2)]], 50, 10) == 1.0
    assert merged_percentile([[(10, 98)], [(500, 2)]], 99, 10) == 50.0
    assert merged_percentile([[], []], 50, 10) is None


@pytest.mark.parametrize(
    ("second", "grows"),
    [
        (Half(60, 110, 400), False),
        (Half(70, 900, 400), False),  # one stall: the tail alone
        (Half(90, 110, 400), True),
        (Half(None, None, 400), True),  # beyond the last bucket
        (Half(60, 110, 4_000), True),
    ],
)
def test_growing_lag_is_told_from_a_stall(second: Half, grows: bool) -> None:
    """By the median of the second half, or by what is not yet shipped; a longer tail alone is no growth."""
    assert is_growing(Half(60, 100, 300), second, rate=4_000) is grows


def test_growth_is_unknown_where_nothing_was_shipped() -> None:
    """And so the rate does not count as held."""
    assert is_growing(Half(None, None, 0), Half(60, 100, 0), 4_000) is None
    assert not is_sustained(4_000, 4_000, 0, None)


def test_a_rate_is_held_only_without_errors_and_nearly_in_full() -> None:
    """Each condition by itself."""
    assert is_sustained(3_950, 4_000, 0, grows=False)
    assert not is_sustained(3_800, 4_000, 0, grows=False)
    assert not is_sustained(4_000, 4_000, 1, grows=False)
    assert not is_sustained(4_000, 4_000, 0, grows=True)


@pytest.mark.parametrize("limit", [1_000, 4_100, 5_500, 20_000])
def test_the_search_ends_just_below_what_is_held(limit: float) -> None:
    """Whether it begins above or below; the step is 20 %, halved once."""
    found = highest_held(lambda rate: rate <= limit, 4_100)
    assert found is not None
    assert limit / 1.2**0.5 <= found * 1.0001
    assert found <= limit * 1.0001


def test_the_search_gives_up_where_no_rate_is_held() -> None:
    """Instead of going down for ever."""
    assert highest_held(lambda rate: False, 4_100) is None


def test_stalls_under_load_are_those_of_the_load() -> None:
    """Counted from the buckets above 50 ms, without what came before."""

    class Edge:
        def __init__(self, short: int, long: int, cpu_s: float, at_s: float) -> None:
            stalls = {"loop.stalls_up_to_50_ms": short, "loop.stalls_up_to_100_ms": long, "loop.stalls_longer": 1}
            self.metrics = {"n1": stalls}
            self.cpu_s = {"n1": cpu_s, "proxies": None}
            self.at_s = at_s

    class TwoEdges:
        start, end = Edge(5, 2, 1.0, 100.0), Edge(50, 5, 6.0, 110.0)

    load: Any = TwoEdges()
    assert process_figures(load) == {
        "n1": {"cores": 0.5, "stalls_above_50_ms": 3, "stall_ms_max": None},
        "proxies": {"cores": None},
    }


# --- aims and result ------------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_none(tmp_path: Path) -> None:
    """All promised keys are there from the start, and no aim is met by nothing."""
    result = empty_result(settings_of(tmp_path))
    assert set(result) >= PROMISED
    assert {result[name] for name in PROMISED - {"one_way_ms"}} == {None}
    assert result["one_way_ms"] == 40
    assert [aim.is_met for aim in aims(result)] == [None] * 4


def test_the_aims_are_those_of_the_figures(tmp_path: Path) -> None:
    """Each is met at its bound and missed beyond it."""
    measured = {"writes_per_s": 4_000, "lag_p99_ms": 190, "drain_per_s": 8_000, "wan_bytes_per_payload_byte": 0.5}
    good = empty_result(settings_of(tmp_path)) | measured | {"lag_is_growing": False, "write_errors": 0}
    assert [aim.is_met for aim in aims(good)] == [True] * 4
    missed = {"writes_per_s": 3_999, "lag_p99_ms": 190.1, "drain_per_s": 7_999, "wan_bytes_per_payload_byte": 0.501}
    assert [aim.is_met for aim in aims(good | missed)] == [False] * 4
    assert "NOT met" in aims(good | missed)[0].line()


@pytest.mark.parametrize("spoiled", [{"lag_is_growing": True}, {"lag_is_growing": None}, {"write_errors": 3}])
def test_writes_do_not_count_while_lag_grows_or_writes_fail(tmp_path: Path, spoiled: dict[str, object]) -> None:
    """However many there are."""
    good = empty_result(settings_of(tmp_path)) | {"writes_per_s": 9_000, "lag_is_growing": False, "write_errors": 0}
    assert aims(good)[0].is_met
    assert aims(good | spoiled)[0].is_met is False
    assert "NOT met: the lag grew, or writes failed" in aims(good | spoiled)[0].line()


def test_all_datacenters_are_equally_far_apart() -> None:
    """Nothing is left of the shipped topology's own round trips."""
    topology = topology_with(80)
    names = topology.dc_names
    pairs = [(one, other) for one in names for other in names if one != other]
    assert {(topology.link(*pair).round_trip_ms, topology.link(*pair).jitter_ms) for pair in pairs} == {(80, 0)}
    assert len(topology.nodes) == 9


# --- from the command line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "rate must be a number from 30"),
        (["--seconds", "abc"], "seconds must be a number"),
        (["--records", "-5"], "records must be a whole number"),
        (["--phases", "steady,dry"], "unknown phase 'dry'; there are steady, drain"),
        (["--proxies", "none"], "invalid choice"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what would have been right."""
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_result_that_could_not_be_kept_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong path costs no minutes."""
    assert main(["--json", str(tmp_path / "no" / "geo.json")]) == 2
    assert "does not exist; make it first" in capsys.readouterr().err


@pytest.mark.samples_from("check")
@pytest.mark.timeout(180)
def test_a_short_run_measures_every_figure(tmp_path: Path) -> None:
    """The whole path with real nodes and proxies, at a small rate; half a minute: nine nodes start and one DC is cut off."""
    target = tmp_path / "geo.json"
    flags = ["--rate", "150", "--seconds", "3", "--records", "600", "--round-trip-ms", "20", "--probes-per-s", "4"]
    command = [sys.executable, "-m", "benchmarks.geo", "--json", str(target), *flags]
    ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=170, check=False, env={**os.environ})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(target.read_text(encoding="utf-8"))
    assert [name for name in PROMISED if result[name] is None] == []
    assert result["one_way_ms"] == 10
    assert result["lag_p50_ms"] >= 10
    assert result["replicas_are_equal"] is True
    assert 100 < result["writes_per_s"] < 220  # what waited while it warmed up may be in it
    assert result["drain"]["backlog_records"] >= 600
    assert result["steady"]["payload_bytes"] == pytest.approx(150 * 6 * (KEY_BYTES + VALUE_BYTES) * 2, rel=0.1)
    assert result["steady"]["visible_probes"] > 0
    assert result["steady"]["visible_p50_ms"] >= 10
    assert "records/s drained: aim at least 8,000" in ended.stdout
