"""Figures, medians, ratios and aims of the comparison: what goes into the JSON file and onto the screen.

```
rounds[].figures -> system -> callers -> figure        each round as it was measured
median           -> system -> callers -> figure        the median of the rounds
ratios           -> callers -> figure -> other system  geokv's median divided by the other's
aims[]           aim, callers, wanted, measured, is_met
```

Every system and every number of callers that was asked for has all its keys; what was not measured is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import cell, median, quotient, table
from benchmarks.workload import PhaseFigures

OURS = "geokv"
WRITE_FIGURES = (
    "writes_per_s",
    "write_p50_ms",
    "write_p99_ms",
    "cpu_us_per_write",
    "client_cpu_us_per_write",
    "server_cpu_us_per_write",
)
READ_FIGURES = (
    "reads_per_s",
    "read_p50_ms",
    "read_p99_ms",
    "cpu_us_per_read",
    "client_cpu_us_per_read",
    "server_cpu_us_per_read",
)
RATIO_FIGURES = (
    "writes_per_s",
    "reads_per_s",
    "write_p50_ms",
    "write_p99_ms",
    "read_p50_ms",
    "cpu_us_per_write",
)
HEADER = (
    "system",
    "callers",
    "writes/s",
    "p50 ms",
    "p99 ms",
    "CPU µs (client + server)",
    "reads/s",
    "p50 ms",
    "CPU µs (client + server)",
    "local reads/s",
)

Figures = dict[str, float | None]
BySystem = dict[str, dict[str, Figures]]


def local_figure(system: str) -> str:
    """The name of the figure for reads that one replica answers: a level in geokv, the like elsewhere."""
    return "reads_one_per_s" if system == OURS else "reads_local_per_s"


def empty_figures(system: str) -> Figures:
    """All keys, nothing measured."""
    return dict.fromkeys((*WRITE_FIGURES, *READ_FIGURES, local_figure(system), "other_cores", "errors"))


def figures_of(system: str, write: PhaseFigures, read: PhaseFigures, local: PhaseFigures) -> Figures:
    """The three phases of one system with one number of callers, by the names that the JSON has."""
    measured: list[float | None] = []
    for phase in (write, read):
        measured += [phase.calls_per_s, phase.p50_ms, phase.p99_ms]
        measured += [phase.cpu_us, phase.client_cpu_us, phase.server_cpu_us]
    figures: Figures = dict(zip((*WRITE_FIGURES, *READ_FIGURES), measured, strict=True))
    figures[local_figure(system)] = local.calls_per_s
    disturbances = [phase.other_cores for phase in (write, read, local) if phase.other_cores is not None]
    figures["other_cores"] = max(disturbances, default=None)
    figures["errors"] = write.errors + read.errors + local.errors
    return {name: None if figure is None else _rounded(figure) for name, figure in figures.items()}


def _rounded(figure: float) -> float:
    return round(figure, 1) if abs(figure) >= 100 else round(figure, 4)


def medians(rounds: Iterable[Mapping[str, Mapping[str, Figures]]], systems: Sequence[str], callers: Sequence[int]) -> BySystem:
    """Per system, callers and figure the median of the rounds in which it was measured."""
    measured = list(rounds)
    result: BySystem = {}
    for system in systems:
        result[system] = {}
        for count in map(str, callers):
            seen = [figures for each in measured if (figures := each.get(system, {}).get(count)) is not None]
            result[system][count] = {name: median(figures[name] for figures in seen) for name in empty_figures(system)}
    return result


def ratios(middle: BySystem) -> dict[str, dict[str, dict[str, float | None]]]:
    """Geokv's medians divided by those of each other system."""
    others = [system for system in middle if system != OURS]
    counts = next(iter(middle.values()), {})
    return {
        count: {name: {other: _ratio(middle, count, name, other) for other in others} for name in RATIO_FIGURES}
        for count in counts
    }


def _ratio(middle: BySystem, count: str, name: str, other: str) -> float | None:
    found = quotient(_figure(middle, OURS, count, name), _figure(middle, other, count, name))
    return None if found is None else _rounded(found)


