"""Damaged tables in the engine: found, read again, set aside by the manifest; kept, and never merged again."""

from __future__ import annotations

import errno
import random
from dataclasses import replace

import pytest

from geokv.errors import Damaged, StorageError
from geokv.storage.crash_disk import CrashDisk as AnyDisk
from geokv.storage.encryption.keys import KeyRing, Keys
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.facts import DamagedTable
from geokv.storage.lsm.manifest import State, decode_manifest, encode_manifest, read_manifest
from geokv.storage.lsm.table_writer import TableOptions
from geokv.storage.lsm.verify import verify
from geokv.storage.lsm.work import run_job
from geokv.storage.position import Position
from tests.storage.lsm.little_node import LittleNode, cell_of
from tests.storage.modes import RING, CrashDisk

pytestmark = pytest.mark.usefixtures("mode")

OPTIONS = LsmOptions(TableOptions(block_bytes=200), block_cache_bytes=0, row_cache_bytes=0)


def two_tables(disk: AnyDisk | None = None) -> LittleNode:
    """Keys 000 to 099 in one table, 050 to 149 in a newer one."""
    node = LittleNode(disk or CrashDisk(), options=OPTIONS)
    for version, keys in ((1, range(100)), (2, range(50, 150))):
        node.put(1, {b"%03d" % key: cell_of(version * 1000 + key, b"v%d" % version) for key in keys})
        node.flush()
    return node


def flip(disk: AnyDisk, name: str, offset: int, bit: int = 0) -> None:
    (byte,) = disk.read_at(name, offset, 1)
    disk.damage(name, offset, bytes([byte ^ 1 << bit]))


def set_aside(engine: LsmEngine, disk: AnyDisk) -> None:
    job = engine.begin_quarantine(engine.damaged())
    engine.install(job, run_job(disk, job))


def test_a_manifest_says_what_is_quarantined_and_everything_else_as_before() -> None:
    """Place, position, state and tables are those of the same state without it; nothing else is in the bytes."""
    node = two_tables()
    newer, older = node.engine.tables(1)
    plain = State(9, Position(3, 77), tables={1: (newer,)})
    state = replace(plain, quarantined=(DamagedTable(older, 400, "the checksum — no"),))
    assert decode_manifest(encode_manifest(state)) == state
    assert decode_manifest(encode_manifest(plain)) == plain
    assert encode_manifest(plain)[14:16] == b"\0\0" and encode_manifest(state)[14:16] == b"\1\0"


def test_damage_is_told_once_it_is_there_when_read_again_and_the_table_is_set_aside() -> None:
    """The other table answers on; the file stays through installs, restarts and compactions; verify goes on naming it."""
    node = two_tables()
    engine, disk = node.engine, node.disk
    older = engine.tables(1)[1]
    flip(disk, older.name, 30)
    with pytest.raises(Damaged):
        engine.get(1, b"000")
    (told,) = engine.damaged()
    assert (told.facts, told.offset) == (older, 0)
    assert engine.next_compaction() is None
    with pytest.raises(Damaged, match=older.name):
        engine.full_compaction(1)
    set_aside(engine, disk)
    assert not engine.damaged() and [one.facts for one in engine.quarantined()] == [older]
    assert engine.get(1, b"000") is None and engine.get(1, b"060") == cell_of(2060, b"v2")
    engine = LsmEngine(disk, OPTIONS)
    engine.create(1)
    job = engine.full_compaction(1)
    assert job is not None and older.number not in job.input_numbers
    engine.install(job, run_job(disk, job))
    assert disk.exists(older.name) and [one.facts for one in LsmEngine(disk, OPTIONS).quarantined()] == [older]
    assert [damage.path for damage in verify(disk)] == [older.name]
    disk.remove(older.name)  # whoever moved it away finds the engine as it was
    disk.sync_dir("lsm")
    assert LsmEngine(disk, OPTIONS).quarantined()


def test_a_table_that_cannot_be_opened_is_told_and_is_in_no_view() -> None:
    """The engine opens; what the table held looks absent until the node has seen to it."""
    node = two_tables()
    newer, older = node.engine.tables(1)
    flip(node.disk, older.name, node.disk.size(older.name) - 4)
    engine = LsmEngine(node.disk, OPTIONS)
    engine.create(1)
    assert [one.facts for one in engine.damaged()] == [older] and engine.tables(1) == (newer, older)
    assert engine.get(1, b"060") == cell_of(2060, b"v2")
    set_aside(engine, node.disk)
    assert engine.tables(1) == (newer,)


