"""Three stores behind one face, with the same durability: a batch is on the disk, synced, when `put` returns.

geokv's is what one node does without its network: records are encoded, one frame of the log is appended and synced, the
cells are put into the memtable; flushes and compactions run in the engine's worker process, switched to by a thread.
Its caches and memtable are a node's defaults. RocksDB gets a bloom filter and a block cache of the same size; LMDB is
the system's page cache.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from geokv.core.cell import live_value
from geokv.core.limits import MEMTABLE_BYTES, SEGMENT_BYTES, UNFLUSHED_BYTES_WARN
from geokv.core.lww import encode_lww_record
from geokv.core.origin import Origin
from geokv.core.partial import Partial
from geokv.core.record import NO_OPERATION, decode_records
from geokv.storage.disk import RealDisk
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.jobs import Flush
from geokv.storage.lsm.worker import Worker
from geokv.storage.position import Position
from geokv.storage.wal import Log

CACHE_BYTES = 64 << 20
NAMESPACE = 1
ORIGIN = Origin("dc1", "n1", 1).packed()
Pairs = Sequence[tuple[bytes, bytes]]


class Store(Protocol):
    """What is measured of a store."""

    def put(self, pairs: Pairs) -> None:
        """Write a batch, durably."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pairs from a key on, in order."""

    def settle(self) -> None:
        """Flush, and wait until no compaction is due."""

    def debt_bytes(self) -> int: ...

    def written_bytes(self) -> int | None:
        """What was written to files so far; None where that is not known."""

    def close(self) -> None: ...


class WorkedJob(NamedTuple):
    """A flush or compaction, with the switch to its tables, on the clock of an event loop."""

    kind: str
    begun_s: float
    ended_s: float


