"""Figures and aims of `benchmarks.geo`: from counters and counts to what goes into the JSON file and onto the screen.

The nodes count lag in buckets (`ship.lag_ms_bucket.LIMIT`: so many records were at most LIMIT ms old). A percentile
of it is placed inside its bucket as if the records were spread evenly there; `..._at_most` beside it is the bucket's
limit, which is certain.

Everything here is pure: no clock, no process. What was not measured is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.common import cell, table

LAG_PREFIX: Final = "ship.lag_ms_bucket."
MORE: Final = "more"
STEADY_SHARE: Final = 0.98  # of the offered rate that has to be acknowledged for it to count as sustained
GROWTH_RATIO: Final = 1.25
GROWTH_MS: Final = 25.0
GROWTH_BACKLOG_S: Final = 0.5  # of the offered load; a backlog is read at one moment, and a stall of that length is none

Buckets = list[tuple[float, int]]  # upper limit in ms (infinite for the last), how many; ascending
Figures = dict[str, Any]


# --- counts ---------------------------------------------------------------------------------------------------------


def lag_buckets(earlier: Iterable[Mapping[str, float]], later: Iterable[Mapping[str, float]]) -> Buckets:
    """What came into the buckets between two readings of the same nodes' metrics."""
    counts: dict[float, int] = {}
    for sign, readings in ((-1, earlier), (1, later)):
        for metrics in readings:
            for name, count in metrics.items():
                if name.startswith(LAG_PREFIX):
                    limit = name.removeprefix(LAG_PREFIX)
                    at = float("inf") if limit == MORE else float(limit)
                    counts[at] = counts.get(at, 0) + sign * round(count)
    return sorted(counts.items())


def bucket_limit(buckets: Buckets, percent: float) -> float | None:
    """The upper limit of the bucket that holds the percentile; None where nothing was counted or it is in the last."""
    found = _place(buckets, percent)
    return None if found is None or buckets[found[0]][0] == float("inf") else buckets[found[0]][0]


def bucket_percentile(buckets: Buckets, percent: float) -> float | None:
    """The percentile, placed inside its bucket as if that were filled evenly; None as `bucket_limit`."""
    found = _place(buckets, percent)
    if found is None or buckets[found[0]][0] == float("inf"):
        return None
    at, share = found
    lower = buckets[at - 1][0] if at else 0.0
    return lower + (buckets[at][0] - lower) * share


def _place(buckets: Buckets, percent: float) -> tuple[int, float] | None:
    """Which bucket holds the percentile, and how far inside it is."""
    wanted = sum(count for _, count in buckets) * percent / 100
    passed = 0
    for at, (_, count) in enumerate(buckets):
        if count and passed + count >= wanted:
            return at, (wanted - passed) / count
        passed += count
    return None


def merged_percentile(counted: Iterable[Iterable[Sequence[int]]], percent: float, per_ms: int) -> float | None:
    """A percentile, in ms, of what several processes counted as (whole number of 1/per_ms ms, how often)."""
    total: dict[int, int] = {}
    for pairs in counted:
        for at, count in pairs:
            total[at] = total.get(at, 0) + count
    wanted = sum(total.values()) * percent / 100
    passed = 0
    for at, count in sorted(total.items()):
        passed += count
        if passed >= wanted:
            return at / per_ms
    return None


# --- growth ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Half:
    """The lag in one half of the time under load, and the backlog at its end."""

    p50_ms: float | None
    p99_ms: float | None
    backlog_records: int

    def as_json(self) -> Figures:
        return {
            "lag_p50_ms": rounded(self.p50_ms),
            "lag_p99_ms": rounded(self.p99_ms),
            "backlog_records": self.backlog_records,
        }


def is_growing(first: Half, second: Half, rate: float) -> bool | None:
    """Whether the second half lags clearly more than the first: by its median, or by what is not yet shipped.

    Where load is above what can be shipped, every second adds to both; a single stall adds to neither for long. None
    where nothing was shipped in the first half; where the second is beyond the last bucket, it grows.
    """
    if first.p50_ms is None:
        return None
    if second.p50_ms is None or second.p50_ms > max(first.p50_ms * GROWTH_RATIO, first.p50_ms + GROWTH_MS):
        return True
    return second.backlog_records > first.backlog_records * GROWTH_RATIO + rate * GROWTH_BACKLOG_S


