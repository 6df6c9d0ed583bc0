"""The disk: the one seam through which every byte of storage passes, and its real implementation.

Code above this seam opens no file. So the simulator can put a disk there that loses what was not synced
(`storage.crash_disk`), and the rules of durability stand in one place:

    write_at, append     visible at once, durable after sync(name)
    allocate             a file of zeros, durable but for its name
    rename, remove       visible at once, durable after sync_dir(folder); so is the name of a new file
    link                 a second name of the same file: as that of a new one
    make_folder          durable when it returns
    remove_folder        an empty one; a crash may bring it back, as empty

Names are relative, with "/" ("log/00000001.wal"). Every failure is a StorageError that names the path and
what was being done; a full disk or quota is its subclass DiskFull.

Invariants: a file with unsynced writes keeps its descriptor, so no write error can be missed by opening it
again. One process at a time: the root is locked for as long as the disk is open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from geokv.errors import DiskFull, StorageError
from geokv.storage.encryption.keys import Keys

OPEN_FILES_MAX: Final = 64
LOCK_NAME: Final = "LOCK"
_ALLOCATION_STEP_BYTES: Final = 1 << 20
_ALLOCATION_SYNC_STEPS: Final = 4
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Disk(Protocol):
    """What storage needs of a disk. Every method may raise StorageError, and DiskFull where it needs room.

    `keys`: what whoever writes files on it encrypts them with. The disk itself moves bytes as they are.
    """

    keys: Keys

    def append(self, name: str, payload: bytes) -> None:
        """Write at the end of a file; creates it."""

    def write_at(self, name: str, offset: int, payload: bytes) -> None:
        """Write inside (or at the end) of an existing file. What was written before an error is unknown."""

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        """Read; fewer bytes only where the file ends."""

    def size(self, name: str) -> int: ...

    def sync(self, name: str) -> None:
        """Make all writes to a file durable (fdatasync). After a failure nothing is known of them."""

    def allocate(self, name: str, length: int) -> None:
        """Make a file of zeros, written and synced, over what has that name. On failure nothing is left."""

    def rename(self, old: str, new: str) -> None:
        """Rename, over `new` where it exists."""

    def link(self, old: str, new: str) -> None:
        """Give a file a second name, which must be free. What is written to it later is seen under both."""

    def sync_dir(self, folder: str) -> None: ...

    def folders(self, folder: str) -> list[str]:
        """The names (without the folder) of the folders in a folder, sorted."""

    def list(self, folder: str) -> list[str]:
        """The names (without the folder) of the files in a folder, sorted."""

    def remove(self, name: str) -> None: ...

    def exists(self, name: str) -> bool: ...

    def make_folder(self, name: str) -> None:
        """Make a folder and its parents, durably. No error where it stands already."""

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder."""

    def free_bytes(self) -> int: ...


def storage_error(error: OSError, doing: str, path: object) -> StorageError:
    """The error of this tree for an operating system's one."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno in _FULL:
        return DiskFull(
            f"no room left while {doing} {path}: {reason}; free some space on that file system",
            path=str(path),
        )
    return StorageError(f"{doing} {path} failed: {reason}", path=str(path))


def full_sync(descriptor: int) -> None:
    """Content and all metadata to the platter; macOS needs its own call for that."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


# Without the size and time of a preallocated file there is nothing but content to sync, which is what makes
# it cheap.
_content_sync: Callable[[int], None] = full_sync if hasattr(fcntl, "F_FULLFSYNC") else getattr(os, "fdatasync", full_sync)