class Geokv:
    """The engine of a node over its log. `jobs`: what was flushed and compacted since it was opened."""

    def __init__(self, directory: Path, keys: Keys | None = None, options: LsmOptions | None = None) -> None:
        self._disk = RealDisk(directory, keys)
        self._engine = LsmEngine(self._disk, options)
        self._cells = self._engine.create(NAMESPACE)
        position = self._engine.position
        self._log = Log.open(self._disk, SEGMENT_BYTES, position.segment)
        self._end, self._number = position, 0
        for segment, offset, payload in self._log.replay():
            if (segment, offset) >= position:
                for record in decode_records(payload, verify=False):
                    self._cells.merge_in(record.key, record.cell)
                    self._number = max(self._number, record.number)
            self._end = Position(segment, offset + len(payload))
        self._number = max(self._number, 1 << 30) if position.segment else self._number
        self._worker = Worker(directory, keys=self._disk.keys)
        self._unflushed = 0
        self._flushing = 0
        self._written = 0
        self._building: threading.Thread | None = None
        self._preparing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self.jobs: list[WorkedJob] = []
        self._log.prepare()

    def put(self, pairs: Pairs) -> None:
        # As a replica takes records: nothing is read from the disk, and what it may have to be merged with is marked.
        store = self._cells
        records, cells, number = [], {}, self._number
        for key, value in pairs:
            number += 1
            stored = store.peek(key)
            raw, cell = encode_lww_record(0, NAMESPACE, number, number, NO_OPERATION, ORIGIN, key, number, 0, 0, value)
            if stored is not None and stored > cell:
                cell = stored
            elif type(stored) is not bytes and cell <= store.ceiling and store.may_hold(key):
                cell = Partial(cell)
            cells[key] = cell
            records.append(raw)
        payload = b"".join(records)
        if self._log.room_bytes() < 2 * len(payload):
            self._log.prepare()
        segment, offset = self._log.append(payload)
        self._log.sync()
        self._cells.update(cells)
        self._number = number
        self._end = Position(segment, offset + len(payload))
        self._unflushed += len(payload)
        self._written += len(payload)
        if self._log.needs_spare and (self._preparing is None or not self._preparing.is_alive()):
            self._preparing = threading.Thread(target=self._log.prepare)
            self._preparing.start()
        if self._unflushed >= MEMTABLE_BYTES:
            if self._flushing + self._unflushed >= UNFLUSHED_BYTES_WARN:
                self._wait()  # as a node lets its writers
            self._build(is_flush=True)

    def _build(self, is_flush: bool) -> bool:
        """Begin a job where none is under way; whether one is."""
        if self._failure is not None:
            raise self._failure
        if self._building is not None and self._building.is_alive():
            return True
        if is_flush:
            self._flushing, self._unflushed = self._unflushed, 0
        job: Any = self._engine.begin_flush(self._end, b"meta") if is_flush else self._engine.next_compaction()
        if job is None:
            return False
        self._building = threading.Thread(target=self._run, args=(job,))
        self._building.start()
        return True

    def _run(self, job: Any) -> None:
        try:
            while job is not None:
                begun_s = time.monotonic()
                tables = self._worker.run(job)
                self._written += sum(facts.nbytes for facts in tables)
                self._engine.install(job, tables)
                if isinstance(job, Flush):
                    self._flushing = 0
                self._log.trim(self._engine.position.segment)
                kind = "flush" if isinstance(job, Flush) else f"compaction to level {job.level}"
                self.jobs.append(WorkedJob(kind, begun_s, time.monotonic()))
                # As a node does: a flush that is due goes before the next compaction.
                job = None if self._unflushed >= MEMTABLE_BYTES else self._engine.next_compaction()
        except BaseException as error:
            self._failure = error

    def get(self, key: bytes) -> bytes | None:
        cell = self._cells.get(key)
        return None if cell is None else live_value(cell, 0)

    def scan(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, cell in self._cells.scan(start):
            value = live_value(cell, 0)
            if value is not None:
                yield key, value

    def settle(self) -> None:
        self._wait()
        if self._unflushed:
            self._build(is_flush=True)
        self._wait()
        while self._build(is_flush=False):
            self._wait()

    def _wait(self) -> None:
        if self._building is not None:
            self._building.join()

    def debt_bytes(self) -> int:
        return self._engine.debt_bytes()

    def written_bytes(self) -> int | None:
        return self._written

    def close(self) -> None:
        self._wait()
        if self._preparing is not None:
            self._preparing.join()
        self._worker.close()
        self._disk.close()


class RocksDb:
    """Through rocksdict, with a synced log, a bloom filter and a block cache."""

    def __init__(self, directory: Path) -> None:
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_bloom_filter(10, False)
        blocks.set_block_cache(rocksdict.Cache(CACHE_BYTES))
        options.set_block_based_table_factory(blocks)
        self._batch = rocksdict.WriteBatch
        self._sync = rocksdict.WriteOptions()
        self._sync.sync = True
        self._store = rocksdict.Rdict(str(directory), options)

    def put(self, pairs: Pairs) -> None:
        batch = self._batch(raw_mode=True)
        for key, value in pairs:
            batch.put(key, value)
        self._store.write(batch, self._sync)

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._store.get(key)
        return found

    def scan(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        yield from self._store.items(from_key=start)

    def settle(self) -> None:
        self._store.flush()
        while self._store.property_int_value("rocksdb.num-running-compactions") or self.debt_bytes():
            threading.Event().wait(0.05)

    def debt_bytes(self) -> int:
        return int(self._store.property_int_value("rocksdb.estimate-pending-compaction-bytes") or 0)

    def written_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._store.close()


class Lmdb:
    """Through py-lmdb: a transaction per batch, synced."""

    def __init__(self, directory: Path) -> None:
        import lmdb

        self._store = lmdb.open(str(directory), map_size=64 << 30)
        self._reading = self._store.begin()

    def put(self, pairs: Pairs) -> None:
        with self._store.begin(write=True) as transaction:
            for key, value in pairs:
                transaction.put(key, value)
        self._reading.abort()
        self._reading = self._store.begin()

    def get(self, key: bytes) -> bytes | None:
        found: bytes | None = self._reading.get(key)
        return found

    def scan(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._reading.cursor()
        if cursor.set_range(start):
            yield from cursor

    def settle(self) -> None:
        self._store.sync(True)

    def debt_bytes(self) -> int:
        return 0

    def written_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        self._reading.abort()
        self._store.close()


STORES: dict[str, type[Geokv] | type[RocksDb] | type[Lmdb]] = {
    "geokv": Geokv,
    "rocksdb": RocksDb,
    "lmdb": Lmdb,
}