def _figure(middle: BySystem, system: str, count: str, name: str) -> float | None:
    return middle.get(system, {}).get(count, {}).get(name)


@dataclass(frozen=True)
class Aim:
    """One figure of geokv that is aimed at: by itself, or as a multiple of another system's."""

    callers: int
    figure: str
    wanted: float
    other: str | None = None
    is_ceiling: bool = False

    def measured(self, middle: BySystem) -> float | None:
        """Geokv's figure, or how many times the other's it is; None where either was not measured."""
        ours = _figure(middle, OURS, str(self.callers), self.figure)
        if self.other is None:
            return ours
        return quotient(ours, _figure(middle, self.other, str(self.callers), self.figure))

    def is_met(self, middle: BySystem) -> bool | None:
        """None where it was not measured."""
        measured = self.measured(middle)
        if measured is None:
            return None
        return measured <= self.wanted if self.is_ceiling else measured >= self.wanted

    @property
    def name(self) -> str:
        bound = "at most" if self.is_ceiling else "at least"
        return f"{self.figure} at {self.callers} caller{'s' if self.callers > 1 else ''}, {bound}" + (
            f" {self.wanted:.1f}x {self.other}" if self.other else f" {self.wanted:,.0f}"
        )

    def line(self, middle: BySystem) -> str:
        """aim 3.0x, measured 3.4x."""
        measured, met = self.measured(middle), self.is_met(middle)
        if measured is None:
            return f"{self.name}: not measured"
        shown = f"{measured:.2f}x" if self.other else f"{measured:,.0f}"
        wanted = f"{self.wanted:.1f}x" if self.other else f"{self.wanted:,.0f}"
        return f"{self.name}: aim {wanted}, measured {shown} ({'met' if met else 'NOT met'})"


AIMS = (
    Aim(256, "writes_per_s", 3.0, "etcd"),
    Aim(256, "writes_per_s", 2.0, "redis"),
    Aim(256, "writes_per_s", 2.0, "nats"),
    Aim(64, "writes_per_s", 1.5, "etcd"),
    Aim(64, "writes_per_s", 1.0, "redis"),
    Aim(1, "write_p50_ms", 1.5, "etcd", is_ceiling=True),
    Aim(256, "reads_per_s", 45_000),
    Aim(256, "reads_one_per_s", 80_000),
)


def aims(middle: BySystem) -> list[dict[str, Any]]:
    """Every aim with what was measured, as the JSON has it."""
    return [
        {
            "aim": aim.name,
            "callers": aim.callers,
            "wanted": aim.wanted,
            "measured": aim.measured(middle),
            "is_met": aim.is_met(middle),
        }
        for aim in AIMS
    ]


def aims_text(middle: BySystem) -> str:
    """One line per aim."""
    return "\n".join(aim.line(middle) for aim in AIMS)


def figures_table(middle: BySystem) -> str:
    """A row per number of callers and system."""
    counts = list(next(iter(middle.values()), {}))
    return table(HEADER, [_row(middle, system, count) for count in counts for system in middle])


def disturbance(middle: BySystem) -> float | None:
    """The most cores that other processes used beside any one measurement, by the medians."""
    found = [figures["other_cores"] for by_callers in middle.values() for figures in by_callers.values()]
    return max((cores for cores in found if cores is not None), default=None)


def _row(middle: BySystem, system: str, count: str) -> list[str]:
    figures = middle[system][count]
    return [
        system,
        count,
        cell(figures["writes_per_s"]),
        cell(figures["write_p50_ms"], 2),
        cell(figures["write_p99_ms"], 2),
        _cpu_cell(figures, "write"),
        cell(figures["reads_per_s"]),
        cell(figures["read_p50_ms"], 2),
        _cpu_cell(figures, "read"),
        cell(figures[local_figure(system)]),
    ]


def _cpu_cell(figures: Figures, operation: str) -> str:
    parts = [cell(figures[f"{side}cpu_us_per_{operation}"]) for side in ("", "client_", "server_")]
    return f"{parts[0]} ({parts[1]} + {parts[2]})"
