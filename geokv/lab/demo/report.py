"""The report of a run: figures for programs, tables and a chart for people. What was not measured is null, never 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

BARS: Final = "▁▂▃▄▅▆▇█"
GAP: Final = "·"
CHART_COLUMNS: Final = 60
FAILOVER_MS_MAX: Final = 5_000


@dataclass(slots=True)
class DemoReport:
    """What one run showed; times in milliseconds."""

    case: str
    cluster: str
    lost_dc: str
    proxies: str
    acknowledged: int = 0
    lost: int | None = None
    conflicts: int | None = None
    rpo_records: int | None = None
    rpo_ms: int | None = None
    rpo_records_estimated: int | None = None
    cut_took_ms: int | None = None
    detect_ms: int | None = None
    nodes_detect_ms: int | None = None
    failover_ms: int | None = None
    converge_ms: int | None = None
    failback_ms: int | None = None
    unknown: int = 0
    refused: int = 0
    shed: int = 0
    failed_reads: int = 0
    keys: int = 0
    replicas_read: int = 0
    replicas_equal: bool | None = None
    foreign: int | None = None
    up_ms: int | None = None
    seconds: float = 0.0
    latency: list[dict[str, Any]] = field(default_factory=list)
    behind: dict[str, list[int | None]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def is_ok(self) -> bool:
        """Nothing acknowledged was lost, all replicas were read and are equal."""
        return not self.failures and self.lost == 0 and self.replicas_equal is True and self.foreign == 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON's plain values. The first seven keys are the ones that scripts may rely on for good."""
        return {
            "acknowledged": self.acknowledged,
            "lost": self.lost,
            "rpo_records": self.rpo_records,
            "detect_ms": self.detect_ms,
            "failover_ms": self.failover_ms,
            "converge_ms": self.converge_ms,
            "conflicts": self.conflicts,
            "ok": self.is_ok,
            "case": self.case,
            "cluster": self.cluster,
            "lost_dc": self.lost_dc,
            "proxies": self.proxies,
            "rpo_ms": self.rpo_ms,
            "rpo_records_estimated": self.rpo_records_estimated,
            "cut_took_ms": self.cut_took_ms,
            "nodes_detect_ms": self.nodes_detect_ms,
            "failback_ms": self.failback_ms,
            "unknown": self.unknown,
            "refused": self.refused,
            "shed": self.shed,
            "failed_reads": self.failed_reads,
            "keys": self.keys,
            "replicas_read": self.replicas_read,
            "replicas_equal": self.replicas_equal,
            "foreign": self.foreign,
            "up_ms": self.up_ms,
            "seconds": round(self.seconds, 2),
            "latency": self.latency,
            "behind_ms": self.behind,
            "failures": self.failures,
        }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values are; None where there are none."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 2) if ordered else None


def sparkline(values: Sequence[int | None], steps: Sequence[int]) -> str:
    """One character per value: the higher, the more of `steps` it passes; a gap where it is not known."""
    return "".join(GAP if value is None else BARS[sum(value >= step for step in steps)] for value in values)


