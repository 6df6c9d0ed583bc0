"""Verifying names every damaged file, and finds nothing in a whole folder."""

import random

import pytest

from geokv.storage.lsm.facts import TableFacts
from geokv.storage.lsm.manifest import NAME, State, read_manifest, write_manifest
from geokv.storage.lsm.table_writer import write_tables
from geokv.storage.lsm.verify import verify
from tests.storage.lsm.little_node import SMALL, LittleNode, cell_of
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")


def _node() -> LittleNode:
    node = LittleNode(CrashDisk(), (1, 2))
    for version in range(1, 4):
        for namespace in (1, 2):
            node.put_unread(namespace, {b"%03d" % key: cell_of(version, bytes(40)) for key in range(0, 90, version)})
        node.flush()
        node.compact()
    return node


def test_a_whole_folder_has_no_damage() -> None:
    """Tables at several levels, Partial cells, two namespaces; and a folder with nothing in it."""
    assert not list(verify(_node().disk))
    disk = CrashDisk()
    disk.make_folder("lsm")
    assert not list(verify(disk))


def test_any_flipped_bit_is_named(samples) -> None:
    """One bit in any file: that file, and no other, with an offset at or before the bit, or its footer."""
    disk = _node().disk
    names = [f"lsm/{name}" for name in disk.list("lsm")]
    rng = random.Random(3)
    for _ in range(samples.of(test=60, check=300, soak=20_000)):
        name = rng.choice(names)
        offset = rng.randrange(disk.size(name))
        copy = disk.copy()
        copy.damage(name, offset, bytes([copy.read_at(name, offset, 1)[0] ^ 1 << rng.randrange(8)]))
        (damage,) = verify(copy)
        assert damage.path == name and (damage.offset <= offset or damage.offset == copy.size(name) - 60)
        assert name in damage.what


def test_one_damage_does_not_hide_another() -> None:
    """Two damaged tables and a missing one: all three are named, whole ones are not."""
    node = _node()
    doomed = [facts.name for facts in read_manifest(node.disk).all_tables()][:3]
    node.disk.damage(doomed[0], 3, b"\xff")
    node.disk.truncate(doomed[1], 50)
    node.disk.remove(doomed[2])
    assert sorted(damage.path for damage in verify(node.disk)) == sorted(doomed)


def test_what_a_writer_did_wrong_is_found() -> None:
    """Facts that the manifest has otherwise, and tables of one run that overlap, have whole checksums."""
    disk = CrashDisk()
    disk.make_folder("lsm")
    tables: list[TableFacts] = []
    for job in (1, 2):
        tables += write_tables(disk, job, 1, "lww", [([b"a", b"b"], [b"1", b"2"])], SMALL.tables)
    write_manifest(disk, State(3, tables={1: tuple(facts.at(1, 0) for facts in tables)}))
    assert ["overlap" in damage.what for damage in verify(disk)] == [True]
    other = write_tables(disk, 3, 1, "lww", [([b"a"], [b"1"])], SMALL.tables)[0]
    disk.rename(other.name, tables[0].name)
    write_manifest(disk, State(3, tables={1: tuple(facts.at(0, facts.number) for facts in tables)}))
    (damage,) = verify(disk)
    assert damage.path == tables[0].name and "under another's name" in damage.what
    disk.remove(NAME)
    (damage,) = verify(disk)
    assert damage.path == NAME
