"""Snapshots of a node that runs: what it holds at one place of its log, kept as hard links beside what it works on.

    snapshots/monday/lsm/   MANIFEST  META-…  *.sst   the engine at its position, right after a flush; tables are links
    snapshots/monday/log/   00000041.wal …            the log that is kept up to that position; closed segments are links
    snapshots/monday/lmdb/ rocksdb/                   copies of trees, where there are any
    snapshots/monday/SNAPSHOT                         what stands in it, and that it is whole: written last

So a snapshot is the folder of a node that stopped at that position. It costs no copies but for the last segment and for
trees of LMDB, and keeps the space of tables that the node lets go until it is removed: there are few of them, and none
grows old.

Invariants: one that has its file SNAPSHOT is whole and durable; without it it is removed at the next start. A file of
it never changes. Not here: when one is taken and what its cut means (`node.snapshots`), how one leaves the node
(`server.services`). Format page: docs/formats/snapshot.md.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import asdict
from typing import Final
from zlib import crc32

from geokv.core.limits import SNAPSHOT_AGE_MS_MAX, SNAPSHOT_READ_BYTES_MAX, SNAPSHOTS_MAX
from geokv.errors import Damaged, InvalidRequest, SnapshotNotFound, StorageError
from geokv.storage.disk import Disk
from geokv.storage.encryption.cipher import TAG_BYTES
from geokv.storage.lsm.engine import LsmEngine
from geokv.storage.lsm.manifest import NAME as MANIFEST
from geokv.storage.lsm.manifest import State, encode_manifest
from geokv.storage.node_engine import NodeEngine
from geokv.storage.position import Position
from geokv.storage.snapshot_orders import Order, Remove, Snapshot, SnapshotFile, Take, check_name
from geokv.storage.wal_format import SEGMENT_HEADER_BYTES_MAX, decode_segment_header
from geokv.storage.wal_recovery import read_whole, segment_name
from geokv.storage.wal_verify import segment_numbers

FOLDER: Final = "snapshots"
MARKER: Final = "SNAPSHOT"
FORMAT: Final = 1
_PIECE_BYTES: Final = 1024 * 1024
_TAIL_BYTES: Final = 64 * 1024


class Snapshots:
    """The snapshots of one node's folder. Safe to call from several threads; they wait for each other."""

    def __init__(self, disk: Disk, engine: LsmEngine | NodeEngine) -> None:
        self._disk = disk
        self._engine = engine
        self._lock = threading.Lock()
        self._read_last: Snapshot | None = None

    def do(self, order: Order) -> list[Snapshot]:
        """Follow an order; the snapshots that are there afterwards. Raises StorageError, InvalidRequest, SnapshotNotFound."""
        with self._lock:
            self._read_last = None
            self._disk.make_folder(FOLDER)
            if isinstance(order, Take):
                self._take(order)
            elif isinstance(order, Remove):
                self._find(order.name)
                self._remove(order.name)
            else:
                self._clean(order.now_ms)
            return self._all()

    def find(self, name: str) -> Snapshot:
        """Raises SnapshotNotFound, StorageError."""
        with self._lock:
            return self._find(name)

    def read(self, name: str, path: str, offset: int, length: int) -> bytes:
        """Bytes of one of its files; fewer only where what is used of it ends. Raises SnapshotNotFound, InvalidRequest."""
        with self._lock:
            snapshot = self._read_last
            if snapshot is None or snapshot.name != name:
                snapshot = self._read_last = self._find(name)
        file = next((file for file in snapshot.files if file.path == path), None)
        if file is None:
            raise InvalidRequest(f"snapshot {name!r} holds no file {path[:200]!r}")
        if not 0 <= offset <= file.used or not 0 < length <= SNAPSHOT_READ_BYTES_MAX:
            raise InvalidRequest(f"{length} bytes at {offset}: 1 to {SNAPSHOT_READ_BYTES_MAX}, and {path} has {file.used}")
        length = min(length, file.used - offset)
        return read_whole(self._disk, f"{FOLDER}/{name}/{path}", offset, length) if length else b""

    # --- taking -----------------------------------------------------------------------------------------------------

    def _take(self, order: Take) -> None:
        check_name(order.name)
        self._clean(order.taken_ms)
        there = self._all()
        if any(one.name == order.name for one in there):
            raise InvalidRequest(f"there is a snapshot {order.name!r} already: remove it first")
        if len(there) >= SNAPSHOTS_MAX:
            names = ", ".join(one.name for one in there)
            raise InvalidRequest(f"there are {len(there)} snapshots ({names}), at most {SNAPSHOTS_MAX}: remove one first")
        try:
            with self._engine.standing() as state:
                files = self._link_engine(order.name, state)
                files += self._log(order.name, order.first_segment, state.position)
                files += self._trees(order.name)
            for part in self._disk.folders(f"{FOLDER}/{order.name}"):
                self._disk.sync_dir(f"{FOLDER}/{order.name}/{part}")
            position = state.position
            self._write_marker(Snapshot(order.name, order.cut, order.taken_ms, *position, tuple(files)))
        except BaseException:
            with suppress(StorageError):
                self._remove(order.name)
            raise

    def _link_engine(self, name: str, state: State) -> list[SnapshotFile]:
        folder = f"{FOLDER}/{name}/lsm"
        self._disk.make_folder(folder)
        files: list[SnapshotFile] = []
        for facts in state.all_tables():
            self._disk.link(facts.name, f"{FOLDER}/{name}/{facts.name}")
            size = self._disk.size(facts.name)
            files.append(SnapshotFile(facts.name, size, size, _tail(self._disk, facts.name, size)))
        if state.meta_file.job:
            self._disk.link(state.meta_file.name, f"{FOLDER}/{name}/{state.meta_file.name}")
            size = self._disk.size(state.meta_file.name)
            files.append(SnapshotFile(state.meta_file.name, size, size))
        raw = encode_manifest(state, self._disk.keys)
        self._write(f"{FOLDER}/{name}/{MANIFEST}", raw)
        return [*files, SnapshotFile(MANIFEST, len(raw), len(raw))]

    def _log(self, name: str, first_segment: int, position: Position) -> list[SnapshotFile]:
        self._disk.make_folder(f"{FOLDER}/{name}/log")
        files: list[SnapshotFile] = []
        for number in segment_numbers(self._disk):
            path = segment_name(number)
            if first_segment <= number < position.segment:
                self._disk.link(path, f"{FOLDER}/{name}/{path}")
                files.append(_closed_segment(self._disk, path, number))
            elif number == position.segment:
                used = _end_of_frame(self._disk, path, position)
                self._copy(path, f"{FOLDER}/{name}/{path}", used)
                files.append(SnapshotFile(path, self._disk.size(path), used))
        return files

    def _trees(self, name: str) -> list[SnapshotFile]:
        """Copies of the trees: they change in place, and the engine makes them durable."""
        if not isinstance(self._engine, NodeEngine):
            return []
        files: list[SnapshotFile] = []
        for place in self._engine.copy_trees(self._engine.root / FOLDER / name):
            for file in self._disk.list(f"{FOLDER}/{name}/{place.path}"):
                size = self._disk.size(f"{FOLDER}/{name}/{place.path}/{file}")
                files.append(SnapshotFile(f"{place.path}/{file}", size, size))
            self._disk.sync_dir(f"{FOLDER}/{name}/{place.path}")
        return files

    def _copy(self, source: str, target: str, length: int) -> None:
        for start in range(0, length, _PIECE_BYTES):
            self._disk.append(target, read_whole(self._disk, source, start, min(_PIECE_BYTES, length - start)))
        self._disk.sync(target)

    def _write(self, path: str, payload: bytes) -> None:
        self._disk.append(path, payload)
        self._disk.sync(path)

    def _write_marker(self, snapshot: Snapshot) -> None:
        folder = f"{FOLDER}/{snapshot.name}"
        body = json.dumps({"format": FORMAT, **asdict(snapshot)}, sort_keys=True)
        self._write(f"{folder}/{MARKER}.tmp", f"{crc32(body.encode()):08x}\n{body}\n".encode())
        self._disk.rename(f"{folder}/{MARKER}.tmp", f"{folder}/{MARKER}")
        self._disk.sync_dir(folder)

    # --- what there is ----------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Snapshot:
        path = f"{FOLDER}/{check_name(name)}/{MARKER}"
        if not self._disk.exists(path):
            raise SnapshotNotFound(f"there is no snapshot {name!r} here")
        return read_marker(self._disk, path)

    def _all(self) -> list[Snapshot]:
        found = [name for name in self._disk.folders(FOLDER) if self._disk.exists(f"{FOLDER}/{name}/{MARKER}")]
        return [self._find(name) for name in found]

    def _clean(self, now_ms: int) -> None:
        for name in self._disk.folders(FOLDER):
            if not self._is_good(name, now_ms):
                self._remove(name)

    def _is_good(self, name: str, now_ms: int) -> bool:
        try:
            return now_ms - self._find(name).taken_ms < SNAPSHOT_AGE_MS_MAX
        except (InvalidRequest, SnapshotNotFound, Damaged):  # what a damaged marker stands for can be made anew
            return False
        except StorageError:  # a read that failed, or a newer format: that says nothing about the snapshot
            return True

    def _remove(self, name: str) -> None:
        """The marker first, durably: a snapshot without it is known to be none."""
        folder = f"{FOLDER}/{name}"
        if not self._disk.exists(folder):
            return
        self._remove_folder(folder)
        self._disk.sync_dir(FOLDER)

    def _remove_folder(self, folder: str) -> None:
        self._empty(folder)
        for part in self._disk.folders(folder):
            self._remove_folder(f"{folder}/{part}")
        self._disk.remove_folder(folder)

    def _empty(self, folder: str) -> None:
        names = self._disk.list(folder)
        for name in names:
            self._disk.remove(f"{folder}/{name}")
        if names:
            self._disk.sync_dir(folder)


