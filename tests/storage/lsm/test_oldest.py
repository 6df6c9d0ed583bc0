"""How old what waits in a table is, where cells carry no time: what flush and compaction know of it, and what they do not."""

import pytest

from geokv.core.cells import codec
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update
from geokv.core.hlc import hlc_from_ms
from geokv.core.record import CELL, DELTA, NO_OPERATION, encode_record
from geokv.storage.lsm.collection import CollectionRule
from geokv.storage.lsm.facts import TableFacts
from geokv.storage.position import Position
from tests.storage.lsm.little_node import ORIGIN, SMALL, LittleNode, cell_of
from tests.storage.modes import CrashDisk

pytestmark = pytest.mark.usefixtures("mode")

SET = type_of("set_aw")


class Sets:
    """A node with a namespace of sets; each record is put with the HLC that is given."""

    def __init__(self) -> None:
        self.node = LittleNode(CrashDisk(), (), SMALL)
        self.node.engine.create(1, "set_aw")
        self.numbers = 0
        self.states: dict[bytes, CellState] = {}

    def _put(self, key: bytes, operation: Operation, hlc: int, kind: int = DELTA) -> bytes:
        """The delta."""
        self.numbers += 1
        held = self.states.setdefault(key, CellState())
        delta = update(SET, held, operation, Dot(ORIGIN, self.numbers))
        held.join(delta)
        cell = codec.encode(SET.tag, delta)
        self.log(key, cell, hlc, kind)
        return cell

    def log(self, key: bytes, cell: bytes, hlc: int, kind: int = DELTA) -> None:
        node, table = self.node, self.node.engine.table(1)
        raw = encode_record(kind, 0, 1, self.numbers, hlc, NO_OPERATION, ORIGIN, key, cell)
        segment, offset = node.log.append(raw)
        node.log.sync()
        node.log.prepare()
        node.end = Position(segment, offset + len(raw))
        table.merge_in(key, cell)
        table.came(hlc)

    def add(self, key: bytes, hlc: int) -> bytes:
        return self._put(key, Operation("add", (b"e",)), hlc)

    def remove(self, key: bytes, hlc: int, kind: int = DELTA) -> bytes:
        return self._put(key, Operation("remove", (b"e",)), hlc, kind)

    def flush(self) -> TableFacts:
        """The newest table."""
        self.node.flush()
        return self.node.engine.tables(1)[0]

    def compact(self, stable: int = 0) -> TableFacts:
        """The one table that is left; what has numbers up to `stable` was collected."""
        rule = (
            CollectionRule(4, {(ORIGIN, partition): stable for partition in range(4)}, 1 << 40, Position()) if stable else None
        )
        self.node.compact_all(rule=rule)
        (facts,) = self.node.engine.tables(1)
        return facts


def test_a_flush_takes_the_first_record_of_the_keys_that_wait() -> None:
    """What lives is not counted, however old its records are; of what waits the first record is."""
    sets = Sets()
    sets.add(b"lives", 10)
    sets.add(b"dead", 30)
    sets.remove(b"dead", 50)
    sets.remove(b"dead too", 40)
    facts = sets.flush()
    assert (facts.tombstones, facts.oldest) == (2, 30)
    sets.add(b"lives", 60)
    assert (sets.flush().tombstones, sets.node.engine.tables(1)[0].oldest) == (0, 0)


def test_a_compaction_takes_the_inputs_in_which_a_key_waited() -> None:
    """An old key that is removed later is as old as its removal; what was collected takes its age with it."""
    sets = Sets()
    sets.add(b"a", 10)
    sets.remove(b"first", 20)
    sets.flush()
    sets.remove(b"a", 70)
    sets.flush()
    assert sets.compact().oldest == 20
    assert sets.node.engine.held(1).oldest == 20
    gone = sets.numbers - 1  # but for the last removal
    facts = sets.compact(stable=gone)
    assert (facts.tombstones, facts.oldest) == (1, 20), "older than true: the table knows one time for all"
    sets.add(b"b", 80)
    sets.flush()
    sets.remove(b"b", 90)
    sets.flush()
    facts = sets.compact(stable=gone + 1)
    assert (facts.tombstones, facts.oldest) == (1, 90)
    sets.add(b"b", 95)
    sets.flush()
    assert (sets.compact().tombstones, sets.node.engine.held(1).oldest) == (0, 0)


