"""What to compact next: pure functions from the manifest's facts to a choice.

    levelled       L0   [....]  [....]  [....]      runs as they were flushed, overlapping; small ones are gathered first
                   L1   [.][.][.]                   one run, `base_bytes` in all
                   L2   [.][.][.][.][.][.]          one run, `ratio` times as much
    size-tiered    L0   [.] [.] [..] [........]     runs of any size; neighbours in age that are alike are merged

Levelled reads less: one table per level at most holds a key. Size-tiered writes less. Both keep one order: whatever is
merged stands next to each other in age, so what is newer stays in front.

Invariants: the same tables give the same choice. A choice's inputs are newest first and include every table between
them in age that overlaps them; its output overlaps nothing at its level. `None` means that nothing is due.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, Protocol

from geokv.storage.lsm.facts import JOB_SHIFT, TableFacts

MIB = 1024 * 1024
SHED_SMALL_BYTES: Final = 4 * MIB  # a namespace of so much is compacted as a whole for a single tombstone
SHED_SHARE: Final = 8
ALIKE_RATIO: Final = 1.2
Run = tuple[TableFacts, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Merge `inputs` (runs, newest first) into one run at `level`, `run`. `score`: how overdue it is, from 1.0 up."""

    inputs: tuple[Run, ...]
    level: int
    run: int
    score: float
    is_bottom: bool
    is_move: bool = False


class Strategy(Protocol):
    """Chooses what to compact next of one namespace, and says how much is overdue."""

    def choose(self, tables: Sequence[TableFacts]) -> Choice | None: ...

    def debt_bytes(self, tables: Sequence[TableFacts]) -> int:
        """Bytes that stand where they should not stay."""


@dataclass(frozen=True, slots=True)
class Levelled:
    """See the module. At most `flushed_runs_max` runs of level 0 go into one job, the oldest first.

    `base_bytes`: what `flushed_runs` of a full memtable come to. Of less, most of each job would be pushed on at once, and
    written twice. A namespace that has a small part of the writes flushes less: so, while level 0 is less than a part of
    1/`gathered_share` of level 1, all of which it would have to be merged with, its runs are merged with each other only.
    """

    flushed_runs: int = 4
    flushed_runs_max: int = 8
    base_bytes: int = 256 * MIB
    ratio: int = 10
    gathered_share: int = 4

    def choose(self, tables: Sequence[TableFacts]) -> Choice | None:
        runs = runs_of(tables)
        flushed = [run for run in runs if run[0].level == 0]
        is_small = self._is_small(flushed, tables)
        if is_small and (alike := alike_neighbours(flushed, self.flushed_runs)):
            return _merge(alike, tables, len(alike) / self.flushed_runs)
        scores = [(0.0 if is_small else len(flushed) / self.flushed_runs, 0)]
        scores += [(_bytes(run) / self._bytes_max(run[0].level), run[0].level) for run in runs if run[0].level]
        score, level = max(scores, key=lambda scored: (scored[0], -scored[1]))
        if score < 1.0 or (level and _bytes(_at(tables, level)) <= self._bytes_max(level)):
            return None
        # The least number is the table that has stood longest: so every key range has its turn.
        moved: list[Run] = (
            flushed[-self.flushed_runs_max :] if level == 0 else [(min(_at(tables, level), key=lambda one: one.number),)]
        )
        return self._down(tables, moved, level + 1, score)

    def _is_small(self, flushed: list[Run], tables: Sequence[TableFacts]) -> bool:
        """Whether level 0 had better grow before it is merged with level 1."""
        if not flushed or len(flushed) >= self.flushed_runs_max:
            return False
        is_less = sum(map(_bytes, flushed)) * self.gathered_share < _bytes(_at(tables, 1))
        return is_less and not self._down(tables, flushed, 1, 1.0).is_move

    def _down(self, tables: Sequence[TableFacts], moved: list[Run], level: int, score: float) -> Choice:
        """Merge `moved` with what they overlap at `level`."""
        first, last = key_range(moved)
        below = tuple(one for one in _at(tables, level) if one.overlaps(first, last))
        inputs = (*moved, below) if below else tuple(moved)
        is_move = not below and are_disjoint(one for run in moved for one in run)
        return Choice(inputs, level, 0, score, is_bottom(inputs, tables), is_move)

    def debt_bytes(self, tables: Sequence[TableFacts]) -> int:
        runs = runs_of(tables)
        flushed = [run for run in runs if run[0].level == 0]
        if self._is_small(flushed, tables):
            flushed = alike_neighbours(flushed, self.flushed_runs)
        debt = sum(map(_bytes, flushed)) if len(flushed) >= self.flushed_runs else 0
        return debt + sum(max(0, _bytes(run) - self._bytes_max(run[0].level)) for run in runs if run[0].level)

    def _bytes_max(self, level: int) -> int:
        return int(self.base_bytes * self.ratio ** (level - 1))