def thinned(values: Sequence[int | None], columns: int) -> list[int | None]:
    """At most `columns` values: the worst known of each slice."""
    if len(values) <= columns:
        return list(values)
    slices = [values[at * len(values) // columns : (at + 1) * len(values) // columns] for at in range(columns)]
    return [max((value for value in part if value is not None), default=None) for part in slices]


STEPS_MS: Final = (300, 600, 1_000, 2_000, 4_000, 8_000, 16_000)


def print_report(report: DemoReport, console: Any) -> None:
    """Print it with rich."""
    _print_figures(report, console)
    _print_latency(report.latency, console)
    _print_chart(report.behind, report.marks, console)
    if report.is_ok:
        console.print(
            f"\nAll {report.replicas_read} replicas are equal and hold every acknowledged write. "
            f"({report.seconds:.0f} s in all)",
            style="green",
        )
    for failure in report.failures:
        console.print(f"FAILED: {failure}", style="bold red", markup=False)


def _print_figures(report: DemoReport, console: Any) -> None:
    from rich.table import Table

    console.print(f"\nThe loss of {report.lost_dc}: cut off from everybody, its own clients too, and healed again\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right")
    table.add_column()
    for figure, meaning in _figures(report):
        table.add_row(figure, meaning)
    console.print(table)


def _figures(report: DemoReport) -> list[tuple[str, str]]:
    return [
        (_count(report.acknowledged), "writes acknowledged"),
        (_count(report.lost), "of them lost (must be 0)"),
        (_count(report.conflicts), "conflicts: replaced by a provably concurrent write of another datacenter"),
        (_count(report.rpo_records), _rpo_meaning(report)),
        (_time(report.detect_ms), "after its last answer: its clients had noticed"),
        (_time(report.nodes_detect_ms), "after it: the nodes of the other datacenters held its nodes for dead"),
        (_time(report.failover_ms), f"after it: its clients were served again, elsewhere (at most {_time(FAILOVER_MS_MAX)})"),
        (_time(report.converge_ms), "after the heal until all replicas were equal"),
        (_time(report.failback_ms), "after the heal until its clients were back"),
        (_count(report.unknown), "writes whose outcome nobody knows (told so to the client)"),
        (_count(report.refused), "writes refused, surely not done"),
        (_count(report.keys), f"keys read from each of {report.replicas_read} replicas"),
    ]


def _rpo_meaning(report: DemoReport) -> str:
    estimated = _count(report.rpo_records_estimated)
    reach = f", of the last {_time(report.rpo_ms)}" if report.rpo_ms else ""
    return f"acknowledged writes that only {report.lost_dc} had at the cut: RPO{reach} (its nodes' own estimate: {estimated})"


def _print_latency(rows: Sequence[Mapping[str, Any]], console: Any) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title="\nLatency in ms", title_justify="left", header_style="bold")
    columns = ("clients of", "phase", "writes", "write p50", "write p99", "reads", "read p50", "read p99")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < 2 else "right")
    keys = ("dc", "phase", "writes", "write_p50_ms", "write_p99_ms", "reads", "read_p50_ms", "read_p99_ms")
    for row in rows:
        table.add_row(*("-" if row[key] is None else str(row[key]) for key in keys))
    console.print(table)


def _print_chart(behind: Mapping[str, Sequence[int | None]], marks: Mapping[str, int], console: Any) -> None:
    if not behind:
        return
    samples = max(len(series) for series in behind.values())
    columns = min(CHART_COLUMNS, samples)
    legend = " ".join(f"{bar} <{step / 1000:g}s" for bar, step in zip(BARS, STEPS_MS, strict=False))
    console.print("\nLag: how far the second is behind the first", style="bold")
    console.print(f"{legend} {BARS[-1]} more  {GAP} not known", markup=False)
    width = max(len(name) for name in behind)
    for name, series in behind.items():
        known = [value for value in series if value is not None]
        worst = f"worst {max(known) / 1000:.1f} s" if known else "never known"
        console.print(f"{name:<{width}}  {sparkline(thinned(series, columns), STEPS_MS)}  {worst}", markup=False)
    console.print(f"{'':<{width}}  {_mark_line(marks, samples, columns)}", markup=False)


def _mark_line(marks: Mapping[str, int], samples: int, columns: int) -> str:
    """Under the chart: where the datacenter was lost and healed."""
    line = [" "] * (columns + 12)
    for name, sample in sorted(marks.items(), key=lambda mark: mark[1]):
        at = sample * columns // max(1, samples)
        for offset, letter in enumerate(f"^{name}"):
            if at + offset < len(line):
                line[at + offset] = letter
    return "".join(line).rstrip()


def _count(value: int | None) -> str:
    return "not measured" if value is None else f"{value:,}"


def _time(value: int | None) -> str:
    if value is None:
        return "not measured"
    return f"{value} ms" if value < 1000 else f"{value / 1000:.1f} s"
