"""The storage of one simulated machine: a disk that can lose power, with the real log, checkpoint and engine on it.

Everything above the `Disk` protocol is the code that runs in production. What the simulator adds: power cuts, old copies,
injected errors, a disk that is full for a while, a checkpoint that ends in the middle, and the question that the checkers
rest on (`is_durable`): would these bytes survive if the power failed now?
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from geokv.errors import StorageError
from geokv.storage.checkpoint import read_checkpoint, write_checkpoint
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.engine import MemoryEngine
from geokv.storage.wal import Log
from geokv.storage.wal_recovery import segment_name

_T = TypeVar("_T")
Checkpointed = tuple[bytes, Iterator[tuple[int, list[tuple[bytes, bytes]]]]]


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """Sizes. Small segments make a short run roll, trim and checkpoint as a long one does."""

    segment_bytes: int = 512 << 10


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
        self.log: Log = None  # type: ignore[assignment]  # stands from `open` on

    def open(self) -> tuple[Checkpointed | None, Log]:
        """The newest checkpoint (meta, cells) and the log from there. Raises StorageError."""
        found = read_checkpoint(self.disk)
        first_segment = found[0] if found is not None else 0
        self.log = Log.open(self.disk, self.options.segment_bytes, first_segment)
        return (None if found is None else (found[1], found[2])), self.log

    def new_engine(self) -> MemoryEngine:
        return MemoryEngine()

    def wants_room(self) -> bool:
        return self.log.needs_spare and self.log.room_bytes() < self.options.segment_bytes * 3 // 2

    def write_checkpoint(self, meta: bytes, tables: Mapping[int, Mapping[bytes, bytes]], segment: int) -> None:
        write_checkpoint(self.disk, meta, tables, segment)

    def write_part_of_checkpoint(self, meta: bytes, tables: Mapping[int, Mapping[bytes, bytes]], segment: int) -> None:
        """What a process leaves behind that ends somewhere in the middle of it."""
        call = self._rng.choice(("append", "sync", "rename", "sync_dir", "remove"))
        self.disk.fail(call, errno.EIO, after=self._rng.randrange(3))
        try:
            write_checkpoint(self.disk, meta, tables, segment)
        except StorageError:
            pass
        finally:
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

    # --- what is really there ---------------------------------------------------------------------------------------

    def is_durable(self, segment: int, offset: int, payload: bytes) -> bool:
        """Whether the payload that the log put there would survive a power cut now, whatever that did to unsynced writes."""
        return _durable_bytes(self.disk, segment_name(segment), offset, len(payload)) == payload


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
