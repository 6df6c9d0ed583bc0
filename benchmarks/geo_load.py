"""One time under steady load, for `benchmarks.geo`: orders to the clients, readings at its edges, and figures from both.

    warm-up ──> reading ── half of the window ──> reading ── the other half ──> reading

Not here: the clients themselves (geo_clients.py), and what is made of several such times (geo.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.geo_clients import BUCKETS_PER_MS, CALL_TIMEOUT_S
from benchmarks.geo_lab import GeoLab, Metrics, Snapshot
from benchmarks.geo_report import (
    Buckets,
    Figures,
    Half,
    bucket_percentile,
    is_growing,
    is_sustained,
    lag_buckets,
    merged_percentile,
    rounded,
)

WARM_UP_S: Final = 3.0
STALL_MS: Final = 50


@dataclass
class Load:
    """What one time under steady load showed: counters at its edges and in its middle, and the clients' counts."""

    rate: float
    seconds: float
    start: Snapshot
    middle: Snapshot
    end: Snapshot
    clients: dict[str, Figures]

    def buckets(self, dc_nodes: Sequence[str] | None = None) -> Buckets:
        return _lag_between(self.start, self.end, dc_nodes)

    def half(self, earlier: Snapshot, later: Snapshot) -> Half:
        found = _lag_between(earlier, later, None)
        backlog = sum(later.sum(name) for name in _unshipped_names(later))
        return Half(bucket_percentile(found, 50), bucket_percentile(found, 99), round(backlog))

    @property
    def halves(self) -> tuple[Half, Half]:
        return self.half(self.start, self.middle), self.half(self.middle, self.end)

    @property
    def grows(self) -> bool | None:
        return is_growing(*self.halves, self.rate)

    @property
    def writes_per_s(self) -> float:
        return float(sum(found["acknowledged_in_window"] for found in self.clients.values()) / self.seconds)

    @property
    def acknowledged(self) -> int:
        return sum(found["acknowledged"] for found in self.clients.values())

    @property
    def errors(self) -> int:
        return sum(found["errors"] for found in self.clients.values())

    @property
    def is_sustained(self) -> bool:
        return is_sustained(self.writes_per_s, self.rate, self.errors, self.grows)

    def write_percentile(self, percent: float, dc: str | None = None) -> float | None:
        wanted = list(self.clients) if dc is None else [dc]
        return merged_percentile([self.clients[name]["latencies"] for name in wanted], percent, BUCKETS_PER_MS)

    def visible_percentile(self, percent: float) -> float | None:
        return merged_percentile([found["visible"] for found in self.clients.values()], percent, BUCKETS_PER_MS)

    @property
    def other_cores(self) -> float | None:
        """Cores that were busy with neither nodes, proxies nor clients (this process, which reads along, is counted in)."""
        used = [_difference(self.start.cpu_s[name], self.end.cpu_s[name]) for name in self.start.cpu_s]
        machine = _difference(self.start.machine_cpu_s, self.end.machine_cpu_s)
        if machine is None or any(each is None for each in used):
            return None
        return max(0.0, (machine - sum(each for each in used if each is not None)) / (self.end.at_s - self.start.at_s))


def _difference(earlier: float | None, later: float | None) -> float | None:
    return None if earlier is None or later is None else later - earlier


def _lag_between(earlier: Snapshot, later: Snapshot, nodes: Sequence[str] | None) -> Buckets:
    wanted = list(later.metrics) if nodes is None else nodes
    return lag_buckets([earlier.metrics[node] for node in wanted], [later.metrics[node] for node in wanted])


def _unshipped_names(found: Snapshot) -> set[str]:
    return {name for metrics in found.metrics.values() for name in metrics if name.startswith("ship.unshipped_records.")}


def run_load(lab: GeoLab, rate: float, seconds: float, probes_per_s: float, one_way_ms: float) -> Load:
    """Writes from the clients of all datacenters at `rate` in all; counted for `seconds` after the warm-up."""
    order = {
        "do": "steady",
        "rate": rate / len(lab.dcs),
        "warm_up_s": WARM_UP_S,
        "seconds": seconds,
        "probes_per_s": probes_per_s,
        "probe_after_s": one_way_ms * 0.9e-3,
    }
    begun_s = time.monotonic()
    waiting = lab.order(dict.fromkeys(lab.dcs, order), WARM_UP_S + seconds + 4 * CALL_TIMEOUT_S)

    def snapshot_after(share: float) -> Snapshot:
        time.sleep(max(0.0, begun_s + WARM_UP_S + share * seconds - time.monotonic()))
        return lab.snapshot()

    start, middle, end = snapshot_after(0.0), snapshot_after(0.5), snapshot_after(1.0)
    return Load(rate, seconds, start, middle, end, {dc: future.result() for dc, future in waiting.items()})


def dc_figures(lab: GeoLab, load: Load, dc: str) -> Figures:
    buckets = load.buckets(lab.nodes_of(dc))
    return {
        "writes_per_s": rounded(load.clients[dc]["acknowledged_in_window"] / load.seconds),
        "write_p50_ms": load.write_percentile(50, dc),
        "write_p99_ms": load.write_percentile(99, dc),
        "write_errors": load.clients[dc]["errors"],
        "lag_p50_ms": rounded(bucket_percentile(buckets, 50)),
        "lag_p99_ms": rounded(bucket_percentile(buckets, 99)),
    }


def process_figures(load: Load) -> dict[str, Figures]:
    took_s = load.end.at_s - load.start.at_s
    found: dict[str, Figures] = {}
    for name in load.start.cpu_s:
        used_s = _difference(load.start.cpu_s[name], load.end.cpu_s[name])
        found[name] = {"cores": None if used_s is None else round(used_s / took_s, 3)}
        if name in load.end.metrics:
            earlier, later = load.start.metrics[name], load.end.metrics[name]
            found[name]["stalls_above_50_ms"] = round(_stalls_above(later) - _stalls_above(earlier))
            found[name]["stall_ms_max"] = later.get("loop.stall_ms_max")
    return found


def _stalls_above(metrics: Metrics) -> float:
    """How often the event loop of a node woke more than STALL_MS late."""
    named = [name for name in metrics if name.startswith("loop.stalls_up_to_") and float(name.split("_")[3]) > STALL_MS]
    return float(sum(metrics[name] for name in [*named, "loop.stalls_longer"] if name in metrics))


def events_between(before: Snapshot, after: Snapshot) -> Figures:
    """What happened inside the nodes meanwhile that should be rare: all their counted events that moved."""
    names = {name for metrics in after.metrics.values() for name in metrics if name.startswith(("events.", "transport.d"))}
    moved = {name.removeprefix("events."): round(after.sum(name) - before.sum(name)) for name in sorted(names)}
    return {name: count for name, count in moved.items() if count}
