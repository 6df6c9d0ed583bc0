"""The LSM engine of a node: its namespaces, and the one place where it changes which tables are live.

    freeze:   begin_flush  -> Flush       }                    }
    choose:   next_compaction -> Compaction }  run_job (worker)  }  install  -> manifest, then views, then old files

One job at a time: the node plans it, the worker runs it, a thread installs it (it writes and syncs), and the node may
plan the next. Reads and puts go on all the while. In the simulator all four are plain calls.

    log position of the manifest        recovery merges the frames from there on into the memtables (`merge_in`)
    meta                                the node's own state at that position, a file that the manifest names

After the keys of an encrypted node were rotated, tables of other keys are rewritten one by one, where they stand, when
nothing else is to be compacted; manifest and state are, when none is left.

A table that is found damaged, by a read, a job or on opening, is read once more. Where it is damaged still, it is told
(`damaged`), and set aside by a job of its own (`begin_quarantine`) once the node has done what must be done before that. Until
then it is not merged; a read that fails there (EIO) sets nothing aside.

Invariants: a table's file is removed only when a synced manifest no longer names it, one that was set aside never. The
position never moves back.
After a failed install what was there stands; the files of both sides stay until the next one that succeeds.
Not here: when to flush, and the log (the node); what to compact (`strategy`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from geokv.core.namespace import LSM
from geokv.errors import Damaged, EncryptionKeyError, StorageError
from geokv.storage.disk import Disk
from geokv.storage.engine import Held
from geokv.storage.engines import check_held
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.cells import DeadInMemory, LsmCells, ReaderRun
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.facts import JOB_SHIFT, DamagedTable, TableFacts, table_name
from geokv.storage.lsm.jobs import Compaction, Edit, Flush, FlushedNamespace, Job, Quarantine
from geokv.storage.lsm.manifest import State, manifest_key_id, open_manifest, stage_manifest, switch_manifest, table_numbers
from geokv.storage.lsm.merging import in_stretches
from geokv.storage.lsm.meta import meta_key_id, meta_name, write_meta
from geokv.storage.lsm.sealing import damaged
from geokv.storage.lsm.strategy import Choice, Levelled, Strategy, everything, runs_of, shed
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import TableOptions, write_tables
from geokv.storage.position import Position

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class LsmOptions:
    """How a node's engine works; sizes in bytes. The namespaces share the row cache's equally."""

    tables: TableOptions = field(default_factory=TableOptions)
    strategy: Strategy = field(default_factory=Levelled)
    block_cache_bytes: int = 64 * MIB
    row_cache_bytes: int = 16 * MIB


class LsmEngine:
    """See the module. `LsmEngine(disk)` opens what is there; raises StorageError where more than a table is damaged."""

    def __init__(self, disk: Disk, options: LsmOptions | None = None) -> None:
        self.options = options or LsmOptions()
        self.cache = BlockCache(self.options.block_cache_bytes)
        self._disk = disk
        self._state = open_manifest(disk)
        self._next_job = self._state.next_job
        self._damaged: dict[int, DamagedTable] = {}  # live still, and to be set aside
        self._readers = self._opened_readers()
        self._cells: dict[int, LsmCells] = {}
        self._shedding: dict[int, tuple[CollectionRule, int]] = {}  # the rule that counts, and the first job under it
        self.collected: dict[int, int] = {}  # by namespace: tombstones and expired cells that are no more, since this start
        self._doomed: set[int] = set()  # files that no manifest names, or none will once the next one stands
        self._doomed_metas: set[int] = set()  # likewise, by the jobs that wrote them
        self._is_dropped = False  # the manifest names tables of dropped namespaces
        self._manifest_key = manifest_key_id(disk)
        self._meta_key = meta_key_id(disk, self._state.meta_file)
        self._planned_with = disk.keys.ring  # the keys that compactions were planned with last
        self._lock = threading.Lock()  # state, readers, cells and doomed, for moments
        self._installing = threading.Lock()

    # --- what recovery needs ----------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where recovery begins: all frames before it are in tables."""
        return self._state.position

    @property
    def meta(self) -> bytes:
        """The node's state at `position`; empty where nothing was ever flushed."""
        return self._state.meta

    # --- namespaces -------------------------------------------------------------------------------------------------

    def check_holds(self, engine: str) -> None:
        """Raises InvalidRequest for what only `storage.node_engine` has: that needs files, and this may be on any Disk."""
        check_held(engine, has_files=False, is_encrypted=False)

    def restored(self) -> None:
        """Nothing that a namespace has could be older than the manifest."""

    def create(self, namespace: int, policy: str = "lww", engine: str = LSM) -> LsmCells:
        """The cells of a namespace, made where they are not there yet, with the tables that the manifest has of it."""
        self.check_holds(engine)
        cells = self._cells.get(namespace)
        if cells is None:
            with self._lock:
                is_known = namespace in self._state.tables
                first_job = 0 if is_known else self._next_job
                cells = LsmCells(namespace, policy, self.cache, first_job, self.noticed)
                cells.show(self._runs(namespace), Position(), has_collected=False)
                self._cells[namespace] = cells
                self._share_rows()
        return cells

    def set_dictionary(self, namespace: int, is_on: bool) -> None:
        """Whether its tables are to be written with a trained dictionary, from the next job on; for others: nothing."""
        cells = self._cells.get(namespace)
        if cells is not None:
            cells.has_dictionary = is_on

    def define(self, namespace: int, policy: str) -> None:
        """Another policy, under which the cells that are there merge as they did: tables are not written anew for it."""
        self._cells[namespace].define(policy)

    def drop(self, namespace: int) -> None:
        """Forget a namespace. Its tables go with the next install; until then a restart brings them back."""
        with self._lock:
            self._cells.pop(namespace, None)
            self._shedding.pop(namespace, None)
            self.collected.pop(namespace, None)
            self._share_rows()
            tables = dict(self._state.tables)
            self._is_dropped |= namespace in tables
            gone = {facts.number for facts in tables.pop(namespace, ())}
            self._doomed |= gone
            self._state = replace(self._state, tables=tables)
            for number in gone:
                self._readers.pop(number, None)
                self._damaged.pop(number, None)

    def _share_rows(self) -> None:
        for cells in self._cells.values():
            cells.bound_rows(self.options.row_cache_bytes // len(self._cells))

    def table(self, namespace: int) -> LsmCells:
        """KeyError where there is none."""
        return self._cells[namespace]

    def get(self, namespace: int, key: bytes) -> bytes | None:
        cells = self._cells.get(namespace)
        return None if cells is None else cells.get(key)

    def scan(self, namespace: int, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        cells = self._cells.get(namespace)
        return iter(()) if cells is None else cells.scan(start, stop)

    def namespaces(self) -> Iterable[int]:
        return tuple(self._cells)

    def stored_namespaces(self) -> Iterable[int]:
        """Those that have tables, created here or not."""
        return tuple(self._state.tables)

    def __len__(self) -> int:
        """Pairs in all places, see `LsmCells.__len__`."""
        return sum(map(len, self._cells.values()))

    def total_bytes(self) -> int:
        return sum(cells.total_bytes() for cells in self._cells.values())

    def tables(self, namespace: int) -> tuple[TableFacts, ...]:
        """The facts of the live tables, newest first."""
        return tuple(self._state.tables.get(namespace, ()))

    def debt_bytes(self) -> int:
        """What compaction is behind by."""
        return sum(self.options.strategy.debt_bytes(self.tables(namespace)) for namespace in self._cells)

    def figures(self) -> dict[str, int]:
        """What an operator wants to know, by name. Cheap."""
        tables = list(self._state.all_tables())
        return {
            "tables": len(tables),
            "table_bytes": sum(facts.nbytes for facts in tables),
            "table_pairs": sum(facts.pairs for facts in tables),
            "memtable_pairs": sum(cells.memtable_pairs for cells in self._cells.values()),
            "memtables": 1 + max((cells.frozen for cells in self._cells.values()), default=0),
            "debt_bytes": self.debt_bytes(),
            "tables_of_other_keys": self._of_other_keys(),
            "cache_bytes": self.cache.bytes,
            "cache_misses": self.cache.misses,
        }

    def _of_other_keys(self) -> int:
        """Tables that are not written with the key that new files are (or plain, where these are to be)."""
        active = self._disk.keys.ring.active
        return sum(reader.key_id != active for reader in list(self._readers.values()))

    # --- what is damaged --------------------------------------------------------------------------------------------

    def damaged(self) -> tuple[DamagedTable, ...]:
        """The live tables that were found damaged, to be set aside."""
        return tuple(self._damaged.values()) if self._damaged else ()

    def quarantined(self) -> tuple[DamagedTable, ...]:
        """The tables that were set aside."""
        return self._state.quarantined

    def noticed(self, error: Exception) -> None:
        """Something failed, on any thread. Damage of a live table is told where it is there when the table is read again."""
        if not isinstance(error, Damaged):
            return
        facts = next((one for one in self._state.all_tables() if one.name == error.path), None)
        if facts is None or facts.number in self._damaged:
            return
        try:
            TableReader(self._disk, facts.number, BlockCache(0)).check(error.offset)
        except Damaged as again:
            with self._lock:
                self._damaged[facts.number] = DamagedTable(facts, again.offset, again.what)
        except (StorageError, EncryptionKeyError):
            return  # it cannot be read now, which proves nothing

    def begin_quarantine(self, tables: Iterable[DamagedTable]) -> Quarantine:
        """A job that sets these tables aside."""
        return Quarantine(self.next_job(), tuple(tables))

    # --- planning ---------------------------------------------------------------------------------------------------

    def begin_flush(self, end: Position, meta: bytes) -> Flush:
        """Freeze the memtables: all frames before `end` are in them or in tables, synced, and `meta` is of that moment."""
        assert end >= self._state.position, f"flush up to {end}, {self._state.position} is flushed"
        for cells in self._cells.values():
            cells.freeze(end)
        return self._flush(end, meta, self._cells)

    def flush_again(self, failed: Flush) -> Flush:
        """The same once more, without another memtable: what failed for a day would leave one for every try."""
        return self._flush(failed.end, failed.meta, [one.id for one in failed.namespaces])

    def _flush(self, end: Position, meta: bytes, namespaces: Iterable[int]) -> Flush:
        cells = [self._cells[namespace] for namespace in namespaces if namespace in self._cells]
        flushed = tuple(FlushedNamespace(one.namespace, one.policy, not one.has_tables, one.has_dictionary) for one in cells)
        return Flush(self.next_job(), self._state.position, end, flushed, self.options.tables, meta)

    def next_compaction(self, rules: Mapping[int, CollectionRule] | None = None) -> Compaction | None:
        """The most overdue compaction; `rules`: what may be collected, by namespace. None where nothing is due."""
        self._planned_with = self._disk.keys.ring
        if self._damaged:
            return None  # soon they are out of the way
        choose = self.options.strategy.choose
        choices = [(choice, cells) for cells in self._cells.values() if (choice := choose(self.tables(cells.namespace)))]
        if self._is_dropped:  # a manifest without them, and their space comes back
            return self._new_manifest()
        if not choices:
            return self._next_shedding(rules or {}) or self.next_rewrite()
        choice, cells = max(choices, key=lambda one: one[0].score)
        return self._compaction(choice, cells, (rules or {}).get(cells.namespace))

    def _next_shedding(self, rules: Mapping[int, CollectionRule]) -> Compaction | None:
        """A compaction for the sake of what may be collected."""
        for namespace, rule in rules.items():
            cells = self._cells.get(namespace)
            if cells is None or rule.since > self._state.position:
                continue
            known = self._shedding.get(namespace)
            if known is None or known[0] is not rule:
                known = self._shedding[namespace] = (rule, self._next_job)
            choice = shed(self.tables(namespace), rule.clock_ms, known[1])
            if choice is not None:
                return self._compaction(choice, cells, rule)
        return None

    def held(self, namespace: int) -> Held:
        """What waits to be collected: of tables as their facts say, of memtables as a look at some thousand cells tells."""
        tables, cells = self.tables(namespace), self._cells.get(namespace)
        memory = DeadInMemory() if cells is None else cells.dead_in_memory()
        return Held(
            sum(one.tombstones for one in tables),
            sum(one.deadlines for one in tables),
            min((one.first_deadline_ms for one in tables if one.deadlines), default=0),
            memory.cells,
            memory.is_estimate,
            min((one.oldest for one in tables if one.tombstones), default=0),
            memory.oldest,
            memory.first_deadline_ms,
            memory.is_dated and all(one.oldest for one in tables if one.tombstones),
        )

    def is_worth_shedding(self, namespace: int, clock_ms: int) -> bool:
        """Whether a compaction for the sake of what may be collected would be made, were all of it stable."""
        return shed(self.tables(namespace), clock_ms, self._next_job) is not None

    @property
    def wants_compaction(self) -> bool:
        """Whether the keys were rotated since `next_compaction` was asked last: there may be something to rewrite."""
        return self._planned_with is not self._disk.keys.ring

    def next_rewrite(self) -> Compaction | None:
        """A table, else manifest or state, that is not written with the key that new files are."""
        active = self._disk.keys.ring.active
        for cells in self._cells.values():
            for facts in self.tables(cells.namespace):
                reader = self._readers.get(facts.number)
                if reader is not None and reader.key_id != active:
                    return Compaction(
                        self.next_job(),
                        cells.namespace,
                        cells.policy,
                        ((facts.number,),),
                        (),
                        facts.level,
                        facts.run,
                        is_bottom=False,
                        is_move=False,
                        options=self._options_of(cells),
                    )
        is_done = self._manifest_key == active and (self._meta_key == active or not self._state.meta)
        return None if is_done else self._new_manifest()

    def _new_manifest(self) -> Compaction:
        """Moves nothing, and has the manifest written anew, and the state where its key is another one."""
        return Compaction(self.next_job(), 0, "lww", (), (), 0, 0, is_bottom=False, is_move=True, options=self.options.tables)

    def full_compaction(self, namespace: int, rule: CollectionRule | None = None) -> Compaction | None:
        """All tables of a namespace into one run. None where it has no table, or there is no such namespace.

        Raises Damaged where a table is.
        """
        for one in self.damaged():
            raise damaged(one.facts.name, one.offset, one.what)
        choice, cells = everything(self.tables(namespace)), self._cells.get(namespace)
        return None if choice is None or cells is None else self._compaction(choice, cells, rule)

    def _compaction(self, choice: Choice, cells: LsmCells, rule: CollectionRule | None) -> Compaction:
        inputs = tuple(tuple(facts.number for facts in run) for run in choice.inputs)
        inside = {number for run in inputs for number in run}
        others = tuple(facts.number for facts in self.tables(cells.namespace) if facts.number not in inside)
        if rule is not None and rule.since > self._state.position:
            rule = None  # an older put may still be in a memtable only
        return Compaction(
            self.next_job(),
            cells.namespace,
            cells.policy,
            inputs,
            others,
            choice.level,
            choice.run,
            choice.is_bottom,
            choice.is_move,
            self._options_of(cells),
            rule,
        )

    def has_dictionary(self, namespace: int) -> bool:
        """Whether any of its tables has one."""
        readers = [self._readers.get(facts.number) for facts in self.tables(namespace)]
        return any(reader is not None and reader.has_dictionary for reader in readers)

    def _options_of(self, cells: LsmCells) -> TableOptions:
        return replace(self.options.tables, has_dictionary=cells.has_dictionary)

    def next_job(self) -> int:
        """The number of a new job."""
        with self._lock:
            self._next_job += 1
            return self._next_job - 1

    # --- installing -------------------------------------------------------------------------------------------------

    def discard(self, job: Job) -> None:
        """Remove what a job that failed has left: no manifest ever named it, and nobody writes it any more."""
        left = {number for number in table_numbers(self._disk) if number >> JOB_SHIFT == job.number}
        with self._lock:
            self._doomed |= left
        self._remove(left)

    def install(self, job: Job, tables: tuple[TableFacts, ...]) -> None:
        """Let what a job made stand. Writes and syncs: for a thread. Raises StorageError; see the invariants."""
        rule = job.rule if isinstance(job, Compaction) and not job.is_move else None
        before = self.tables(job.namespace) if isinstance(job, Compaction) else ()
        self._install(self._edit(job, tables), job.number, isinstance(job, Quarantine) or rule is not None)
        if isinstance(job, Compaction) and rule is not None:
            # About: what was only replaced counts too, where it had been a tombstone.
            inside = [facts for facts in before if facts.number in job.input_numbers]
            gone = sum(one.collectable(rule.clock_ms) for one in inside) - sum(one.collectable(rule.clock_ms) for one in tables)
            self.collected[job.namespace] = self.collected.get(job.namespace, 0) + max(0, gone)

    def load(self, pairs: Iterable[tuple[int, Iterable[tuple[bytes, bytes]]]], position: Position, meta: bytes) -> None:
        """Begin with these cells, namespace by namespace in key order, and the log from `position` on.

        For a new engine: a checkpoint of the node's first format, or a restored backup. Raises StorageError.
        """
        assert not self._state.tables and not self._state.meta, "an engine that holds something takes no load"
        job, written = self.next_job(), list[TableFacts]()
        for namespace, cells in pairs:
            policy = self._cells[namespace].policy
            made = in_stretches(cells)
            written += write_tables(self._disk, job, namespace, policy, made, self.options.tables, first_output=len(written))
        self._install(Edit(tuple(facts.at(0, job) for facts in written), frozenset(), position, meta), job, False)

    def _edit(self, job: Job, tables: tuple[TableFacts, ...]) -> Edit:
        if isinstance(job, Flush):
            return Edit(tables, frozenset(), job.end, job.meta)
        if isinstance(job, Quarantine):
            return Edit(quarantined=job.tables)
        removed = job.input_numbers
        if job.is_move:
            tables = tuple(facts.at(job.level, job.run) for facts in self.tables(job.namespace) if facts.number in removed)
        return Edit(tables, removed)

    def _install(self, edit: Edit, job: int, has_collected: bool) -> None:
        with self._installing:
            readers = {facts.number: self._readers.get(facts.number) or self._reader(facts) for facts in edit.added}
            with self._lock:
                state = self._edited(edit, job)
            named = {facts.number for facts in state.all_tables()}
            manifest_key, meta_key = self._disk.keys.ring.active, self._meta_key
            try:
                if edit.position is not None or (state.meta and (not state.meta_file.job or meta_key != manifest_key)):
                    meta_key = manifest_key
                    self._doomed_metas.add(job)  # until a manifest that names it stands
                    state = replace(state, meta_file=write_meta(self._disk, job, state.meta))
                stage_manifest(self._disk, state)
            except BaseException:
                new = readers.keys() - self._readers.keys()
                with self._lock:
                    self._doomed |= new
                self._remove(set(new))  # what stands is certain, and does not name them
                self._remove_metas({job})
                raise
            try:
                switch_manifest(self._disk)
            except BaseException:
                # Either of the two may be what a restart finds. Once the next manifest stands it is known.
                with self._lock:
                    self._doomed |= readers.keys() - self._readers.keys()
                raise
            self._doomed_metas = (self._doomed_metas | {self._state.meta_file.job, job}) - {0, state.meta_file.job}
            with self._lock:
                self._manifest_key, self._meta_key = manifest_key, meta_key
                # A namespace may have been dropped meanwhile.
                self._state = state = replace(self._edited(edit, job), meta_file=state.meta_file)
                live = {facts.number for facts in state.all_tables()}
                self._readers = {number: one for number, one in (self._readers | readers).items() if number in live}
                self._damaged = {number: one for number, one in self._damaged.items() if number in live}
                self._doomed |= (edit.removed | readers.keys()) - live
                removable = self._doomed - named
                self._is_dropped = bool(self._doomed & named)
                shown = [(cells, self._runs(namespace)) for namespace, cells in self._cells.items()]
            for cells, runs in shown:
                cells.show(runs, state.position, has_collected)
            self._remove(removable)
            self._remove_metas(set(self._doomed_metas))

    @contextmanager
    def standing(self) -> Iterator[State]:
        """What the manifest says, and none of its files goes meanwhile: no job is installed. For a thread."""
        with self._installing:
            with self._lock:
                state = self._state
            yield state

    def _edited(self, edit: Edit, job: int) -> State:
        """The state after `edit`, without what belongs to dropped namespaces."""
        live = {facts.number for facts in self._state.all_tables()}
        aside = tuple(one for one in edit.quarantined if one.facts.number in live)
        removed = edit.removed | {one.facts.number for one in aside}
        tables = {
            namespace: tuple(facts for facts in held if facts.number not in removed)
            for namespace, held in self._state.tables.items()
        }
        for facts in edit.added:
            cells = self._cells.get(facts.namespace)
            if cells is not None and job >= cells.first_job:
                held = (*tables.get(facts.namespace, ()), facts)
                tables[facts.namespace] = tuple(sorted(held, key=lambda one: one.recency))
        tables = {namespace: held for namespace, held in tables.items() if held}
        quarantined = (*self._state.quarantined, *aside)
        state = replace(self._state, next_job=self._next_job, tables=tables, quarantined=quarantined)
        return state if edit.position is None else replace(state, position=edit.position, meta=edit.meta)

    def _runs(self, namespace: int) -> tuple[ReaderRun, ...]:
        return tuple(
            ReaderRun([facts.last_key for facts in run], [self._readers[facts.number] for facts in run])
            for run in runs_of(one for one in self._state.tables.get(namespace, ()) if one.number in self._readers)
        )

    def _opened_readers(self) -> dict[int, TableReader]:
        """Readers of the live tables; those that cannot be opened are noted as damaged."""
        readers: dict[int, TableReader] = {}
        for facts in self._state.all_tables():
            try:
                readers[facts.number] = self._reader_or_once_more(facts)
            except Damaged as error:
                self._damaged[facts.number] = DamagedTable(facts, error.offset, error.what)
        return readers

    def _reader_or_once_more(self, facts: TableFacts) -> TableReader:
        try:
            return self._reader(facts)
        except Damaged:
            return self._reader(facts)  # a single short read is no damage

    def _reader(self, facts: TableFacts) -> TableReader:
        reader = TableReader(self._disk, facts.number, self.cache)
        if reader.facts != facts.at(0, 0):
            what = "it is not the table that the manifest means: it states other facts"
            raise damaged(reader.name, reader.facts.nbytes, what)
        return reader

    def _remove_metas(self, jobs: set[int]) -> None:
        """As `_remove`, for the states that these jobs wrote."""
        for job in sorted(jobs):
            name = meta_name(job)
            with suppress(StorageError):
                if self._disk.exists(name):
                    self._disk.remove(name)
                self._doomed_metas.discard(job)

    def _remove(self, numbers: set[int]) -> None:
        """Remove files that the manifest that stands does not name; what cannot be removed is tried the next time."""
        for number in sorted(numbers):
            with suppress(StorageError):
                self._disk.remove(table_name(number))
            if not self._disk.exists(table_name(number)):
                with self._lock:
                    self._doomed.discard(number)