def test_a_repaired_cell_makes_it_unknown_until_it_is_gone() -> None:
    """Its record has no time: the figure is left out rather than younger than true, also by later compactions."""
    sets = Sets()
    sets.remove(b"repaired", 0, CELL)
    assert not sets.node.engine.held(1).is_dated
    sets.flush()
    sets.remove(b"b", 50)
    sets.flush()
    held = sets.node.engine.held(1)
    assert (held.tombstones, held.is_dated, held.oldest_ms(1)) == (2, False, None)
    assert (sets.compact().oldest, sets.node.engine.held(1).is_dated) == (0, False)
    facts = sets.compact(stable=1)
    assert (facts.tombstones, facts.oldest) == (1, 0), "the table of both cannot tell which it was"
    sets.add(b"b", 60)
    sets.flush()
    sets.compact()
    assert sets.node.engine.held(1).is_dated


def test_a_key_that_waits_only_once_its_tables_are_merged_is_unknown() -> None:
    """Two deltas of which each takes what the other holds, in two tables: neither waits, both together do."""
    sets = Sets()
    one, other = CellState(), CellState()
    one.join(update(SET, one, Operation("add", (b"x",)), Dot(ORIGIN, 1)))
    other.join(update(SET, other, Operation("add", (b"y",)), Dot(ORIGIN, 2)))
    one.context.add(ORIGIN, 1, 2)
    other.context.add(ORIGIN, 0, 1)
    for state, hlc in ((one, 30), (other, 20)):
        sets.log(b"k", codec.encode(SET.tag, state), hlc)
        assert sets.flush().tombstones == 0
    facts = sets.compact()
    assert (facts.tombstones, facts.oldest) == (1, 0) and not sets.node.engine.held(1).is_dated


def test_a_memtable_begins_anew_each_time_nothing_in_it_waits() -> None:
    """Records that left nothing to collect make nothing old, as long as somebody has looked."""
    sets = Sets()
    sets.add(b"a", 10)
    assert sets.node.engine.held(1).oldest_ms(1) is None
    sets.remove(b"a", 1 << 20)
    sets.remove(b"b", 2 << 20)
    held = sets.node.engine.held(1)
    assert (held.in_memory, held.oldest_in_memory, held.is_dated) == (2, 1 << 20, True)
    sets.node.engine.table(1).freeze(sets.node.end)
    sets.remove(b"c", 3 << 20)
    assert sets.node.engine.held(1).oldest_in_memory == 1 << 20


@pytest.mark.parametrize("policy", ["lww", "set_aw"])
def test_a_memtable_too_large_to_look_through_is_as_old_as_its_first_record(policy: str) -> None:
    """A tombstone below thousands of newer cells is not seen, and yet what is told is not younger than it."""
    sets = Sets()
    living, dead = sets.add(b"k", 1), sets.remove(b"k", 1)
    if policy == "lww":
        living, dead = cell_of(hlc_from_ms(9), b"v"), cell_of(hlc_from_ms(5), None)
    table = sets.node.engine.create(2, policy)
    table.update({b"dead": dead})
    table.came(hlc_from_ms(5))
    table.update({b"k%d" % number: living for number in range(3_000)})
    table.update({b"last": dead if policy != "lww" else cell_of(hlc_from_ms(9), None)})
    table.came(hlc_from_ms(9))
    held = sets.node.engine.held(2)
    assert held.is_estimate and held.oldest_ms(1_000) == 5
