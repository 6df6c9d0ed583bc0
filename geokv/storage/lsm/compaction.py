"""Compaction: several runs of a namespace become one, merged as the node would merge them.

    inputs, newest run first  -->  merged  -->  what may go is left out  -->  one run, cut at the target size

A tombstone goes only where the rule covers it and nothing else of this replica may hold its key: of every other
table, newer ones too, the filter must say no. A filter that errs keeps a tombstone longer, never shorter.

A tombstone of dots is as old as the oldest of the inputs in which its key waited already, or newer.

Invariants: inputs are read whole and checked; any damage ends the job, and nothing changes. Merging is that of the
namespace's policy, so merge(compact(x), y) == compact(merge(x, y)).
Not here: which runs (`strategy`), the switch to the outputs (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from geokv.core.conflict import Policy, stored_policy
from geokv.storage.disk import Disk
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.jobs import Compaction
from geokv.storage.lsm.merging import Stretch, merged, whole
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import Pace, unpaced, write_tables
from geokv.storage.lsm.traits import traits_of


def compact(disk: Disk, job: Compaction, pace: Pace = unpaced) -> tuple[TableFacts, ...]:
    """Do the job; the tables that it wrote, durable, none where nothing was left. Raises StorageError, DiskFull."""
    if job.is_move:
        return ()  # the tables stay as they are, the manifest will say where
    uncached = BlockCache(0)
    runs = [[TableReader(disk, number, uncached) for number in run] for run in job.inputs]
    traits = traits_of(job.policy)
    dates = _Dates(traits.waits)
    stretches = merged([chain.from_iterable(map(dates.stretches_of, run)) for run in runs], traits.merge)
    if job.is_bottom:
        stretches = whole(stretches)
    if job.rule is not None:
        others = [TableReader(disk, number, uncached) for number in job.others]
        stretches = _kept(stretches, job.rule, stored_policy(job.policy), others, dates)
    written = write_tables(disk, job.number, job.namespace, job.policy, stretches, job.options, pace, since=dates.take)
    return tuple(facts.at(job.level, job.run) for facts in written)


def _kept(
    stretches: Iterator[Stretch], rule: CollectionRule, policy: Policy, others: list[TableReader], dates: _Dates
) -> Iterator[Stretch]:
    """Without what may be collected."""
    for keys, cells in stretches:
        kept = []
        for index, key in enumerate(keys):
            if not rule.covers(policy, key, cells[index]) or any(other.may_contain(key) for other in others):
                kept.append(index)
            else:
                dates.take(key)
        if kept:
            yield [keys[index] for index in kept], [cells[index] for index in kept]


class _Dates:
    """Since when keys wait, as the inputs say. `waits`: None where versions tell, and nothing is noted."""

    def __init__(self, waits: Callable[[bytes], bool] | None) -> None:
        self._waits = waits
        self._since: dict[bytes, int] = {}

    def stretches_of(self, table: TableReader) -> Iterator[Stretch]:
        """All of it, with a note of the keys that wait."""
        waits, oldest, since = self._waits, table.facts.oldest, self._since
        for keys, cells in table.all_stretches():
            if waits is not None and table.facts.tombstones:
                for key, cell in zip(keys, cells, strict=True):
                    if waits(cell):
                        since[key] = min(since.get(key, oldest), oldest)
            yield keys, cells

    def take(self, key: bytes) -> int:
        """See `table_writer.Since`; 0 where it waits only now that the inputs were merged."""
        return self._since.pop(key, 0)
