"""A node in little: a log, the engine over it, and recovery, as the real one uses them; and a disk that fails on call."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from geokv.core.cell import encode_lww
from geokv.core.record import DELTA, NO_OPERATION, decode_records, encode_record
from geokv.errors import StorageError
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.disk import Disk
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.strategy import Levelled
from geokv.storage.lsm.table_writer import TableOptions
from geokv.storage.lsm.work import run_job
from geokv.storage.position import Position
from geokv.storage.wal import Log

ORIGIN = b"eu\0n1\0\0\0\0\0\0\0\0\1"
SMALL = LsmOptions(
    TableOptions(block_bytes=256, table_bytes=2048),
    Levelled(flushed_runs=2, base_bytes=4096, ratio=3),
    block_cache_bytes=8192,
    row_cache_bytes=4096,
)
SEGMENT_BYTES = 16 * 1024


def cell_of(version: int, value: bytes | None, number: int = 0, deadline_ms: int = 0) -> bytes:
    """An lww cell; a tombstone where `value` is None."""
    return encode_lww(version, ORIGIN, number or version, value is None, deadline_ms, 0, value or b"")


class LittleNode:
    """Opens what the disk holds; `put` returns when the log is synced."""

    def __init__(self, disk: Disk, namespaces: Iterable[int] = (1,), options: LsmOptions = SMALL) -> None:
        self.disk = disk
        self.engine = LsmEngine(disk, options)
        for namespace in namespaces:
            self.engine.create(namespace)
        self._replay()

    def _replay(self) -> None:
        """Open the log, and put what it holds beyond the engine's position into the memtables."""
        position = self.engine.position
        self.log = Log.open(self.disk, SEGMENT_BYTES, position.segment)
        self.end = position
        for segment, offset, payload in self.log.replay():
            if (segment, offset) < position:
                continue
            self.end = Position(segment, offset + len(payload))
            for record in decode_records(payload):
                if record.namespace in self.engine.namespaces():
                    self.engine.table(record.namespace).merge_in(record.key, record.cell)
        self.log.prepare()

    def put(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        """Merge these cells over what is there, log them, and put them."""
        cells = self.engine.table(namespace)
        self._logged(namespace, pairs)
        held = {key: cells.get(key) for key in pairs}
        cells.update({key: cell if (old := held[key]) is None else max(old, cell) for key, cell in pairs.items()})

    def put_unread(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        """As a replica may: log the cells and merge them in without reading what is there."""
        self._logged(namespace, pairs)
        for key, cell in pairs.items():
            self.engine.table(namespace).merge_in(key, cell)

    def _logged(self, namespace: int, pairs: dict[bytes, bytes]) -> None:
        records = [encode_record(DELTA, 0, namespace, 1, 1, NO_OPERATION, ORIGIN, *pair) for pair in pairs.items()]
        for some in batched(records, 50):
            raw = b"".join(some)
            segment, offset = self.log.append(raw)
            self.log.sync()
            self.log.prepare()
            self.end = Position(segment, offset + len(raw))

    def flush(self, meta: bytes = b"meta") -> None:
        self.build(self.engine.begin_flush(self.end, meta))
        self.log.trim(self.engine.position.segment)

    def compact(self, rules: Any = None) -> bool:
        """The most overdue compaction; False where nothing is due."""
        job = self.engine.next_compaction(rules)
        if job is None:
            return False
        self.build(job)
        return True

    def compact_all(self, namespace: int = 1, rule: Any = None) -> None:
        job = self.engine.full_compaction(namespace, rule)
        if job is not None:
            self.build(job)

    def build(self, job: Any) -> None:
        """Run a job and let what it made stand; of one that fails nothing stays."""
        try:
            tables = self._do(job)
        except StorageError:
            self.engine.discard(job)
            raise
        self.engine.install(job, tables)

    def _do(self, job: Any) -> Any:
        return run_job(self.disk, job)


def batched(records: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


class PowerCut(Exception):
    """The power went, just before a disk operation."""


class FailingDisk:
    """A CrashDisk whose call number `at` (of those that may fail) does not happen: `fail` raises in its place.

    `is_short`: it happens in part. A read brings half of the bytes and raises nothing, a write has put half of them there,
    anything else is done; then `fail` raises.
    """

    CALLS = (
        "append",
        "write_at",
        "read_at",
        "size",
        "sync",
        "allocate",
        "rename",
        "sync_dir",
        "list",
        "remove",
        "make_folder",
        "link",
        "folders",
        "remove_folder",
    )

    def __init__(self, disk: CrashDisk, at: int, fail: Callable[[], Exception], is_short: bool = False) -> None:
        self.disk = disk
        self.at = at
        self.count = 0
        self.failed = ""  # the call that did
        self._fail = fail
        self._is_short = is_short

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.disk, name)
        return self._counted(name, found) if name in self.CALLS else found

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.count += 1
            if self.count != self.at:
                return call(*arguments)
            self.failed = name
            if not self._is_short:
                raise self._fail()
            if name == "read_at":
                return call(*arguments[:-1], arguments[-1] // 2)
            if name in ("append", "write_at"):
                call(*arguments[:-1], arguments[-1][: len(arguments[-1]) // 2])
            else:
                call(*arguments)
            raise self._fail()

        return counted


def sealed_files(disk: Disk) -> list[str]:
    """What stands in the engine's folder, but for the node's state: a flush leaves exactly one."""
    names = disk.list("lsm")
    states = [name for name in names if name.startswith("META-")]
    assert len(states) <= 1, "a state that nobody names stays"
    return [name for name in names if name not in states]


def refused() -> StorageError:
    return StorageError("injected")
