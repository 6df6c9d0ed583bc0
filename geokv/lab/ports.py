"""Free ports for nodes, reserved across processes, so that two labs which start at once never choose the same.

A reservation is an exclusive lock on a small file in the temporary directory, one per port. It goes with the
process that holds it, also after kill -9. Ports are chosen below the range from which systems take ports for
outgoing connections, so nothing else snatches one between the choice and the start of its node, or while the node
is restarted.

Invariants: a port is given out only when its lock is ours and nothing listens on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path
from typing import Final

from geokv.errors import LabError

HOST: Final = "127.0.0.1"
FIRST: Final = 15_000
LAST: Final = 31_999
TRIES_MAX: Final = 500


class Ports:
    """The reservations of one lab or cluster. Close it when its nodes are gone."""

    def __init__(self) -> None:
        self._locks: dict[int, int] = {}
        self._folder = Path(tempfile.gettempdir()) / f"geokv-ports-{os.getuid()}"
        self._rng = random.Random()

    def reserve(self, preferred: int | None = None) -> int:
        """A free port, the preferred one if it is free. Raises LabError where none is found."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if preferred is not None and self._take(preferred):
            return preferred
        for _ in range(TRIES_MAX):
            port = self._rng.randint(FIRST, LAST)
            if self._take(port):
                return port
        raise LabError(f"no free port between {FIRST} and {LAST} after {TRIES_MAX} tries")

    def close(self) -> None:
        """Let all ports go."""
        for descriptor in self._locks.values():
            os.close(descriptor)
        self._locks.clear()

    def _take(self, port: int) -> bool:
        if port in self._locks:
            return False
        descriptor = os.open(self._folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        if not is_free(port):
            os.close(descriptor)
            return False
        self._locks[port] = descriptor
        return True


def is_free(port: int) -> bool:
    """Whether nobody listens on this port of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True
