"""The file CLUSTER: whose directory this is, also when the file is damaged."""

from __future__ import annotations

from geokv.errors import ConfigurationError, StorageError
from geokv.server.identity import FILE, claim_directory, owner_of
from geokv.storage.crash_disk import CrashDisk

MINE = ("testing", "dc1", "node-1")


def test_every_flipped_bit_and_truncation_is_refused_or_changes_nothing() -> None:
    """A directory that says something else, or nothing that can be read, is never opened as this node's."""
    disk = CrashDisk()
    claim_directory(disk, *MINE)
    size = disk.size(FILE)
    damages = [(offset, bit) for offset in range(size) for bit in range(8)] + [(length, None) for length in range(size)]
    for offset, bit in damages:
        hurt = disk.copy()
        if bit is None:
            hurt.truncate(FILE, offset)
        else:
            (byte,) = hurt.read_at(FILE, offset, 1)
            hurt.damage(FILE, offset, bytes([byte ^ 1 << bit]))
        try:
            claim_directory(hurt, *MINE)
        except (ConfigurationError, StorageError):
            continue
        assert owner_of(hurt) == "node-1", f"byte {offset} bit {bit}"
