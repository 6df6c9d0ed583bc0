"""The file CLUSTER: whose directory this is, also when the file is damaged."""

from __future__ import annotations

import pytest

from geokv.errors import ConfigurationError, StorageError
from geokv.server.identity import FILE, claim_directory, demand_whole, generation_of, owner_of
from geokv.storage.crash_disk import CrashDisk

MINE = ("testing", "dc1", "node-1")


def test_every_flipped_bit_and_truncation_is_refused_or_changes_nothing() -> None:
    """A directory that says something else, or nothing that can be read, is never opened as this node's."""
    disk = CrashDisk()
    claim_directory(disk, *MINE, generation="2026-11-21")
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
        said = (owner_of(hurt), generation_of(hurt))
        assert said == ("node-1", "2026-11-21"), f"byte {offset} bit {bit}"


def test_a_file_of_format_1_is_read() -> None:
    """What earlier versions wrote had no checksum, and stays as it is."""
    disk = CrashDisk()
    disk.append(FILE, b"geokv-directory 1\ncluster = testing\ndc = dc1\nnode = node-1\ngeneration = again\n")
    claim_directory(disk, *MINE)
    demand_whole(disk)
    assert (owner_of(disk), generation_of(disk)) == ("node-1", "again")


def test_a_log_or_tables_without_the_file_are_nobodys() -> None:
    """The file is the first thing in a directory: where it is gone, nobody takes what others wrote for its own."""
    disk = CrashDisk()
    demand_whole(disk)
    disk.make_folder("lsm")
    disk.make_folder("log")
    demand_whole(disk)
    disk.append("log/00000001.wal", b"\0")
    with pytest.raises(StorageError, match="whose they are is not known"):
        demand_whole(disk)
