"""The keys of a running node: read again from where they came, put in place of the old ones, and told who needs which.

    SIGHUP, or `geokv storage rotate-keys`    read the file or run the command again; write new files with its last key
    `geokv storage keys`                      per key: how many files are written with it

Invariants: keys with which the node could not start again are refused, and all stays as it was. Ids are told, keys never.
Blocking, for a thread; one rotation at a time.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from geokv.errors import ConfigurationError
from geokv.storage.disk import RealDisk
from geokv.storage.encryption.source import KeySource
from geokv.storage.key_use import key_use, rotate

_log = logging.getLogger("geokv.server")


class KeyKeeper:
    """See the module."""

    def __init__(self, disk: RealDisk, source: KeySource) -> None:
        self._disk = disk
        self._source = source
        self._rotating = threading.Lock()

    @property
    def has_source(self) -> bool:
        """Whether there is anything to read again."""
        return self._source.is_there

    def rotate(self) -> dict[str, Any]:
        """Take the keys as they are now at their place. Raises ConfigurationError, EncryptionKeyError; then nothing changed."""
        if not self._source.is_there:
            raise ConfigurationError(
                "this node was started without keys: start it with --encryption-key-file or --encryption-key-command"
            )
        with self._rotating:
            before = self._disk.keys.ring.active
            ring = self._source.read()
            rotate(self._disk, ring)
            after = self._disk.keys.ring.active
        _log.info("keys read anew: %s; new files are written with %s, before with %s", ring.ids, _named(after), _named(before))
        found = self.report()
        for one in found["keys"]:
            files = sum(one["files"].values())
            _log.info("key %s: %s", _named(one["id"]), f"{files} files are written with it" if files else "no file needs it")
        return found

    def report(self) -> dict[str, Any]:
        """Which key new files are written with, and how many files of which kind need which key ("": plain)."""
        ring = self._disk.keys.ring
        used = key_use(self._disk)
        ids = sorted({*ring.ids, *used})
        return {
            "active": ring.active,
            "keys": [{"id": one, "is_active": one == ring.active, "files": used.get(one, {})} for one in ids],
        }


def _named(key_id: str) -> str:
    return key_id or "none (plain)"