def read_marker(disk: Disk, path: str) -> Snapshot:
    """What a SNAPSHOT file says. Raises StorageError where it is damaged, or of a newer version."""
    try:
        crc, body = disk.read_at(path, 0, disk.size(path)).decode().split("\n", 1)
        if body[-1:] != "\n" or crc != f"{crc32(body[:-1].encode()):08x}":
            raise ValueError("its checksum does not match")
        tree = json.loads(body)
        form = tree.pop("format")
        if form == FORMAT:
            return Snapshot(**{**tree, "files": tuple(SnapshotFile(**file) for file in tree["files"])})
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{path} is damaged: {error}", path=path, offset=0, what=str(error)) from error
    raise StorageError(f"{path} is of format {form}, this version of geokv reads {FORMAT}", path=path)


def _tail(disk: Disk, name: str, size: int) -> str:
    """A table's end states what is in it, and its blocks' places: no two tables of a node share number and end."""
    start = max(0, size - _TAIL_BYTES)
    return f"{crc32(disk.read_at(name, start, size - start)):08x}"


def _end_of_frame(disk: Disk, path: str, position: Position) -> int:
    """Where the frame ends whose payload ends at the position: behind its tag, in a segment that is encrypted."""
    header = decode_segment_header(disk.read_at(path, 0, SEGMENT_HEADER_BYTES_MAX), position.segment, path)
    has_tag = header is not None and header.stamp is not None and position.offset > header.nbytes
    return position.offset + (TAG_BYTES if has_tag else 0)


def _closed_segment(disk: Disk, path: str, number: int) -> SnapshotFile:
    """A segment to which nothing is appended any more: the CRC-32 of all that is used names it."""
    image = disk.read_at(path, 0, disk.size(path))
    if decode_segment_header(image[:SEGMENT_HEADER_BYTES_MAX], number, path) is None:
        raise StorageError(f"{path}: the header is damaged", path=path, offset=0)
    used = len(image.rstrip(b"\0"))
    return SnapshotFile(path, len(image), used, f"{crc32(image[:used]):08x}")