def is_sustained(acknowledged_per_s: float, offered_per_s: float, errors: int, grows: bool | None) -> bool:
    """Whether a rate can be kept up: nearly all of it acknowledged in time, no errors, and the lag is not growing."""
    return acknowledged_per_s >= offered_per_s * STEADY_SHARE and errors == 0 and grows is False


# --- aims -----------------------------------------------------------------------------------------------------------

LAG_ABOVE_ONE_WAY_MS: Final = 150
WRITES_PER_S: Final = 4_000
DRAIN_PER_S: Final = 8_000
WAN_BYTES: Final = 0.5


@dataclass(frozen=True)
class Aim:
    """One figure that is aimed at, with what was measured."""

    name: str
    wanted: float
    measured: float | None
    is_ceiling: bool
    is_spoiled: bool = False  # met by the number alone, and not otherwise

    @property
    def is_met(self) -> bool | None:
        """None where it was not measured."""
        if self.measured is None:
            return None
        reached = self.measured <= self.wanted if self.is_ceiling else self.measured >= self.wanted
        return reached and not self.is_spoiled

    def as_json(self) -> Figures:
        return {"aim": self.name, "wanted": self.wanted, "measured": self.measured, "is_met": self.is_met}

    def line(self) -> str:
        bound = "at most" if self.is_ceiling else "at least"
        digits = 0 if self.wanted >= 100 else 2
        met = {None: "not measured", True: "met", False: "NOT met"}[self.is_met]
        if self.is_spoiled and self.measured is not None:
            met += ": the lag grew, or writes failed"
        shown = "" if self.measured is None else f", measured {self.measured:,.{digits}f}"
        return f"{self.name}: aim {bound} {self.wanted:,.{digits}f}{shown} ({met})"


def aims(figures: Mapping[str, Any]) -> list[Aim]:
    """The aims, by the top-level figures of a result."""
    one_way_ms = figures["one_way_ms"]
    return [
        Aim(
            "writes/s without growing lag",
            WRITES_PER_S,
            figures["writes_per_s"],
            is_ceiling=False,
            is_spoiled=figures["lag_is_growing"] is not False or bool(figures["write_errors"]),
        ),
        Aim("lag p99 in ms", one_way_ms + LAG_ABOVE_ONE_WAY_MS, figures["lag_p99_ms"], is_ceiling=True),
        Aim("records/s drained", DRAIN_PER_S, figures["drain_per_s"], is_ceiling=False),
        Aim("bytes on the WAN per byte of payload", WAN_BYTES, figures["wan_bytes_per_payload_byte"], is_ceiling=True),
    ]


# --- for people -----------------------------------------------------------------------------------------------------


def rounded(figure: float | None, digits: int = 1) -> float | None:
    return None if figure is None else round(figure, digits)


def processes_table(processes: Mapping[str, Mapping[str, Any]]) -> str:
    """CPU and stalls of every process under the steady load."""
    header = ("process", "cores", "stalls > 50 ms", "longest ms (since start)")
    rows = [
        [name, cell(found["cores"], 2), cell(found.get("stalls_above_50_ms")), cell(found.get("stall_ms_max"), 0)]
        for name, found in processes.items()
    ]
    return table(header, rows)


def dcs_table(dcs: Mapping[str, Mapping[str, Any]]) -> str:
    """Writes of each datacenter's clients, and the lag of what came into it."""
    header = ("datacenter", "writes/s", "p50 ms", "p99 ms", "errors", "lag in p50 ms", "lag in p99 ms")
    rows = [
        [
            name,
            cell(found["writes_per_s"]),
            cell(found["write_p50_ms"], 1),
            cell(found["write_p99_ms"], 1),
            cell(found["write_errors"]),
            cell(found["lag_p50_ms"]),
            cell(found["lag_p99_ms"]),
        ]
        for name, found in dcs.items()
    ]
    return table(header, rows)
