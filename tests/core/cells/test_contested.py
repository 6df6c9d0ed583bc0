"""Which updates met: what the journal of conflicts will note."""

import pytest

from geokv.core.cells.contested import contested, met_by
from geokv.core.cells.context import Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update, value
from geokv.core.origin import Origin

EU = Origin("eu", "n", 1).packed()
US = Origin("us", "n", 1).packed()


def meet(policy: str, mine: Operation, theirs: Operation) -> CellState:
    """Two operations that did not see each other."""
    state = update(type_of(policy), CellState(), mine, Dot(EU, 1), stamp=5)
    state.join(update(type_of(policy), CellState(), theirs, Dot(US, 1), stamp=7))
    return state


def test_concurrent_writes_of_a_register_are_contested_until_a_write_saw_both() -> None:
    """The one that arrives last has met the other, whichever is shown."""
    kind = type_of("register_lww")
    state = meet("register_lww", Operation("write", (b"mine",)), Operation("write", (b"theirs",)))
    assert [entry.payload[8:] for entry in contested(kind, state)[b""]] == [b"mine", b"theirs"]
    assert [entry.origin for entry in met_by(kind, state, Dot(US, 1))] == [EU]
    assert met_by(kind, state, Dot(US, 9)) == []
    state.join(update(kind, state, Operation("write", (b"both",)), Dot(EU, 2)))
    assert contested(kind, state) == {} and met_by(kind, state, Dot(US, 1)) == []


def test_a_removal_that_wins_is_contested_with_the_addition_that_it_beat() -> None:
    """By element; the same element added twice is no conflict."""
    state = meet("set_rw", Operation("add", (b"x",)), Operation("remove", (b"x",)))
    assert set(contested(type_of("set_rw"), state)) == {b"x"}
    assert contested(type_of("set_rw"), meet("set_rw", Operation("add", (b"x",)), Operation("add", (b"x",)))) == {}
    assert contested(type_of("set_aw"), meet("set_aw", Operation("add", (b"x",)), Operation("add", (b"x",)))) == {}


def test_counts_are_never_contested_and_scores_are_by_member() -> None:
    """Where both count, nothing is decided."""
    assert (
        contested(type_of("counter_pn"), meet("counter_pn", Operation("increment", (1,)), Operation("increment", (2,)))) == {}
    )
    assert contested(type_of("max"), meet("max", Operation("put", (1,)), Operation("put", (2,)))) == {}
    assert contested(type_of("hll"), meet("hll", Operation("add", (b"a",)), Operation("add", (b"b",)))) == {}
    scores = meet("sorted_set", Operation("add", (b"m", 1)), Operation("add", (b"m", 2)))
    assert set(contested(type_of("sorted_set"), scores)) == {b"m"}
    assert contested(type_of("sorted_set"), meet("sorted_set", Operation("add", (b"m", 1)), Operation("add", (b"n", 2)))) == {}


@pytest.mark.parametrize(
    ("policy", "mine", "theirs"),
    [
        ("set_rw", Operation("add", (b"x",)), Operation("remove", (b"x",))),
        ("flag_dw", Operation("enable"), Operation("disable")),
        ("sorted_set", Operation("add", (b"m", 1)), Operation("add", (b"m", 2))),
        ("register_lww", Operation("write", (b"a",)), Operation("write", (b"b",))),
        ("map_rr", *[Operation("write", (v,), ((b"m", "map_rr"), (b"f", "register_mv"))) for v in (b"a", b"b")]),
    ],
)
def test_an_item_tells_the_operation_that_wrote_it(policy: str, mine: Operation, theirs: Operation) -> None:
    """Done again after both met, it stands: so losers are brought back."""
    kind, state = type_of(policy), meet(policy, mine, theirs)
    ((loser, winner),) = contested(kind, state).values()
    assert (kind.written(loser.payload), kind.written(winner.payload)) == (mine, theirs)
    state.join(update(kind, state, kind.written(loser.payload), Dot(EU, 2), stamp=9))
    assert value(kind, state) == value(kind, update(kind, CellState(), mine, Dot(EU, 1)))


def test_fields_of_a_map_are_contested_each_for_itself() -> None:
    """With the path in the place."""
    field = ((b"name", "register_mv"),)
    state = meet("map_rr", Operation("write", (b"a",), field), Operation("write", (b"b",), field))
    assert len(contested(type_of("map_rr"), state)) == 1
    other = ((b"nick", "register_mv"),)
    state = meet("map_rr", Operation("write", (b"a",), field), Operation("write", (b"b",), other))
    assert contested(type_of("map_rr"), state) == {}
    count = ((b"n", "counter_pn"),)
    state = meet("map_rr", Operation("increment", (1,), count), Operation("increment", (2,), count))
    assert contested(type_of("map_rr"), state) == {}
