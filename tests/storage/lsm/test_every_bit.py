"""Every single-bit flip and every truncation of a log segment and of a table, 16 KiB each: never a wrong value.

What is damaged is refused with its file and place, or, at the end of the log, cut back to the exact frames before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from geokv.errors import StorageError
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.facts import JOB_SHIFT, table_name
from geokv.storage.lsm.merging import in_stretches
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import TableOptions, write_tables
from geokv.storage.wal_recovery import segment_name
from tests.conftest import Samples
from tests.storage.lsm.little_node import SEGMENT_BYTES, LittleNode, cell_of
from tests.storage.modes import CrashDisk
from tests.tally import Tally

pytestmark = pytest.mark.usefixtures("mode")

SIZE = 16 * 1024
SEGMENT = segment_name(1)
NUMBER = 7 << JOB_SHIFT
TABLE = table_name(NUMBER)
Held = dict[bytes, bytes]


def _some(rng: random.Random, everything: range, count: int) -> Iterable[int]:
    return everything if count >= len(everything) else rng.sample(everything, count)


def _demand_named(error: StorageError, name: str = "") -> None:
    """The error says which file it is about."""
    path = error.details.get("path", "")
    assert path and path in str(error) and name in path, f"{error} does not name its file"


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(mode: str) -> tuple[CrashDisk, list[Held]]:
    """A disk with one full segment, and what a node holds after each of its frames."""
    rng = random.Random(1)
    disk = CrashDisk()
    node = LittleNode(disk)
    states: list[Held] = [{}]
    for version in range(1, 1000):
        pairs = {b"%02d" % rng.randrange(40): cell_of(version, rng.randbytes(rng.randrange(200)))}
        before = disk.copy()
        node.put_unread(1, pairs)
        if node.end.segment > 1:
            return before, states
        states.append(states[-1] | pairs)
    raise AssertionError("the segment is never full")


def _found(disk: CrashDisk) -> Held | None:
    """What a node finds; None where it refuses to start."""
    try:
        return dict(LittleNode(disk).engine.scan(1))
    except StorageError as error:
        _demand_named(error)
        return None


def _check_log(disk: CrashDisk, states: list[Held], what: str) -> None:
    found = _found(disk)
    # Of a log that ends in its first frames nothing else is left to tell a torn tail from damage.
    assert found is None or found in (states[-1], states[-2]), f"{what}: {len(found)} cells that were never there like this"
    if found is not None:
        assert _found(disk) == found, f"{what}: the next start finds something else"


@pytest.mark.timeout(120)  # each sample is a copy of the disk and a recovery
def test_no_flipped_bit_of_a_segment_gives_a_wrong_value(
    logged: tuple[CrashDisk, list[Held]], samples: Samples, tally: Tally
) -> None:
    """The exact state, the exact state before the last frame, or a refusal; in the middle always a refusal."""
    disk, states = logged
    assert disk.size(SEGMENT) == SIZE == SEGMENT_BYTES and len(states) > 50
    with tally.of("bit flips in a log segment of 16 KiB") as count:
        for bit in _some(random.Random(2), range(SIZE * 8), samples.of(test=600, check=1_500, soak=SIZE * 8)):
            damaged = _flipped(disk, SEGMENT, bit)
            _check_log(damaged, states, f"bit {bit}")
            if 32 <= bit // 8 < SIZE // 2:
                assert _found(damaged) is None, f"bit {bit} is in the middle, and was not refused"
            count.add()


def test_no_truncation_of_a_segment_gives_a_wrong_value(
    logged: tuple[CrashDisk, list[Held]], samples: Samples, tally: Tally
) -> None:
    """A segment that was cut, at whatever byte."""
    disk, states = logged
    with tally.of("truncations of a log segment of 16 KiB") as count:
        for length in _some(random.Random(3), range(SIZE), samples.of(test=300, check=600, soak=SIZE)):
            cut = disk.copy()
            cut.truncate(SEGMENT, length)
            _check_log(cut, states, f"{length} bytes")
            count.add()


def _flipped(disk: CrashDisk, name: str, bit: int) -> CrashDisk:
    copy = disk.copy()
    copy.damage(name, bit // 8, bytes([disk.read_at(name, bit // 8, 1)[0] ^ 1 << bit % 8]))
    return copy


# --- a table --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tabled(mode: str) -> tuple[CrashDisk, Held]:
    """A disk with one table of 16 KiB, and its cells; some of them compress, some do not."""
    rng = random.Random(4)
    held: Held = {}
    for version in range(1, 5_000):
        value = None if version % 9 == 0 else rng.randbytes(90) if version % 2 else b"again " * 30
        held[b"key-%04d" % rng.randrange(5_000)] = cell_of(version, value)
        if version % 10 == 0 and (disk := _written(held)).size(TABLE) >= SIZE:
            return disk, held
    raise AssertionError("the table does not grow")


def _written(held: Held) -> CrashDisk:
    disk = CrashDisk()
    disk.make_folder("lsm")
    assert len(write_tables(disk, 7, 1, "lww", in_stretches(sorted(held.items())), TableOptions(block_bytes=1024))) == 1
    return disk


def _wrong(disk: CrashDisk, held: Held) -> int:
    """How many places told of damage; asserts that whatever is read is right."""
    told = 0
    try:
        table = TableReader(disk, NUMBER, BlockCache(SIZE))
    except StorageError as error:
        _demand_named(error, TABLE)
        return 1
    for key, cell in held.items():
        try:
            assert table.get(key) == cell
        except StorageError as error:
            _demand_named(error, TABLE)
            told += 1
    try:
        assert dict(table.all_pairs()) == held
    except StorageError:
        told += 1
    return told


@pytest.mark.timeout(120)  # each sample reads every cell
def test_no_flipped_bit_of_a_table_gives_a_wrong_value(tabled: tuple[CrashDisk, Held], samples: Samples, tally: Tally) -> None:
    """The right cells, or an error that names the file; none goes unnoticed."""
    disk, held = tabled
    size = disk.size(TABLE)
    assert not _wrong(disk, held)
    raw = disk.read_at(TABLE, 0, size)
    with tally.of("bit flips in a table of 16 KiB") as count:
        for bit in _some(random.Random(5), range(size * 8), samples.of(test=500, check=1_500, soak=size * 8)):
            byte = bit // 8
            disk.damage(TABLE, byte, bytes([raw[byte] ^ 1 << bit % 8]))
            assert _wrong(disk, held), f"bit {bit} went unnoticed"
            disk.damage(TABLE, byte, raw[byte : byte + 1])
            count.add()


def test_no_truncation_of_a_table_goes_unnoticed(tabled: tuple[CrashDisk, Held], samples: Samples, tally: Tally) -> None:
    """A table that ends early does not open, wherever it ends."""
    disk, held = tabled
    size = disk.size(TABLE)
    with tally.of("truncations of a table of 16 KiB") as count:
        for length in _some(random.Random(6), range(size), samples.of(test=300, check=600, soak=size)):
            cut = disk.copy()
            cut.truncate(TABLE, length)
            assert _wrong(cut, held) == 1, f"{length} bytes"
            count.add()