@pytest.mark.parametrize("error", [errno.EIO, 0])
def test_a_read_that_fails_or_is_short_once_sets_nothing_aside(error: int) -> None:
    """An EIO is not damage; a block that came short is read again, and is whole."""
    node = two_tables()
    node.disk.fail("read_at", error, name=".sst", written=5)
    with pytest.raises(StorageError):
        node.engine.get(1, b"000")
    assert not node.engine.damaged()
    assert node.engine.get(1, b"000") == cell_of(1000, b"v1")


def test_a_key_that_is_gone_when_it_is_read_again_proves_nothing() -> None:
    """The error of the first read is the one to tell."""
    node = two_tables(AnyDisk(keys=Keys(RING)))
    flip(node.disk, node.engine.tables(1)[1].name, 30)
    node.disk.keys.replace(KeyRing({"another": bytes(16)}))
    with pytest.raises(Damaged):
        node.engine.get(1, b"000")
    assert not node.engine.damaged()


def test_an_error_while_it_is_read_again_proves_nothing() -> None:
    """Damage, and then a disk that does not answer: the next read finds it out."""
    node = two_tables()
    older = node.engine.tables(1)[1]
    flip(node.disk, older.name, 30)
    node.disk.fail("read_at", errno.EIO, name=".sst", after=1)
    with pytest.raises(Damaged):
        node.engine.get(1, b"000")
    assert not node.engine.damaged()
    with pytest.raises(Damaged):
        node.engine.get(1, b"000")
    assert [one.facts for one in node.engine.damaged()] == [older]


def test_a_power_cut_at_each_disk_call_of_the_setting_aside_leaves_the_old_or_the_new_manifest() -> None:
    """And the damaged file with either; before the rename the table is live, and found again."""
    seen = set()
    for calls in range(12):
        for seed in range(6):
            node = two_tables()
            older = node.engine.tables(1)[1]
            flip(node.disk, older.name, 30)
            with pytest.raises(Damaged):
                node.engine.get(1, b"000")
            node.disk.fail("append" if calls < 1 else ("sync", "rename", "sync_dir")[calls % 3], errno.EIO, name="lsm")
            try:
                set_aside(node.engine, node.disk)
            except StorageError:
                pass
            disk = node.disk.crash_clone(random.Random(seed))
            state = read_manifest(disk)
            live = {facts.number for facts in state.all_tables()}
            aside = {one.facts.number for one in state.quarantined}
            assert live | aside == {facts.number for facts in node.engine.tables(1)} | {older.number}
            assert not live & aside and disk.exists(older.name)
            seen.add(older.number in aside)
            engine = LsmEngine(disk, OPTIONS)
            engine.create(1)
            assert engine.get(1, b"149") == cell_of(2149, b"v2")
    assert seen == {True, False}


def test_every_flipped_bit_of_a_table_is_found_or_harmless_and_never_a_wrong_value() -> None:
    """Of a small table, each bit in turn: an engine opened on it, read whole, set aside, opened again.

    Takes some seconds: some ten thousand engines.
    """
    node = LittleNode(CrashDisk(), options=OPTIONS)
    model = {b"%02d" % key: cell_of(key + 1, b"v") for key in range(4)}
    node.put(1, model)
    node.flush()
    (facts,) = node.engine.tables(1)
    for offset in range(node.disk.size(facts.name)):
        for bit in range(8):
            disk = node.disk.copy()
            flip(disk, facts.name, offset, bit)
            engine = LsmEngine(disk, OPTIONS)
            engine.create(1)
            found = {}
            for key in model:
                try:
                    found[key] = engine.get(1, key)
                except Damaged:
                    continue
            is_found = bool(engine.damaged())
            assert is_found or found == model
            assert all(cell in (model[key], None) for key, cell in found.items())
            assert None not in found.values() or is_found  # then the claim goes before anybody is answered
            if is_found:
                set_aside(engine, disk)
                assert [one.facts for one in LsmEngine(disk, OPTIONS).quarantined()] == [facts]
