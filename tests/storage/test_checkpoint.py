"""Checkpoints: whole or not there, and damage is never skipped."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.errors import DiskFull, StorageError
from geokv.storage.checkpoint import Pairs, read_checkpoint
from geokv.storage.crash_disk import CrashDisk
from tests.storage.checkpoint_writer import BLOCK_BYTES, write_checkpoint

NAME = "checkpoint/00000001.checkpoint"
GOLDEN = Path(__file__).parent / "golden"
TABLES = {7: {b"a": b"cell a", b"": b"", b"z" * 300: b"\0" * 2000}, 2**63 + 5: {}}


def _tables(pairs: Iterator[tuple[int, Pairs]]) -> dict[int, dict[bytes, bytes]]:
    tables: dict[int, dict[bytes, bytes]] = {}
    for namespace, some in pairs:
        tables.setdefault(namespace, {}).update(some)
    return tables


def _read(disk: CrashDisk) -> tuple[int, bytes, dict[int, dict[bytes, bytes]]] | None:
    found = read_checkpoint(disk)
    return None if found is None else (found[0], found[1], _tables(found[2]))


@given(
    tables=st.dictionaries(st.integers(0, 2**64 - 1), st.dictionaries(st.binary(), st.binary(), max_size=20), max_size=4),
    meta=st.binary(),
    segment=st.integers(0, 2**64 - 1),
)
def test_what_is_written_is_read(tables: dict[int, dict[bytes, bytes]], meta: bytes, segment: int) -> None:
    """Segment, meta and every namespace with its pairs, empty ones too, come back as they were."""
    disk = CrashDisk()
    assert read_checkpoint(disk) is None
    write_checkpoint(disk, meta, tables, segment)
    assert _read(disk) == (segment, meta, tables)


def test_large_tables_are_streamed_in_bounded_blocks() -> None:
    """Meta and tables larger than a block are cut into several; a pair larger than a block stays whole."""
    rng = random.Random(1)
    table = {rng.randbytes(16): rng.randbytes(500) for _ in range(2000)}
    table[b"large"] = rng.randbytes(2 * BLOCK_BYTES)
    meta = rng.randbytes(3 * BLOCK_BYTES + 1)
    disk = CrashDisk()
    write_checkpoint(disk, meta, {1: table, 2: {b"k": b"c"}}, 9)
    assert _read(disk) == (9, meta, {1: table, 2: {b"k": b"c"}})
    found = read_checkpoint(disk)
    assert found is not None
    pieces = [sum(len(key) + len(cell) for key, cell in pairs) for namespace, pairs in found[2] if namespace == 1]
    assert len(pieces) >= 4 and max(pieces) < 4 * BLOCK_BYTES


@given(seed=st.integers(0, 2**32))
def test_a_crash_at_any_moment_leaves_the_old_or_the_new_one(seed: int) -> None:
    """Cut by an error or a power cut at any call: the checkpoint that is read is one of the two, whole."""
    rng = random.Random(seed)
    disk = CrashDisk(rng)
    write_checkpoint(disk, b"old", {1: {b"k": b"old"}}, 1)
    call = rng.choice(["append", "sync", "rename", "sync_dir", "remove"])
    disk.fail(call, rng.choice([errno.EIO, errno.ENOSPC]), after=rng.randint(0, 2), written=rng.randint(0, 40))
    is_written = True
    try:
        write_checkpoint(disk, b"new", {1: {b"k": b"new"}}, 2)
    except StorageError:
        is_written = False
    disk.heal()
    found = _read(disk.crash_clone(rng))
    new = (2, b"new", {1: {b"k": b"new"}})
    assert found == new if is_written else found in (new, (1, b"old", {1: {b"k": b"old"}}))
    write_checkpoint(disk, b"next", {}, 3)
    assert _read(disk) == (3, b"next", {}) and len(disk.list("checkpoint")) == 1


def test_a_full_disk_leaves_the_old_one_and_no_rest() -> None:
    """DiskFull while writing: the space is given back, and the old checkpoint stands."""
    disk = CrashDisk()
    write_checkpoint(disk, b"old", {}, 1)
    disk.capacity_bytes = 50_000
    free = disk.free_bytes()
    with pytest.raises(DiskFull):
        write_checkpoint(disk, b"new", {1: {b"k": random.Random(1).randbytes(100_000)}}, 2)
    assert disk.free_bytes() == free and _read(disk) == (1, b"old", {})


def test_every_damaged_byte_is_refused(samples) -> None:
    """Any flipped bit, anywhere in the file, is a StorageError that names the file and what to do."""
    disk = CrashDisk()
    write_checkpoint(disk, b"state", TABLES, 4)
    size = disk.size(NAME)
    for bit in random.Random(2).sample(range(size * 8), samples.of(test=300, check=600, soak=size * 8)):
        copy = disk.copy()
        byte = copy.read_at(NAME, bit // 8, 1)[0] ^ 1 << bit % 8
        copy.damage(NAME, bit // 8, bytes([byte]))
        with pytest.raises(StorageError, match=f"{NAME}: damaged at byte .*put its newest state back"):
            _read(copy)


def test_every_truncation_is_refused() -> None:
    """A file that ends early, at a block's edge too, is refused; so is one with something behind its end."""
    disk = CrashDisk()
    write_checkpoint(disk, b"state", TABLES, 4)
    for length in range(disk.size(NAME)):
        copy = disk.copy()
        copy.truncate(NAME, length)
        with pytest.raises(StorageError, match="damaged at byte"):
            _read(copy)
    disk.append(NAME, b"\0")
    with pytest.raises(StorageError, match="something stands behind its end"):
        _read(disk)


def test_damage_of_the_newest_does_not_fall_back_to_an_older_one() -> None:
    """An older checkpoint beside a damaged newer one is not used: the log that it needs may be gone."""
    disk = CrashDisk()
    write_checkpoint(disk, b"old", {}, 1)
    disk.append("checkpoint/00000002.checkpoint", b"geokvckp and then nothing")
    with pytest.raises(StorageError, match=r"00000002\.checkpoint: damaged"):
        read_checkpoint(disk)


def test_a_bomb_is_refused_before_it_expands() -> None:
    """A block that states a huge size is refused by what it states, with a correct checksum too."""
    from zlib import crc32

    import zstandard

    disk = CrashDisk()
    write_checkpoint(disk, b"", {}, 1)
    header = disk.read_at(NAME, 0, 24)
    packed = zstandard.compress(bytes(100 << 20))
    for stated in (100 << 20, 1000):
        body = b"\2\0\0\0" + stated.to_bytes(4, "little") + bytes(8) + packed
        bomb = header + len(packed).to_bytes(4, "little") + crc32(body).to_bytes(4, "little") + body
        disk.remove(NAME)
        disk.append(NAME, bomb)
        with pytest.raises(StorageError, match=r"size is not what it states|too large"):
            _read(disk)


def test_a_newer_format_is_refused_by_name() -> None:
    """A checkpoint of format 2 asks for the newer version."""
    from zlib import crc32

    disk = CrashDisk()
    write_checkpoint(disk, b"", {}, 1)
    body = b"\2\0" + disk.read_at(NAME, 14, 10)
    disk.damage(NAME, 8, crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(StorageError, match=r"newer version \(format 2"):
        read_checkpoint(disk)


def test_the_bytes_of_format_1_still_open() -> None:
    """A checkpoint that was written by the first version is read for ever."""
    disk = CrashDisk()
    disk.make_folder("checkpoint")
    disk.append(NAME, (GOLDEN / "format-1.checkpoint").read_bytes())
    assert _read(disk) == (4, b"the node's state", TABLES)
