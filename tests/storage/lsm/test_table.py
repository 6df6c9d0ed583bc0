"""A table says what was written, or that it is damaged."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.partial import Partial
from geokv.errors import DiskFull, StorageError
from geokv.storage import crash_disk
from geokv.storage.encryption.cipher import TAG_BYTES
from geokv.storage.encryption.keys import Keys
from geokv.storage.lsm.block import encode_block
from geokv.storage.lsm.bloom import SEED, build_filter, digest, load_filter, may_contain
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.facts import TableFacts, table_name
from geokv.storage.lsm.footer import FOOTER
from geokv.storage.lsm.merging import in_stretches, pairs_of
from geokv.storage.lsm.sealing import SEAL_BYTES
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import TableOptions, write_tables
from tests.storage.lsm.little_node import cell_of
from tests.storage.modes import RING, CrashDisk, is_encrypted

pytestmark = pytest.mark.usefixtures("mode")

GOLDEN = Path(__file__).parent / "golden"
NUMBER = 3 << 16
NAME = table_name(NUMBER)
SMALL = TableOptions(block_bytes=200)
PAIRS = {b"key %03d" % index: cell_of(index + 1, b"value %d" % index if index % 5 else None) for index in range(40)}


def _disk() -> CrashDisk:
    disk = CrashDisk()
    disk.make_folder("lsm")
    return disk


def _written(pairs: dict[bytes, bytes], options: TableOptions = SMALL) -> tuple[CrashDisk, list[TableFacts]]:
    disk = _disk()
    return disk, write_tables(disk, 3, 7, "lww", in_stretches(sorted(pairs.items()), 7), options)


@given(
    pairs=st.dictionaries(st.binary(max_size=5), st.binary(max_size=50) | st.binary(max_size=9).map(Partial), min_size=1),
    block_bytes=st.integers(1, 400),
    table_bytes=st.integers(1, 1000),
    others=st.lists(st.binary(max_size=5)),
    start=st.binary(max_size=3),
    stop=st.none() | st.binary(max_size=3),
)
def test_tables_give_back_their_pairs(
    pairs: dict[bytes, bytes],
    block_bytes: int,
    table_bytes: int,
    others: list[bytes],
    start: bytes,
    stop: bytes | None,
) -> None:
    """By key, by range and as a whole, cut into any number of tables and blocks, first and later looks alike."""
    disk, facts = _written(pairs, TableOptions(block_bytes, table_bytes))
    tables = [TableReader(disk, one.number, BlockCache(10_000)) for one in facts]
    assert [table.facts for table in tables] == facts
    held = [pair for table in tables for pair in table.all_pairs()]
    assert held == sorted(pairs.items()) and all(type(cell) is type(pairs[key]) for key, cell in held)
    assert [pair for table in tables for pair in pairs_of(table.stretches(start, stop))] == [
        (key, cell) for key, cell in sorted(pairs.items()) if start <= key and (stop is None or key < stop)
    ]
    for key in [*pairs, *others, *pairs]:
        found = [cell for table in tables if (cell := table.get(key)) is not None]
        assert found == ([pairs[key]] if key in pairs else [])
        assert key not in pairs or sum(table.may_contain(key) for table in tables) == 1


def test_the_facts_are_those_of_the_pairs() -> None:
    """Counts, key range and versions, as the strategies and the collection need them."""
    disk, (facts,) = _written(PAIRS | {b"key 999": Partial(cell_of(77, b"x"))})
    assert (facts.pairs, facts.partials, facts.tombstones, facts.deadlines) == (41, 1, 8, 0)
    assert (facts.oldest, facts.first_deadline_ms, facts.collectable(99)) == (1, 0, 8)
    assert (facts.version_min, facts.version_max) == (1, 77)
    assert (facts.first_key, facts.last_key, facts.namespace, facts.policy) == (b"key 000", b"key 999", 7, "lww")
    assert facts.nbytes < disk.size(NAME) < facts.nbytes + 300


def test_a_get_reads_one_block_at_most_and_none_from_the_cache() -> None:
    """One read for the first key of a block, none for its others; none for what the key range leaves out."""
    disk, _ = _written(PAIRS)
    table = TableReader(disk, NUMBER, BlockCache(100_000))
    reads = disk.calls["read_at"]
    for key, cell in PAIRS.items():
        before = disk.calls["read_at"]
        assert table.get(key) == cell and disk.calls["read_at"] <= before + 1
        assert table.is_cached(key)
    blocks = disk.calls["read_at"] - reads
    assert 3 < blocks < len(PAIRS) / 2
    for key, cell in PAIRS.items():
        assert table.get(key) == cell
    assert table.get(b"zzz") is None and disk.calls["read_at"] == reads + blocks


def test_what_stands_before_a_damaged_block_is_read() -> None:
    """Whoever wants all of a table gets the sound blocks first, then the error."""
    disk, _ = _written(PAIRS)
    table = TableReader(disk, NUMBER, BlockCache(0))
    last = table._ends[-2]  # where the last block of pairs begins
    disk.damage(NAME, last + SEAL_BYTES, bytes([disk.read_at(NAME, last + SEAL_BYTES, 1)[0] ^ 1]))
    found: list[tuple[bytes, bytes]] = []
    with pytest.raises(StorageError, match=f"damaged at byte {last}"):
        found.extend(table.all_pairs())
    assert 30 < len(found) < len(PAIRS) and found == sorted(PAIRS.items())[: len(found)]


def test_every_flipped_bit_is_found(samples) -> None:
    """Any flipped bit: opening, or reading everything, is a StorageError with file and offset, never another cell."""
    disk, _ = _written(PAIRS)
    size = disk.size(NAME)
    raw = disk.read_at(NAME, 0, size)
    for bit in random.Random(2).sample(range(size * 8), samples.of(test=400, check=1000, soak=size * 8)):
        byte = bit // 8
        disk.damage(NAME, byte, bytes([raw[byte] ^ 1 << bit % 8]))
        wrong = 0
        try:
            table = TableReader(disk, NUMBER, BlockCache(0))
        except StorageError as error:
            _names_the_place(error, byte, size)
            wrong += 1
        else:
            for key, cell in PAIRS.items():
                try:
                    assert table.get(key) == cell, f"bit {bit}"
                except StorageError as error:
                    _names_the_place(error, byte, size)
                    wrong += 1
            with pytest.raises(StorageError, match="damaged at byte"):
                list(table.all_pairs())
        assert wrong, f"bit {bit} went unnoticed"
        disk.damage(NAME, byte, raw[byte : byte + 1])


def _names_the_place(error: StorageError, byte: int, size: int) -> None:
    assert NAME in str(error) and error.details["path"] == NAME
    assert error.details["offset"] <= byte or error.details["offset"] == size - FOOTER.size


def test_every_truncation_is_found() -> None:
    """A table that ends early, or goes on behind its footer, does not open."""
    disk, _ = _written(PAIRS)
    raw = disk.read_at(NAME, 0, disk.size(NAME))
    disk.append(NAME, b"\0")
    for length in range(len(raw), -1, -1):
        with pytest.raises(StorageError, match=rf"{NAME}: damaged at byte \d+"):
            TableReader(disk, NUMBER, BlockCache(0))
        disk.truncate(NAME, length if length < len(raw) else len(raw) - 1)


def test_a_short_read_and_an_error_of_the_disk_are_told_apart() -> None:
    """Fewer bytes than the index states are damage; an EIO is the disk's error, with its own words."""
    disk, _ = _written(PAIRS)
    table = TableReader(disk, NUMBER, BlockCache(0))
    disk.fail("read_at", 0, written=9)
    with pytest.raises(StorageError, match="ends inside a block"):
        table.get(b"key 001")
    disk.fail("read_at")
    with pytest.raises(StorageError, match=r"read_at .* failed: Input/output error"):
        table.get(b"key 001")
    assert table.get(b"key 001") == PAIRS[b"key 001"]