@dataclass(frozen=True, slots=True)
class SizeTiered:
    """See the module."""

    runs_min: int = 4
    runs_max: int = 12

    def choose(self, tables: Sequence[TableFacts]) -> Choice | None:
        runs = runs_of(tables)
        if alike := alike_neighbours(runs, self.runs_min):
            return _merge(alike, tables, len(alike) / self.runs_min)
        if len(runs) > self.runs_max:
            return _merge(runs[: len(runs) - self.runs_max + 1], tables, len(runs) / self.runs_max)
        return None

    def debt_bytes(self, tables: Sequence[TableFacts]) -> int:
        choice = self.choose(tables)
        return 0 if choice is None else sum(map(_bytes, choice.inputs))


STRATEGIES: Final[dict[str, Callable[[], Strategy]]] = {"levelled": Levelled, "size-tiered": SizeTiered}


def everything(tables: Sequence[TableFacts]) -> Choice | None:
    """All tables into one run: what an operator asks for. None where there are none."""
    runs = runs_of(tables)
    if not runs:
        return None
    deepest = max(run[0].level for run in runs)
    return Choice(tuple(runs), deepest, 0 if deepest else runs[0][0].run, 1.0, is_bottom=True)


def shed(tables: Sequence[TableFacts], clock_ms: int, first_job: int) -> Choice | None:
    """What to compact although nothing is too large, because a part of it may be collected; None where it is not worth it.

    `first_job`: tables of earlier jobs were not compacted yet under the rule that stands: what is left in the others stays
    until there is another one. A namespace that is small is made one run. Of a large one a table that is dead to a part of
    1/SHED_SHARE is merged with what lies below it, and so on downwards: at the bottom its tombstones go.
    """
    dead = [one for one in tables if one.collectable(clock_ms)]
    fresh = [one for one in dead if one.number >> JOB_SHIFT < first_job]
    if not fresh:
        return None
    if sum(one.nbytes for one in tables) <= SHED_SMALL_BYTES:
        return everything(tables)
    heavy = [one for one in fresh if one.collectable(clock_ms) * SHED_SHARE >= one.pairs]
    if not heavy:
        return None
    runs = runs_of(tables)
    one = max(heavy, key=lambda facts: (facts.level, facts.collectable(clock_ms) / facts.pairs))
    upper = [run for run in runs if run[0].level == 0] if one.level == 0 else [(one,)]
    first, last = key_range(upper)
    deeper = sorted({run[0].level for run in runs if run[0].level > one.level})
    for level in deeper:
        below = tuple(facts for facts in _at(tables, level) if facts.overlaps(first, last))
        if below:
            inputs = (*upper, below)
            return Choice(inputs, level, 0, 0.0, is_bottom(inputs, tables))
    return Choice(tuple(upper), upper[0][0].level, upper[0][0].run, 0.0, is_bottom=True)


# --- facts of facts -------------------------------------------------------------------------------------------------


def runs_of(tables: Iterable[TableFacts]) -> list[Run]:
    """The runs, newest first, each in key order."""
    in_order = sorted(tables, key=lambda one: one.recency)
    return [tuple(run) for _, run in groupby(in_order, key=lambda one: (one.level, one.run))]


def key_range(runs: Iterable[Run]) -> tuple[bytes, bytes]:
    """The least and the greatest key of some runs."""
    tables = [one for run in runs for one in run]
    return min(one.first_key for one in tables), max(one.last_key for one in tables)


def alike_neighbours(runs: Sequence[Run], least: int) -> list[Run]:
    """The newest runs, `least` or more, each at most ALIKE_RATIO times what the newer of them come to; else none."""
    for start in range(len(runs) - least + 1):
        window, gathered = [runs[start]], _bytes(runs[start])
        for run in runs[start + 1 :]:
            if _bytes(run) > gathered * ALIKE_RATIO:
                break
            window.append(run)
            gathered += _bytes(run)
        if len(window) >= least:
            return window
    return []


def are_disjoint(tables: Iterable[TableFacts]) -> bool:
    in_order = sorted(tables, key=lambda one: one.first_key)
    return all(left.last_key < right.first_key for left, right in pairwise(in_order))


def is_bottom(inputs: tuple[Run, ...], tables: Iterable[TableFacts]) -> bool:
    """Whether no table outside holds anything older of these keys."""
    first, last = key_range(inputs)
    inside = {one.number for run in inputs for one in run}
    oldest = max((run[0].level, -run[0].run) for run in inputs)
    return not any((one.level, -one.run) >= oldest and one.overlaps(first, last) for one in tables if one.number not in inside)


def _merge(window: Sequence[Run], tables: Sequence[TableFacts], score: float) -> Choice:
    inputs = tuple(window)
    return Choice(inputs, inputs[0][0].level, inputs[0][0].run, score, is_bottom(inputs, tables))


def _at(tables: Iterable[TableFacts], level: int) -> Run:
    return tuple(sorted((one for one in tables if one.level == level), key=lambda one: one.first_key))


def _bytes(run: Run) -> int:
    return sum(one.nbytes for one in run)
