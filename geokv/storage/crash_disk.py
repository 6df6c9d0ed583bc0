"""A disk in memory that can lose power: the simulator's, and that of the tests of storage.

What a program sees and what the platter holds are two states. `crash_clone` makes the disk that is there
after a power cut:

    synced                        there
    written, not synced           each write on its own: lost, kept, torn (a prefix, or without its middle)
    created, renamed, removed,    each on its own: happened or did not
      without sync_dir
    failed sync                   still visible, on the platter or not, and made good by no later sync, only
                                  by writing it again (on Linux a page that failed counts as clean)

Errors are injected with `fail`, a full disk with `capacity_bytes`. One thread only.

To be cheap a file keeps its bytes once, up to the last one ever written (zeros behind it cost nothing), and
of unsynced writes what they covered. So a sync costs nothing but forgetting that.
"""

from __future__ import annotations

import errno
import os
import random
from dataclasses import dataclass
from typing import Final, NamedTuple

from geokv.errors import StorageError
from geokv.storage.disk import storage_error
from geokv.storage.encryption.keys import Keys

SECTOR_BYTES: Final = 512


class _Write(NamedTuple):
    """A write that is not synced: what it put there, what it covered, and how long the file was before."""

    offset: int
    payload: bytes
    covered: bytes
    length_before: int


class _File:
    """One file. `content` may be shorter than `length`: the rest is zeros.

    `platter` is None while what the platter holds is the content without the unsynced writes.
    """

    __slots__ = ("content", "length", "platter", "unsynced")

    def __init__(self, content: bytearray, length: int) -> None:
        self.content = content
        self.length = length
        self.unsynced: list[_Write] = []
        self.platter: _File | None = None

    def write(self, offset: int, payload: bytes) -> None:
        stop = offset + len(payload)
        self.unsynced.append(_Write(offset, payload, bytes(self.content[offset:stop]), self.length))
        self.put(offset, payload)

    def put(self, offset: int, payload: bytes) -> None:
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(payload)] = payload
        self.length = max(self.length, offset + len(payload))

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.length - offset))
        piece = bytes(self.content[offset : offset + length])
        return piece if len(piece) == length else piece + bytes(length - len(piece))

    def sync(self) -> None:
        if self.platter is not None:
            for write in self.unsynced:
                self.platter.put(write.offset, write.payload)
        self.unsynced.clear()

    def fail_sync(self, rng: random.Random) -> None:
        """What was unsynced reaches the platter or does not; from now on the two differ for good."""
        self.platter = self.after_crash(rng)
        self.unsynced.clear()

    def on_platter(self) -> _File:
        """A new file with what is surely on the platter."""
        source = self.platter or self
        settled = _File(bytearray(source.content), source.length)
        if self.platter is None:
            for write in reversed(self.unsynced):
                settled.uncover(write)
        return settled

    def uncover(self, write: _Write) -> None:
        zeros = bytes(len(write.payload) - len(write.covered))
        self.content[write.offset : write.offset + len(write.payload)] = write.covered + zeros
        self.length = write.length_before
        del self.content[self.length :]

    def after_crash(self, rng: random.Random) -> _File:
        """A new file with what the platter may hold after a power cut now."""
        settled = self.on_platter()
        fate = rng.choice(("lost", "kept", "each", "each"))
        for write in self.unsynced:
            own_fate = rng.choice(("lost", "kept", "torn", "torn")) if fate == "each" else fate
            if own_fate == "kept":
                settled.put(write.offset, write.payload)
            elif own_fate == "torn":
                settled.tear(write, rng)
        return settled

    def tear(self, write: _Write, rng: random.Random) -> None:
        """A prefix is there (cut at a sector, now and then at any byte), or all but some middle sectors."""
        offset, payload = write.offset, write.payload
        first = rng.randint(0, len(payload))
        if rng.random() < 0.5:
            self.put(offset, payload[: first if rng.random() < 0.2 else _sector_cut(offset, first)])
            return
        first, second = sorted(_sector_cut(offset, cut) for cut in (first, rng.randint(0, len(payload))))
        self.put(offset, payload[:first])
        self.put(offset + second, payload[second:])


def _sector_cut(offset: int, length: int) -> int:
    """`length`, made less so that a write at `offset` ends with a sector."""
    return max(length - (offset + length) % SECTOR_BYTES, 0)


class _Step(NamedTuple):
    """A change of names that is not synced: `file` got the name `made` and lost `lost` ("" for none)."""

    file: _File
    made: str
    lost: str


