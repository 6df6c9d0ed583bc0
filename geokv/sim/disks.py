"""The storage of one simulated machine: a disk that can lose power, with the real log and engine on it.

Everything above the `Disk` protocol is the code that runs in production. What the simulator adds: power cuts, old copies,
injected errors, a disk that is full for a while, a flush or compaction that ends in the middle, and the question that the
checkers rest on (`is_durable`): would these bytes survive if the power failed now?

An encrypted disk has two keys; at every start, and now and then in between, new files begin to be written with the other
one, or in the clear. Salts and nonces are drawn from the seed.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from geokv.errors import Damaged, StorageError
from geokv.node.recovery import Checkpoint
from geokv.storage.checkpoint import read_checkpoint, remove_checkpoints
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.key_use import demand_keys, rotate
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.manifest import NAME as MANIFEST
from geokv.storage.lsm.manifest import read_manifest
from geokv.storage.lsm.strategy import Levelled
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import TableOptions
from geokv.storage.lsm.work import run_job
from geokv.storage.snapshot_orders import Snapshot
from geokv.storage.snapshots import Snapshots
from geokv.storage.wal import Log
from geokv.storage.wal_cipher import cipher_of, unseal_payload
from geokv.storage.wal_format import (
    FRAME_HEADER_BYTES,
    RUN_BYTES,
    SEALED_BYTES,
    SEGMENT_HEADER_BYTES_MAX,
    decode_segment_header,
    frame_at,
    segment_seed,
)
from geokv.storage.wal_recovery import segment_name

_T = TypeVar("_T")
KEYS: Final = KeyRing({"first": bytes(range(16)), "second": bytes(range(32))}, "first")
ROTATE_SHARE: Final = 0.1  # of the jobs of an encrypted engine
# In proportion to the small segments: a short run has tables on several levels, and caches that do not hold them all.
ENGINE: Final = LsmOptions(
    TableOptions(block_bytes=1 << 10, table_bytes=16 << 10),
    Levelled(flushed_runs=2, base_bytes=32 << 10, ratio=4),
    block_cache_bytes=64 << 10,
    row_cache_bytes=16 << 10,
)


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Sizes. Small segments make a short run roll, trim, flush and compact as a long one does."""

    segment_bytes: int = 512 << 10
    engine: LsmOptions = ENGINE
    is_encrypted: bool = False


class Ended(BaseException):
    """The process has ended, in the middle of what it did."""


class _DyingDisk:
    """A disk on which everything ends after so many calls: nobody is there any more to clean up."""

    def __init__(self, disk: CrashDisk, calls: int) -> None:
        self._disk = disk
        self._calls = calls
        self.keys = disk.keys

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._calls -= 1
            if self._calls < 0:
                raise Ended
            return getattr(self._disk, name)(*arguments)

        return call


class _Unlucky(random.Random):
    """Decides for a crashing disk that nothing unsynced is kept: the first of its fates is "lost"."""

    def choice(self, fates: Sequence[_T]) -> _T:  # type: ignore[override]
        return fates[0]


