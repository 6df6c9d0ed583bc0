"""Verifying: every byte of manifest and live tables is read and checked, and nothing is changed.

Checksums find what a disk did. What the writer may have done wrong is looked at too: keys out of order, a filter that
denies a key, facts that are not those of the pairs, tables of one run that overlap.

Invariants: one damaged file does not hide another. Works on a folder whose node is stopped, through any Disk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from geokv.core.partial import Partial
from geokv.errors import StorageError
from geokv.storage.disk import Disk
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.facts import FOLDER, TableFacts
from geokv.storage.lsm.manifest import NAME, read_manifest
from geokv.storage.lsm.sealing import damaged
from geokv.storage.lsm.strategy import are_disjoint, runs_of
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.wal_verify import Damage


def verify(disk: Disk, passed_over: Collection[str] = ()) -> Iterator[Damage]:
    """Every damage that is found, file by file; nothing where the folder holds no manifest and no table.

    `passed_over`: names of tables that need not be read.
    """
    try:
        if not disk.exists(NAME):
            if any(name.endswith(".sst") for name in disk.list(FOLDER)):
                yield _damage(damaged(NAME, 0, "it is not there, and tables are"), NAME)
            return
        state = read_manifest(disk)
    except StorageError as error:
        yield _damage(error, NAME)
        return
    for tables in state.tables.values():
        for run in runs_of(tables):
            if not are_disjoint(run):
                yield Damage(NAME, 0, f"tables of run {run[0].run} at level {run[0].level} overlap")
    for one in state.quarantined:
        yield Damage(one.facts.name, one.offset, f"{one.facts.name}: in quarantine, damaged at byte {one.offset}: {one.what}")
    for facts in state.all_tables():
        if facts.name in passed_over:
            continue
        try:
            if not disk.exists(facts.name):
                yield Damage(facts.name, 0, damaged(NAME, 0, f"it names {facts.name}, which is not there").message)
                continue
            _verify_table(disk, facts)
        except StorageError as error:
            yield _damage(error, facts.name)


def _verify_table(disk: Disk, facts: TableFacts) -> None:
    """Raises StorageError for the first thing that is wrong with a table."""
    table = TableReader(disk, facts.number, BlockCache(0))
    if table.facts != facts.at(0, 0):
        raise damaged(facts.name, table.facts.nbytes, "it is not the table that the manifest means")
    pairs = partials = 0
    last: bytes | None = None
    for key, cell in table.all_pairs():
        if last is not None and key <= last:
            raise damaged(facts.name, 0, f"key {key[:64]!r} does not stand behind {last[:64]!r}")
        if not table.may_contain(key):
            raise damaged(facts.name, 0, f"its filter or key range denies key {key[:64]!r}")
        last = key
        pairs += 1
        partials += type(cell) is Partial
    if (pairs, partials) != (facts.pairs, facts.partials):
        raise damaged(facts.name, facts.nbytes, f"it holds {pairs} pairs, {partials} of them partial, and states other numbers")


def _damage(error: StorageError, name: str) -> Damage:
    path = str(error.details.get("path", name)).rpartition("/")[2]  # the system's own errors name the whole path
    return Damage(f"{FOLDER}/{path}", int(error.details.get("offset", 0)), str(error))
