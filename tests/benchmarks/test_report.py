import pytest

from benchmarks.report import (
    AIMS,
    Aim,
    BySystem,
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
from benchmarks.workload import PhaseFigures

PROMISED = {"writes_per_s", "reads_per_s", "write_p50_ms", "write_p99_ms", "read_p50_ms", "cpu_us_per_write"}


def middle_of(**writes_per_s: float | None) -> BySystem:
    return {system: {"256": empty_figures(system) | {"writes_per_s": figure}} for system, figure in writes_per_s.items()}


def test_every_system_has_the_promised_figures() -> None:
    """Also when nothing was measured: then they are None, never 0."""
    for system in ("geokv", "etcd", "redis", "nats"):
        figures = empty_figures(system)
        assert figures.keys() >= PROMISED
        assert set(figures.values()) == {None}
    assert local_figure("geokv") == "reads_one_per_s"
    assert local_figure("etcd") == "reads_local_per_s"


def test_a_phase_lands_under_its_own_names() -> None:
    """Writes, reads and local reads are not mixed up, and CPU is the sum of both sides."""
    write = PhaseFigures(1000.04, 1.0, 2.0, 30.0, 40.0, 0.25, 1, "x")
    read = PhaseFigures(2000.0, 3.0, 4.0, 50.0, 60.0, 0.5, 2, "x")
    local = PhaseFigures(3000.0, 5.0, 6.0, None, None, None, 0, None)
    figures = figures_of("geokv", write, read, local)
    assert figures == {
        "writes_per_s": 1000.0,
        "write_p50_ms": 1.0,
        "write_p99_ms": 2.0,
        "cpu_us_per_write": 70.0,
        "client_cpu_us_per_write": 30.0,
        "server_cpu_us_per_write": 40.0,
        "reads_per_s": 2000.0,
        "read_p50_ms": 3.0,
        "read_p99_ms": 4.0,
        "cpu_us_per_read": 110.0,
        "client_cpu_us_per_read": 50.0,
        "server_cpu_us_per_read": 60.0,
        "reads_one_per_s": 3000.0,
        "other_cores": 0.5,
        "errors": 3,
    }
    assert figures.keys() == empty_figures("geokv").keys()
    assert figures_of("geokv", local, read, write)["cpu_us_per_write"] is None


def test_medians_are_taken_figure_by_figure() -> None:
    """Over the rounds in which there was one; a system without a round is all None."""
    rounds = [middle_of(geokv=figure) for figure in (3.0, None, 1.0, 2.0)]
    middle = medians(rounds, ["geokv", "etcd"], [256])
    assert middle["geokv"]["256"]["writes_per_s"] == 2.0
    assert middle["geokv"]["256"]["reads_per_s"] is None
    assert middle["etcd"]["256"] == empty_figures("etcd")


def test_ratios_divide_ours_by_theirs() -> None:
    """And are None where either side was not measured."""
    found = ratios(middle_of(geokv=30.0, etcd=10.0, redis=None))
    assert found["256"]["writes_per_s"] == {"etcd": 3.0, "redis": None}
    assert found["256"]["reads_per_s"] == {"etcd": None, "redis": None}


@pytest.mark.parametrize(("ours", "met"), [(34.0, True), (30.0, True), (29.0, False), (None, None)])
def test_an_aim_says_what_was_wanted_and_what_was_measured(ours: float | None, met: bool | None) -> None:
    """Met at the bound, not below it, unknown when not measured."""
    aim = Aim(256, "writes_per_s", 3.0, "etcd")
    middle = middle_of(geokv=ours, etcd=10.0)
    assert aim.is_met(middle) is met
    if ours == 34.0:
        assert aim.line(middle).endswith("aim 3.0x, measured 3.40x (met)")
    if ours is None:
        assert aim.line(middle).endswith("not measured")


def test_a_ceiling_is_met_from_below() -> None:
    """A latency that is lower than the bound is a success."""
    ceiling = Aim(256, "writes_per_s", 1.5, "etcd", is_ceiling=True)
    assert ceiling.is_met(middle_of(geokv=14.0, etcd=10.0)) is True
    assert ceiling.is_met(middle_of(geokv=16.0, etcd=10.0)) is False


def test_an_aim_is_not_judged_by_a_rounded_ratio() -> None:
    """2.99999 is below 3, however the file shows it."""
    aim = Aim(256, "writes_per_s", 3.0, "etcd")
    assert aim.is_met(middle_of(geokv=29_999.9, etcd=10_000.0)) is False


def test_every_aim_is_listed() -> None:
    """In the file and on the screen, measured or not."""
    middle = middle_of(geokv=1.0)
    assert [each["measured"] for each in aims(middle)] == [None] * len(AIMS)
    assert len(aims_text(middle).splitlines()) == len(AIMS)


def test_the_worst_disturbance_is_told() -> None:
    """Of all systems; None where the machine does not say."""
    middle = middle_of(geokv=1.0, etcd=1.0)
    assert disturbance(middle) is None
    middle["etcd"]["256"]["other_cores"] = 0.7
    middle["geokv"]["256"]["other_cores"] = 0.1
    assert disturbance(middle) == 0.7


def test_the_table_has_a_row_per_system_and_callers() -> None:
    """A header, a rule, and dashes for what is missing."""
    lines = figures_table(middle_of(geokv=12_345.0, etcd=None)).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("geokv")
    assert "12,345" in lines[2]
    assert lines[3].split()[:3] == ["etcd", "256", "-"]