class _Handle:
    """An open file, closed when nobody holds it any more, be it the cache or a call of another thread."""

    __slots__ = ("descriptor", "is_unsynced")

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = -1
        self.is_unsynced = False
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o640)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class RealDisk:
    """A folder of a real file system. Safe to call from several threads.

    Raises StorageError when another process (or this one) has the same root open already. `is_read_only`: it is only looked
    into, so that it need not be writable.
    """

    def __init__(self, root: Path, keys: Keys | None = None, is_read_only: bool = False) -> None:
        self.root = root
        self.keys = keys or Keys()
        self._flags = os.O_RDONLY if is_read_only else os.O_RDWR
        self._handles: OrderedDict[str, _Handle] = OrderedDict()
        self._lock = threading.Lock()
        try:
            if not is_read_only:
                _make_folders(root)
            self._root_lock = _lock_root(root, is_read_only)
        except OSError as error:
            raise storage_error(error, "opening", root) from error

    def close(self) -> None:
        """Give up the root. Idempotent."""
        with self._lock:
            self._handles.clear()
            if self._root_lock >= 0:
                with suppress(OSError):
                    os.ftruncate(self._root_lock, 0)  # nobody's now: who only looked has left nothing
                os.close(self._root_lock)
                self._root_lock = -1

    # --- one file ---------------------------------------------------------------------------------------------------

    def append(self, name: str, payload: bytes) -> None:
        try:
            handle = self._handle(name, os.O_CREAT)
            self._write(handle, os.fstat(handle.descriptor).st_size, payload)
        except OSError as error:
            raise storage_error(error, "writing", self.root / name) from error

    def write_at(self, name: str, offset: int, payload: bytes) -> None:
        try:
            self._write(self._handle(name), offset, payload)
        except OSError as error:
            raise storage_error(error, "writing", self.root / name) from error

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        try:
            handle = self._handle(name)
            payload = os.pread(handle.descriptor, length, offset)
            # A read may be short without being at the end, above all a large one.
            while len(payload) < length:
                piece = os.pread(handle.descriptor, length - len(payload), offset + len(payload))
                if not piece:
                    break
                payload += piece
            return payload
        except OSError as error:
            raise storage_error(error, "reading", self.root / name) from error

    def size(self, name: str) -> int:
        try:
            return (self.root / name).stat().st_size
        except OSError as error:
            raise storage_error(error, "looking at", self.root / name) from error

    def sync(self, name: str) -> None:
        try:
            handle = self._handle(name)
            # Before the sync: a write that comes meanwhile, from another thread, sets it again.
            handle.is_unsynced = False
            try:
                _content_sync(handle.descriptor)
            except OSError:
                handle.is_unsynced = True
                raise
        except OSError as error:
            raise storage_error(error, "syncing", self.root / name) from error

    def allocate(self, name: str, length: int) -> None:
        path = self.root / name
        self._forget(name)
        try:
            handle = _Handle(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                _write_zeros(handle.descriptor, length)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise storage_error(error, "allocating", path) from error

    # --- names ------------------------------------------------------------------------------------------------------

    def rename(self, old: str, new: str) -> None:
        try:
            with self._lock:
                (self.root / old).rename(self.root / new)
                self._handles.pop(new, None)
                if moved := self._handles.pop(old, None):
                    self._handles[new] = moved
        except OSError as error:
            raise storage_error(error, "renaming", self.root / old) from error

    def link(self, old: str, new: str) -> None:
        try:
            os.link(self.root / old, self.root / new, follow_symlinks=False)
        except OSError as error:
            raise storage_error(error, "linking", self.root / new) from error

    def sync_dir(self, folder: str) -> None:
        try:
            sync_folder(self.root / folder)
        except OSError as error:
            raise storage_error(error, "syncing the folder", self.root / folder) from error

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError as error:
            raise storage_error(error, "listing", self.root / folder) from error

    def list(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        except OSError as error:
            raise storage_error(error, "listing", self.root / folder) from error

    def remove(self, name: str) -> None:
        self._forget(name)
        try:
            (self.root / name).unlink()
        except OSError as error:
            raise storage_error(error, "removing", self.root / name) from error

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def make_folder(self, name: str) -> None:
        try:
            _make_folders(self.root / name)
        except OSError as error:
            raise storage_error(error, "making", self.root / name) from error

    def remove_folder(self, name: str) -> None:
        try:
            (self.root / name).rmdir()
        except OSError as error:
            raise storage_error(error, "removing", self.root / name) from error

    def free_bytes(self) -> int:
        try:
            facts = os.statvfs(self.root)
        except OSError as error:
            raise storage_error(error, "looking at", self.root) from error
        return facts.f_bavail * facts.f_frsize

    # --- descriptors ------------------------------------------------------------------------------------------------

    def _handle(self, name: str, flags: int = 0) -> _Handle:
        with self._lock:
            if handle := self._handles.get(name):
                self._handles.move_to_end(name)
                return handle
            if self._root_lock < 0:
                raise OSError(errno.EBADF, "this disk was closed")
            handle = self._handles[name] = _Handle(self.root / name, self._flags | flags)
            if len(self._handles) > OPEN_FILES_MAX:
                self._evict()
            return handle

    def _evict(self) -> None:
        for name, handle in self._handles.items():
            if not handle.is_unsynced:
                del self._handles[name]
                return

    def _forget(self, name: str) -> None:
        with self._lock:
            self._handles.pop(name, None)

    @staticmethod
    def _write(handle: _Handle, offset: int, payload: bytes) -> None:
        handle.is_unsynced = True
        written = os.pwrite(handle.descriptor, payload, offset)
        if written == len(payload):
            return
        rest = memoryview(payload)[written:]
        while rest:
            offset += written
            written = os.pwrite(handle.descriptor, rest, offset)
            rest = rest[written:]


def _write_zeros(descriptor: int, length: int) -> None:
    """Real zeros: blocks that are only reserved would cost each later fdatasync a change of metadata.

    Synced step by step, so that one long flush does not hold up the syncs of the log beside it.
    """
    zeros = bytes(_ALLOCATION_STEP_BYTES)
    step = offset = 0
    while offset < length:
        offset += os.pwrite(descriptor, memoryview(zeros)[: length - offset], offset)
        step += 1
        if step % _ALLOCATION_SYNC_STEPS == 0:
            _content_sync(descriptor)
    full_sync(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folders(path: Path) -> None:
    """Make `path` with its parents; each new name is synced in its parent."""
    if path.is_dir():
        return
    if path.parent != path:
        _make_folders(path.parent)
    path.mkdir(mode=0o750, exist_ok=True)
    sync_folder(path.parent)


def _open_lock(root: Path, is_read_only: bool) -> tuple[int, bool]:
    """The descriptor to lock, and whether the holder's name can be written: not in a folder that may only be read."""
    try:
        return os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640), True
    except OSError as error:
        if not is_read_only or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        return os.open(root / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC), False
    except FileNotFoundError:  # a copy: nobody runs on it
        return os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), False


def _lock_root(root: Path, is_read_only: bool) -> int:
    """The descriptor that holds the lock; the file's text is the holder's process id."""
    path = root / LOCK_NAME
    descriptor, is_named = _open_lock(root, is_read_only)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StorageError(
            f"{root} is in use by process {holder}: stop it first, or give this node a directory of its own",
            path=str(path),
            process=holder,
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    if is_named:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
