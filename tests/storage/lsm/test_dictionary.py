"""Trained dictionaries: they shrink tables of small, similar values, never harm, and are checked as every block is."""

import random

import pytest

from geokv.errors import StorageError
from geokv.storage.lsm.cache import BlockCache
from geokv.storage.lsm.dictionary import DICTIONARY_BYTES, SAMPLES_BYTES_MIN, dictionary_of, trained_on
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.facts import table_name
from geokv.storage.lsm.footer import FOOTER, FOOTER_BYTES_MAX, read_footer
from geokv.storage.lsm.merging import in_stretches, pairs_of
from geokv.storage.lsm.strategy import Levelled
from geokv.storage.lsm.table_reader import TableReader
from geokv.storage.lsm.table_writer import TableOptions, write_tables
from tests.storage.lsm.little_node import LittleNode, cell_of
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")

NUMBER = 3 << 16
NAME = table_name(NUMBER)
SMALL_BLOCKS = 1024
PLAIN = TableOptions(block_bytes=SMALL_BLOCKS)
TAUGHT = TableOptions(block_bytes=SMALL_BLOCKS, has_dictionary=True)


def _similar(count: int) -> dict[bytes, bytes]:
    """Small documents of one shape, with other words in each."""
    rng = random.Random(5)
    cities = ("Reykjavik", "Ouagadougou", "Montevideo", "Vladivostok")
    return {
        b"user:%06d" % at: cell_of(
            at + 1,
            b'{"identifier": %d, "given_name": "%x", "preferred_city": "%s", "newsletter_subscription": %s, "balance": %d}'
            % (at, rng.getrandbits(40), rng.choice(cities).encode(), rng.choice((b"true", b"false")), rng.randrange(10**6)),
        )
        for at in range(count)
    }


def _written(pairs: dict[bytes, bytes], options: TableOptions) -> CrashDisk:
    disk = CrashDisk()
    disk.make_folder("lsm")
    write_tables(disk, 3, 7, "lww", in_stretches(sorted(pairs.items())), options)
    return disk


def test_a_table_of_small_similar_values_becomes_smaller() -> None:
    """By a fifth at least, the dictionary in the table counted; all of it reads as before, by key, range and as a whole."""
    pairs = _similar(6000)
    plain, taught = _written(pairs, PLAIN), _written(pairs, TAUGHT)
    assert taught.size(NAME) < 0.8 * plain.size(NAME)
    assert 0 < read_footer(taught, NUMBER).dictionary.length <= DICTIONARY_BYTES + 64
    for disk in (plain, taught):
        table = TableReader(disk, NUMBER, BlockCache(100_000))
        assert table.has_dictionary is (disk is taught)
        assert dict(table.all_pairs()) == pairs
        assert all(table.get(key) == pairs[key] for key in list(pairs)[::97])
        assert [key for key, _ in pairs_of(table.stretches(b"user:000100", b"user:000200"))] == sorted(pairs)[100:200]


def test_where_it_would_not_pay_there_is_none() -> None:
    """Few values, and values that have nothing in common, are written as they are without the setting."""
    few = _similar(100)
    noise = {b"%06d" % at: random.Random(at).randbytes(100) for at in range(3000)}
    assert sum(map(len, few.values())) < SAMPLES_BYTES_MIN < sum(map(len, noise.values()))
    for pairs in (few, noise):
        disk = _written(pairs, TAUGHT)
        assert read_footer(disk, NUMBER).dictionary.length == 0
        assert disk.size(NAME) == _written(pairs, PLAIN).size(NAME)
        assert dict(TableReader(disk, NUMBER, BlockCache(0)).all_pairs()) == pairs


def test_all_pairs_come_out_of_the_training() -> None:
    """What is looked at to learn from is not lost, in whichever number it comes."""
    for count in (0, 1, 50, 2000):
        pairs = sorted(_similar(count).items())
        assert list(pairs_of(trained_on(in_stretches(pairs), 1, SMALL_BLOCKS)[1])) == pairs


def test_every_flipped_bit_and_truncation_is_found(samples) -> None:
    """In the dictionary itself, in blocks that need it, and everywhere else: never another cell, always file and offset.

    Some seconds: each sample reads the table.
    """
    pairs = _similar(1200)
    disk = _written(pairs, TAUGHT)
    raw, footer = disk.read_at(NAME, 0, disk.size(NAME)), read_footer(disk, NUMBER)
    assert footer.dictionary.length
    rng = random.Random(9)
    bits = [rng.randrange(len(raw) * 8) for _ in range(samples.of(test=60, check=400, soak=20_000))]
    bits += [rng.randrange(footer.dictionary.offset * 8, footer.dictionary.end * 8) for _ in range(40)]
    bits += [rng.randrange((len(raw) - FOOTER_BYTES_MAX) * 8, len(raw) * 8) for _ in range(40)]
    for bit in bits:
        disk.damage(NAME, bit // 8, bytes([raw[bit // 8] ^ 1 << bit % 8]))
        with pytest.raises(StorageError, match="damaged at byte") as caught:
            list(TableReader(disk, NUMBER, BlockCache(0)).all_pairs())
        offset = caught.value.details["offset"]
        assert offset <= bit // 8 or offset == len(raw) - FOOTER.size
        disk.damage(NAME, bit // 8, raw[bit // 8 : bit // 8 + 1])
    for length in [len(raw) - cut for cut in range(1, FOOTER_BYTES_MAX + 2)] + [footer.dictionary.offset, footer.filter.offset]:
        cut = disk.copy()
        cut.truncate(NAME, length)
        with pytest.raises(StorageError, match="damaged at byte"):
            TableReader(cut, NUMBER, BlockCache(0))


def test_one_dictionary_is_one_in_memory() -> None:
    """However many tables hold the same, it is there once, and gone when the last of them is."""
    disk = _written(_similar(6000), TableOptions(block_bytes=SMALL_BLOCKS, table_bytes=100_000, has_dictionary=True))
    numbers = [NUMBER + at for at in range(len(disk.list("lsm")))]
    tables = [TableReader(disk, number, BlockCache(0)) for number in numbers]
    assert len(tables) > 2 and all(table.has_dictionary for table in tables)
    assert len({id(table._dictionary) for table in tables}) == 1
    assert dictionary_of(tables[0]._dictionary.raw) is tables[0]._dictionary


def test_flush_and_compaction_follow_the_setting() -> None:
    """Turned on, what is flushed and compacted gets one; turned off, the next compaction writes without; no cell is lost."""
    options = LsmOptions(TableOptions(block_bytes=SMALL_BLOCKS), Levelled(flushed_runs=2))
    node = LittleNode(CrashDisk(), (1,), options)
    pairs = _similar(1500)
    for is_on in (False, True, False):
        node.engine.table(1).has_dictionary = is_on
        node.put(1, pairs)
        node.flush()
        node.compact_all()
        assert node.engine.has_dictionary(1) is is_on
        assert dict(node.engine.scan(1)) == pairs
    assert dict(LittleNode(node.disk, (1,), options).engine.scan(1)) == pairs
    assert isinstance(node.engine, LsmEngine)