class Storage:
    """One disk and what runs on it. `open` gives what a starting node reads."""

    def __init__(self, rng: random.Random, options: StorageOptions, disk: CrashDisk | None = None) -> None:
        self._rng = rng
        self.options = options
        self.disk = disk if disk is not None else CrashDisk(random.Random(rng.getrandbits(64)))
        self._key_rng = random.Random(rng.getrandbits(64)) if options.is_encrypted else None
        if self._key_rng is not None and disk is None:
            self.disk.keys = Keys(KEYS, self._key_rng.randbytes)
        self.log: Log = None  # type: ignore[assignment]  # stands from `open` on

    def open(self) -> tuple[Checkpoint | None, LsmEngine, Log]:
        """What a starting node reads: a checkpoint of version 0.1 (nearly never), the engine, the log. Raises StorageError."""
        demand_keys(self.disk)
        if self._key_rng is not None:
            self._rotate(self._key_rng)
        engine = LsmEngine(self.disk, self.options.engine)
        checkpoint = None if engine.meta else read_checkpoint(self.disk)
        first_segment = engine.position.segment if checkpoint is None else checkpoint[0]
        self.log = Log.open(self.disk, self.options.segment_bytes, first_segment)
        return checkpoint, engine, self.log

    def opened(self) -> None:
        """The node is recovered: what only version 0.1 needed goes."""
        remove_checkpoints(self.disk)

    def wants_room(self) -> bool:
        return self.log.needs_spare and self.log.room_bytes() < self.options.segment_bytes * 3 // 2

    def _rotate(self, rng: random.Random) -> None:
        active = rng.choice((*KEYS.ids, ""))
        rotate(self.disk, KeyRing({key_id: KEYS.key(key_id) for key_id in KEYS.ids}, active))

    def build(self, engine: LsmEngine, job: Any) -> None:
        """Run a job and let what it made stand. Raises StorageError."""
        if self._key_rng is not None and self._key_rng.random() < ROTATE_SHARE:
            self._rotate(self._key_rng)
        try:
            tables = run_job(self.disk, job)
        except StorageError as error:
            engine.noticed(error)
            engine.discard(job)
            raise
        engine.install(job, tables)

    def keep_snapshots(self, engine: LsmEngine, order: Any) -> list[Snapshot]:
        """Follow an order about snapshots. Raises GeokvError."""
        return Snapshots(self.disk, engine).do(order)

    def build_in_part(self, engine: LsmEngine, job: Any) -> None:
        """What a process leaves behind that ends somewhere in the middle of it."""
        with suppress(Ended, StorageError):
            tables = run_job(_DyingDisk(self.disk, self._rng.randrange(40)), job)
            call = self._rng.choice(("append", "sync", "rename", "sync_dir", "remove"))
            self.disk.fail(call, errno.EIO, name="lsm", times=-1)
            engine.install(job, tables)
        self.disk.heal()

    # --- what befalls it --------------------------------------------------------------------------------------------

    def lose_power(self, is_all_lost: bool = False) -> None:
        """A power cut: each unsynced write is lost, kept or torn; with `is_all_lost` every one of them is lost."""
        self.disk = self.disk.crash_clone(_Unlucky(self._rng.getrandbits(64)) if is_all_lost else self._rng)

    def surviving(self) -> Storage:
        """What would be there after a power cut now, as a storage of its own to look at."""
        return Storage(self._rng, self.options, self.disk.crash_clone(self._rng))

    def copied(self) -> Storage:
        """A copy of the disk, as a backup of the whole machine would be."""
        return Storage(self._rng, self.options, self.disk.copy())

    def emptied(self) -> Storage:
        """A new, empty disk."""
        return Storage(self._rng, self.options)

    def fail_next(self, call: str, after: int = 0) -> None:
        """The next such call on a log file ("append" and "sync" are what the log is written by) fails once."""
        self.disk.fail("write_at" if call == "append" else call, errno.EIO, name="log/", after=after)

    def fill(self) -> None:
        """Nothing more can be allocated."""
        self.disk.capacity_bytes = (1 << 60) - self.disk.free_bytes() if self.disk.capacity_bytes is None else 0

    def make_room(self) -> None:
        self.disk.capacity_bytes = None

    def rot(self) -> str:
        """Flip one bit of one live table; which one, empty where there is none."""
        names = [facts.name for facts in self._live() if self.disk.exists(facts.name)]
        if not names:
            return ""
        name = self._rng.choice(names)
        offset = self._rng.randrange(self.disk.size(name))
        (byte,) = self.disk.read_at(name, offset, 1)
        self.disk.damage(name, offset, bytes([byte ^ 1 << self._rng.randrange(8)]))
        return f"{name} byte {offset}"

    # --- what is really there ---------------------------------------------------------------------------------------

    def _live(self) -> list[TableFacts]:
        return list(read_manifest(self.disk).all_tables()) if self.disk.exists(MANIFEST) else []

    def damaged_tables(self) -> list[str]:
        """The live tables that cannot be read to their ends."""
        return [facts.name for facts in self._live() if not _pairs(self.disk, facts)[1]]

    def readable_cells(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """What can be read of each live table, the oldest first."""
        for facts in sorted(self._live(), key=lambda facts: facts.recency, reverse=True):
            yield _pairs(self.disk, facts)[0]

    def is_durable(self, segment: int, offset: int, payload: bytes) -> bool:
        """Whether the payload that the log put there would survive a power cut now, whatever that did to unsynced writes."""
        if not self.options.is_encrypted:
            return _durable_bytes(self.disk, segment_name(segment), offset, len(payload)) == payload
        return self._durable_payload(segment, offset, len(payload)) == payload

    def _durable_payload(self, segment: int, offset: int, length: int) -> bytes | None:
        """What would be read there with the keys; None where nothing whole is."""
        name = segment_name(segment)
        header = decode_segment_header(_durable_bytes(self.disk, name, 0, SEGMENT_HEADER_BYTES_MAX), segment, name)
        if header is None:
            return None
        if header.stamp is None:
            return _durable_bytes(self.disk, name, offset, length)
        start = offset - FRAME_HEADER_BYTES - RUN_BYTES
        image = _durable_bytes(self.disk, name, start, FRAME_HEADER_BYTES + length + SEALED_BYTES)
        frame = frame_at(image, 0, segment_seed(segment))
        if frame is None:
            return None
        return unseal_payload(cipher_of(header, segment, self.disk.keys), image, frame, start, segment)


def _pairs(disk: CrashDisk, facts: TableFacts) -> tuple[list[tuple[bytes, bytes]], bool]:
    """(what can be read of a table, whether that is all of it)."""
    found: list[tuple[bytes, bytes]] = []
    try:
        for key, cell in TableReader(disk, facts.number, BlockCache(0)).all_pairs():
            found.append((key, bytes(cell)))
    except Damaged:
        return found, False
    return found, True


def _durable_bytes(disk: CrashDisk, name: str, offset: int, length: int) -> bytes:
    """What a power cut now would surely leave of that stretch: the platter's bytes, under the name that it has there."""
    file = disk._platter_names.get(name)
    if file is None:
        return b""
    settled = file.platter or file
    piece = bytearray(settled.read(offset, length))
    if file.platter is None:
        for write in reversed(file.unsynced):
            first, last = max(write.offset, offset), min(write.offset + len(write.payload), offset + length)
            for at in range(first, last):
                covered = at - write.offset
                piece[at - offset] = write.covered[covered] if covered < len(write.covered) else 0
    return bytes(piece)