def test_a_block_of_another_place_is_no_block() -> None:
    """Two healthy blocks of one table exchanged: both are refused, though their bytes are whole."""
    pairs = {b"key %03d" % index: random.Random(index).randbytes(60) for index in range(9)}
    disk, _ = _written(pairs)  # nothing to compress, three pairs in each block
    keys = sorted(pairs)[:3]
    length = SEAL_BYTES + len(encode_block(keys, [pairs[key] for key in keys])) + TAG_BYTES * is_encrypted()
    first, second = disk.read_at(NAME, 0, length), disk.read_at(NAME, length, length)
    disk.damage(NAME, 0, second + first)
    table = TableReader(disk, NUMBER, BlockCache(0))
    assert table.get(b"key 008") == pairs[b"key 008"]
    for key in (b"key 000", b"key 005"):
        with pytest.raises(StorageError, match="checksum does not match"):
            table.get(key)


def test_a_table_under_another_number_is_refused() -> None:
    """A file that was renamed, or that the disk mixed up, is not taken for the one that was asked for."""
    disk, _ = _written(PAIRS)
    disk.rename(NAME, table_name(NUMBER + 1))
    with pytest.raises(StorageError, match="under another's name"):
        TableReader(disk, NUMBER + 1, BlockCache(0))


@pytest.mark.parametrize(("fields", "what"), [(b"\3\0\0\0", "format 3, this one reads up to 2"), (b"\2\0\2\0", "flags 0x2")])
def test_a_newer_format_is_refused_by_name(fields: bytes, what: str) -> None:
    """A table of format 3, or with a flag that is not known, asks for the newer version."""
    from zlib import crc32

    disk, _ = _written(PAIRS)
    start = disk.size(NAME) - FOOTER.size
    body = disk.read_at(NAME, start, 44) + fields
    disk.damage(NAME, start, body + crc32(body).to_bytes(4, "little"))
    with pytest.raises(StorageError, match=rf"newer version \(.*{what}\)"):
        TableReader(disk, NUMBER, BlockCache(0))


