"""Compaction: several runs of a namespace become one, merged as the node would merge them.

    inputs, newest run first  -->  merged  -->  what may go is left out  -->  one run, cut at the target size

A tombstone goes only where the rule covers it and nothing else of this replica may hold its key: of every other
table, newer ones too, the filter must say no. A filter that errs keeps a tombstone longer, never shorter.

Invariants: inputs are read whole and checked; any damage ends the job, and nothing changes. Merging is that of the
namespace's policy, so merge(compact(x), y) == compact(merge(x, y)).
Not here: which runs (`strategy`), the switch to the outputs (`engine`).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from geokv.core.conflict import Policy, stored_policy
from geokv.storage.disk import Disk
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.jobs import Compaction
from geokv.storage.lsm.merging import Pair, merged, whole
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import Pace, unpaced, write_tables
from geokv.storage.lsm.traits import traits_of


def compact(disk: Disk, job: Compaction, pace: Pace = unpaced) -> tuple[TableFacts, ...]:
    """Do the job; the tables that it wrote, durable, none where nothing was left. Raises StorageError, DiskFull."""
    if job.is_move:
        return ()  # the tables stay as they are, the manifest will say where
    uncached = BlockCache(0)
    runs = [[TableReader(disk, number, uncached) for number in run] for run in job.inputs]
    pairs = merged([chain.from_iterable(table.all_pairs() for table in run) for run in runs], traits_of(job.policy).merge)
    if job.is_bottom:
        pairs = whole(pairs)
    if job.rule is not None:
        others = [TableReader(disk, number, uncached) for number in job.others]
        pairs = _kept(pairs, job.rule, stored_policy(job.policy), others)
    written = write_tables(disk, job.number, job.namespace, job.policy, pairs, job.options, pace)
    return tuple(facts.at(job.level, job.run) for facts in written)


def _kept(pairs: Iterator[Pair], rule: CollectionRule, policy: Policy, others: list[TableReader]) -> Iterator[Pair]:
    """The pairs without what may be collected."""
    for key, cell in pairs:
        if not rule.covers(policy, key, cell) or any(other.may_contain(key) for other in others):
            yield key, cell
