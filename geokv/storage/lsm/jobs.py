"""Jobs: what the worker is asked to do, and what the manifest becomes by it.

    engine plans  -->  Flush | Compaction  --run-->  tables  -->  Edit  -->  engine installs

A job is a value that crosses to another process: numbers of files, names of policies, small options, no cells. Its
number is unique and part of the names of its outputs, so two jobs never write the same file, in any order, and a job
that died leaves nothing that a later one could take for its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.facts import DamagedTable, TableFacts
from geokv.storage.lsm.table_writer import TableOptions
from geokv.storage.position import Position


@dataclass(frozen=True, slots=True)
class FlushedNamespace:
    """A namespace in a flush. `is_first`: it has no table yet, so that what is flushed is whole.

    `has_dictionary`: its tables are to have one, where it pays.
    """

    id: int
    policy: str
    is_first: bool
    has_dictionary: bool = False


@dataclass(frozen=True, slots=True)
class Flush:
    """Make tables of the frames from `begin` up to `end`; `meta` is the node's state at `end`."""

    number: int
    begin: Position
    end: Position
    namespaces: tuple[FlushedNamespace, ...]
    options: TableOptions
    meta: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Compaction:
    """Make one run of several, newest first; `others`: tables of the namespace that are not among them.

    `is_bottom`: no other table holds anything older of these keys. Where nothing must be written `is_move` says so.
    """

    number: int
    namespace: int
    policy: str
    inputs: tuple[tuple[int, ...], ...]
    others: tuple[int, ...]
    level: int
    run: int
    is_bottom: bool
    is_move: bool
    options: TableOptions
    rule: CollectionRule | None = None

    @property
    def input_numbers(self) -> frozenset[int]:
        return frozenset(number for run in self.inputs for number in run)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Set these tables aside. There is nothing for a worker to do: installing it is all."""

    number: int
    tables: tuple[DamagedTable, ...]


Job = Flush | Compaction | Quarantine


@dataclass(frozen=True, slots=True)
class KeyOrder:
    """The keys of the jobs that follow, as the lines of a key file. Of no job: these are shown in errors and logs."""

    lines: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Edit:
    """What changes in the manifest: `added` replace the tables `removed`, `quarantined` are set aside where they are live.

    `position` and `meta` move with a flush.
    """

    added: tuple[TableFacts, ...] = ()
    removed: frozenset[int] = frozenset()
    position: Position | None = None
    meta: bytes = field(default=b"", repr=False)
    quarantined: tuple[DamagedTable, ...] = ()