@pytest.mark.parametrize("form", [1, 2])
def test_the_bytes_of_each_format_still_open(form: int) -> None:
    """A table that was written by an earlier version is read for ever."""
    disk = _disk()
    disk.append(NAME, (GOLDEN / f"format-{form}.sstable").read_bytes())
    table = TableReader(disk, NUMBER, BlockCache(0))
    assert dict(table.all_pairs()) == {b"apple": b"red", b"apricot": b"orange", b"plum": b"blue"}
    assert type(table.get(b"plum")) is Partial and type(table.get(b"apple")) is bytes
    assert (table.facts.namespace, table.facts.policy, table.facts.pairs) == (7, "lww", 3)


def test_the_bytes_of_an_encrypted_table_still_open() -> None:
    """Of format 2, of the first version that could."""
    disk = crash_disk.CrashDisk(keys=Keys(RING))
    disk.make_folder("lsm")
    disk.append(NAME, (GOLDEN / "format-2-encrypted.sstable").read_bytes())
    table = TableReader(disk, NUMBER, BlockCache(0))
    assert dict(table.all_pairs()) == {b"apple": b"red", b"apricot": b"orange", b"plum": b"blue"}
    assert type(table.get(b"plum")) is Partial and table.key_id == "new"


def test_a_failed_write_leaves_no_file() -> None:
    """Full disk, failed sync, keys out of order: an error, and none of the tables is left."""
    many = {b"%05d" % index: random.Random(index).randbytes(100) for index in range(300)}
    for call, error in (("append", DiskFull), ("sync", StorageError), ("sync_dir", StorageError), ("allocate", DiskFull)):
        disk = _disk()
        disk.fail(call, 28 if error is DiskFull else 5, after=0 if call == "sync_dir" else 2)
        with pytest.raises(error):
            write_tables(disk, 3, 7, "lww", in_stretches(sorted(many.items())), TableOptions(table_bytes=6000))
        assert disk.list("lsm") == []
    with pytest.raises(StorageError, match="does not stand behind"):
        write_tables(disk, 3, 7, "lww", [([b"b", b"a"], [b"", b""])], TableOptions())
    with pytest.raises(StorageError, match="too large for a table"):
        write_tables(disk, 3, 7, "lww", [([b"k" * 65536], [b""])], TableOptions())
    assert disk.list("lsm") == []


@pytest.mark.parametrize(("bits_per_key", "share_max"), [(6, 0.08), (10, 0.022), (16, 0.006)])
def test_a_filter_passes_what_was_added_and_little_else(bits_per_key: int, share_max: float) -> None:
    """No key that was added is refused; of 20,000 others only the share passes that the bits allow."""
    keys = [b"user:%d" % index for index in range(5000)]
    words = load_filter(build_filter([digest(key, SEED) for key in keys], len(keys), bits_per_key))
    assert all(may_contain(words, key) for key in keys)
    passed = sum(may_contain(words, b"other:%d" % index) for index in range(20_000))
    assert 0 < passed < 20_000 * share_max