@dataclass
class _Fault:
    """An error to be injected, `times` times (-1: for good), after `after` matching calls that pass."""

    call: str
    error: int
    name: str
    after: int
    times: int
    written: int

    def strikes(self, call: str, name: str) -> bool:
        if call != self.call or self.name not in name or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class CrashDisk:
    """See the module. `rng` decides what a failed sync leaves on the platter; crashes take their own."""

    def __init__(self, rng: random.Random | None = None, capacity_bytes: int | None = None, keys: Keys | None = None) -> None:
        self.keys = keys or Keys()
        self.capacity_bytes = capacity_bytes
        self.calls: dict[str, int] = {}
        self._rng = rng or random.Random(0)
        self._used_bytes = 0
        self._files: dict[str, _File] = {}
        self._platter_names: dict[str, _File] = {}
        self._steps: list[_Step] = []
        self._folders = {""}
        self._faults: list[_Fault] = []

    # --- what a test or the simulator does to it --------------------------------------------------------------------

    def fail(
        self,
        call: str,
        error: int = errno.EIO,
        *,
        name: str = "",
        after: int = 0,
        times: int = 1,
        written: int = 0,
    ) -> None:
        """Let a later call ("append", "write_at", "read_at", "sync", …) fail with `error`.

        Only calls whose file name contains `name` count; `after` of them pass first; `times` -1 is for good.
        A write has put `written` bytes there before it fails. A "read_at" with error 0 is short: it brings
        `written` bytes.
        """
        self._faults.append(_Fault(call, error, name, after, times, written))

    def heal(self) -> None:
        """No more injected errors."""
        self._faults.clear()

    def crash_clone(self, rng: random.Random) -> CrashDisk:
        """The disk that is there after a power cut now. This one stays as it is."""
        names = dict(self._platter_names)
        fate = rng.choice(("lost", "kept", "each", "each"))
        for step in self._steps:
            if fate == "kept" or (fate == "each" and rng.random() < 0.5):
                _apply(step, names)
        settled: dict[int, _File] = {}  # a file may have several names
        for file in names.values():
            if id(file) not in settled:
                settled[id(file)] = file.after_crash(rng)
        return self._with({name: settled[id(file)] for name, file in names.items()}, rng)

    def copy(self) -> CrashDisk:
        """A disk with all that is visible on this one, durable: an image taken now and put back later."""
        copies = {id(file): _File(bytearray(file.content), file.length) for file in self._files.values()}
        return self._with({name: copies[id(file)] for name, file in self._files.items()}, self._rng)

    def damage(self, name: str, offset: int, payload: bytes) -> None:
        """Change what the platter holds, behind the back of whoever uses it."""
        file = self._files[name]
        for state in (file, file.platter):
            if state is not None:
                state.put(offset, payload)

    def truncate(self, name: str, length: int) -> None:
        """Cut a file on the platter."""
        file = self._files[name]
        del file.content[length:]
        self._used_bytes += length - file.length
        file.length = length

    def _with(self, files: dict[str, _File], rng: random.Random) -> CrashDisk:
        other = CrashDisk(random.Random(rng.getrandbits(64)), self.capacity_bytes, self.keys)
        other._files = files
        other._platter_names = dict(files)
        other._folders = set(self._folders)
        for name in files:  # the folder of a file that came back did so, too
            other._folders.update(_with_parents(_folder(name)))
        other._used_bytes = sum({id(file): file.length for file in files.values()}.values())
        return other

    # --- Disk -------------------------------------------------------------------------------------------------------

    def append(self, name: str, payload: bytes) -> None:
        file = self._files.get(name) or self._create(name)
        self._put("append", name, file, file.length, payload)

    def write_at(self, name: str, offset: int, payload: bytes) -> None:
        self._put("write_at", name, self._file(name, "writing"), offset, payload)

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        fault = self._called("read_at", name)
        payload = self._file(name, "reading").read(offset, length)
        return payload if fault is None else payload[: fault.written]

    def size(self, name: str) -> int:
        self._called("size", name)
        return self._file(name, "looking at").length

    def sync(self, name: str) -> None:
        file = self._file(name, "syncing")
        try:
            self._called("sync", name)
        except StorageError:
            file.fail_sync(self._rng)
            raise
        file.sync()

    def allocate(self, name: str, length: int) -> None:
        self._called("allocate", name)
        old = self._files.get(name)
        if length - (old.length if old else 0) > self.free_bytes():
            raise _error(errno.ENOSPC, "allocating", name)
        self._create(name).length = length
        self._used_bytes += length

    def rename(self, old: str, new: str) -> None:
        self._called("rename", old)
        file = self._file(old, "renaming")
        self._folder_of(new, "renaming")
        self._used_bytes -= self._freed_by(new)
        self._change(_Step(file, new, old))

    def link(self, old: str, new: str) -> None:
        self._called("link", new)
        file = self._file(old, "linking")
        self._folder_of(new, "linking")
        if new in self._files:
            raise _error(errno.EEXIST, "linking", new)
        self._change(_Step(file, new, ""))

    def sync_dir(self, folder: str) -> None:
        self._called("sync_dir", folder)
        self._known(folder, "syncing the folder")
        left = []
        for step in self._steps:
            if folder in (_folder(step.made or step.lost), _folder(step.lost or step.made)):
                _apply(step, self._platter_names)
            else:
                left.append(step)
        self._steps = left

    def folders(self, folder: str) -> list[str]:
        self._called("list", folder)
        self._known(folder, "listing")
        return sorted(name.rpartition("/")[2] for name in self._folders if name and _folder(name) == folder)

    def list(self, folder: str) -> list[str]:
        self._called("list", folder)
        self._known(folder, "listing")
        return sorted(name.rpartition("/")[2] for name in self._files if _folder(name) == folder)

    def remove(self, name: str) -> None:
        self._called("remove", name)
        file = self._file(name, "removing")
        self._used_bytes -= self._freed_by(name)
        self._change(_Step(file, "", name))

    def exists(self, name: str) -> bool:
        return name in self._files or name in self._folders

    def make_folder(self, name: str) -> None:
        self._called("make_folder", name)
        self._folders.update(_with_parents(name))

    def remove_folder(self, name: str) -> None:
        self._called("remove", name)
        self._known(name, "removing")
        if any(_folder(one) == name for one in (*self._files, *self._folders) if one):
            raise _error(errno.ENOTEMPTY, "removing", name)
        self._folders.discard(name)

    def free_bytes(self) -> int:
        return (1 << 60 if self.capacity_bytes is None else self.capacity_bytes) - self._used_bytes

    # --- inside -----------------------------------------------------------------------------------------------------

    def _called(self, call: str, name: str) -> _Fault | None:
        """Count the call, and raise what was injected into it. Returns the fault where it is a short read."""
        self.calls[call] = self.calls.get(call, 0) + 1
        if not self._faults:
            return None
        fault = next((fault for fault in self._faults if fault.strikes(call, name)), None)
        if fault is not None and fault.error:
            raise _error(fault.error, call, name, fault.written)
        return fault

    def _put(self, call: str, name: str, file: _File, offset: int, payload: bytes) -> None:
        try:
            self._called(call, name)
        except StorageError as error:
            self._write(name, file, offset, payload[: error.details["written"]])
            raise
        self._write(name, file, offset, payload)

    def _write(self, name: str, file: _File, offset: int, payload: bytes) -> None:
        grows = max(offset + len(payload) - file.length, 0)
        lacking = max(grows - self.free_bytes(), 0)
        if fitting := payload[: max(len(payload) - lacking, 0)] if lacking else payload:
            self._used_bytes += max(offset + len(fitting) - file.length, 0)
            file.write(offset, fitting)
        if lacking:
            raise _error(errno.ENOSPC, "writing", name)

    def _create(self, name: str) -> _File:
        self._folder_of(name, "making")
        self._used_bytes -= self._freed_by(name)
        file = _File(bytearray(), 0)
        self._change(_Step(file, name, ""))
        return file

    def _freed_by(self, name: str) -> int:
        """The space that comes back when `name` goes: none where its file has another name."""
        file = self._files.get(name)
        if file is None or sum(other is file for other in self._files.values()) > 1:
            return 0
        return file.length

    def _change(self, step: _Step) -> None:
        self._steps.append(step)
        _apply(step, self._files)

    def _file(self, name: str, doing: str) -> _File:
        file = self._files.get(name)
        if file is None:
            raise _error(errno.ENOENT, doing, name)
        return file

    def _folder_of(self, name: str, doing: str) -> None:
        self._known(_folder(name), doing)

    def _known(self, folder: str, doing: str) -> None:
        if folder not in self._folders:
            raise _error(errno.ENOENT, doing, folder)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _with_parents(folder: str) -> list[str]:
    """A folder, and those that it lies in; nothing for the root."""
    return [*_with_parents(_folder(folder)), folder] if folder else []


def _apply(step: _Step, names: dict[str, _File]) -> None:
    """Change `names`; a step whose file is not there (its own creation was lost) changes nothing."""
    if step.lost:
        if names.get(step.lost) is not step.file:
            return
        del names[step.lost]
    if step.made:
        names[step.made] = step.file


def _error(number: int, doing: str, name: str, written: int = 0) -> StorageError:
    error = storage_error(OSError(number, os.strerror(number)), doing, name)
    error.details["written"] = written
    return error
