"""The disk as a worker process sees it: the folder that the node holds locked, without a lock of its own.

Invariants: opened only by a process that the holder of the lock started, which writes no file that the holder writes.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from geokv.storage.disk import RealDisk, storage_error
from geokv.storage.encryption.keys import Keys


class SharedDisk(RealDisk):
    """A RealDisk on a root that another process holds. Raises StorageError where it is not there."""

    def __init__(self, root: Path, keys: Keys | None = None, progress: Callable[[], None] = lambda: None) -> None:
        """`progress`: called whenever the disk has answered."""
        self._progress = progress
        self.root = root
        self.keys = keys or Keys()
        self._flags = os.O_RDWR
        self._handles = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._root_lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error(error, "opening", root) from error

    def read_at(self, name: str, offset: int, length: int) -> bytes:
        payload = super().read_at(name, offset, length)
        self._progress()
        return payload

    def append(self, name: str, payload: bytes) -> None:
        super().append(name, payload)
        self._progress()

    def sync(self, name: str) -> None:
        super().sync(name)
        self._progress()
