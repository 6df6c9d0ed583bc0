"""What each type takes, shows and refuses, and how large its cells are."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.cells.codec import encode
from geokv.core.cells.context import CausalContext, Dot
from geokv.core.cells.hll import estimate, register_and_rank
from geokv.core.cells.numbers import decode_number, encode_number
from geokv.core.cells.operation import AMOUNT_MAX, Operation
from geokv.core.cells.policies import CELL_TYPES, type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import check, is_taking, is_tombstone, update, value
from geokv.core.conflict import POLICIES, policy_of
from geokv.core.limits import CELL_BYTES_MAX, ELEMENT_BYTES_MAX, MAP_DEPTH_MAX, MIB
from geokv.core.origin import Origin
from geokv.errors import InvalidRequest, RecordError

NODES = [
    Origin(dc, f"{dc}-{number}", 0x0193_4567_89AB_CDEF + number).packed() for dc in ("eu", "us", "ap") for number in range(3)
]


def run(policy: str, *operations: Operation, origin: bytes = NODES[0]) -> CellState:
    state = CellState()
    for number, operation in enumerate(operations, start=1):
        state.join(update(type_of(policy), state, operation, Dot(origin, number)))
    return state


def shown(policy: str, *operations: Operation) -> object:
    return value(type_of(policy), run(policy, *operations))


def test_the_table_names_every_policy() -> None:
    """The sixteen of the design, lww among them with a form of its own."""
    assert set(POLICIES) == {"lww", *CELL_TYPES} and len(POLICIES) == 16
    assert policy_of("lww").kind is None and policy_of("lww").merge is max
    assert policy_of("map_rr").kind is type_of("map_rr")
    with pytest.raises(InvalidRequest, match="unknown policy 'or_set': choose one of counter_bounded, counter_pn"):
        policy_of("or_set")
    with pytest.raises(InvalidRequest, match="'lww' is no type of cell"):
        type_of("lww")


EMPTY = {
    "counter_bounded": 0,
    "counter_pn": 0,
    "flag_dw": False,
    "flag_ew": False,
    "hll": 0,
    "map_rr": {},
    "max": None,
    "min": None,
    "register_lww": None,
    "register_mv": [],
    "set_aw": frozenset(),
    "set_grow": frozenset(),
    "set_rw": frozenset(),
    "siblings": [],
    "sorted_set": [],
}


@pytest.mark.parametrize("name", sorted(CELL_TYPES))
def test_an_empty_cell_shows_nothing_of_its_type(name: str) -> None:
    """And is a tombstone."""
    assert value(type_of(name), CellState()) == EMPTY[name]
    assert is_tombstone(type_of(name), CellState())


def test_values_have_the_shapes_of_python() -> None:
    """One example per type."""
    assert shown("counter_pn", Operation("increment", (5,)), Operation("decrement", (7,))) == -2
    assert shown("register_mv", Operation("write", (b"a",)), Operation("write", (b"b",))) == [b"b"]
    assert shown("set_aw", Operation("add", (b"",)), Operation("add", (b"x",)), Operation("remove", (b"x",))) == {b""}
    assert shown("max", Operation("put", (2,)), Operation("put", (2.5,)), Operation("put", (-1,))) == 2.5
    assert shown("min", Operation("put", (2,)), Operation("put", (-0.5,))) == -0.5
    scores = [(b"b", 2), (b"a", 2), (b"c", 9), (b"c", 1.5)]
    assert shown("sorted_set", *[Operation("add", one) for one in scores]) == [(b"c", 1.5), (b"a", 2), (b"b", 2)]
    nested = ((b"stats", "map_rr"), (b"views", "counter_pn"))
    assert shown("map_rr", Operation("increment", (3,), nested)) == {nested[0]: {nested[1]: 3}}
    assert shown("flag_dw", Operation("enable")) is True
    assert shown("flag_ew", Operation("enable"), Operation("disable")) is False


REFUSED = [
    ("counter_pn", Operation("add", (b"x",)), "counter_pn has no operation 'add': it has decrement, delete, increment, reset"),
    ("counter_pn", Operation("increment", (1.5,)), "counter_pn.increment: 1.5 is not a whole number"),
    ("counter_pn", Operation("increment", (True,)), "True is not a whole number"),
    ("counter_pn", Operation("increment", (0,)), "0 is not from 1 to"),
    ("counter_pn", Operation("increment", (AMOUNT_MAX + 1,)), "is not from 1 to"),
    ("counter_pn", Operation("increment"), "takes 1 arguments, 0 were given"),
    ("counter_pn", Operation("increment", (1,), ((b"f", "counter_pn"),)), "a counter_pn has no fields"),
    ("counter_bounded", Operation("delete"), "a counter_bounded cannot be deleted"),
    ("counter_bounded", Operation("give", (b"nobody", 1)), "is no origin"),
    ("set_grow", Operation("remove", (b"x",)), "set_grow has no operation 'remove': it has add, delete"),
    ("set_aw", Operation("add", ("x",)), "set_aw.add: bytes are needed, not str"),
    ("set_aw", Operation("add", (b"x" * (ELEMENT_BYTES_MAX + 1),)), "1025 bytes, at most 1024"),
    ("max", Operation("put", (float("nan"),)), "nan has no place in an order"),
    ("max", Operation("put", (1 << 70,)), "more than 64 bits"),
    ("max", Operation("put", (b"3",)), "is not a number"),
    ("siblings", Operation("put", (b"x", -1)), "-1 is no deadline"),
    ("map_rr", Operation("increment", (1,), ((b"f", "set_aw"),)), "set_aw has no operation 'increment'"),
    ("map_rr", Operation("put", (b"x", 0), ((b"f", "siblings"),)), "cannot be of type 'siblings': choose one of counter_pn"),
    ("map_rr", Operation("increment", (1,), ((b"f", "counter_pn"), (b"g", "counter_pn"))), "a counter_pn has no fields"),
    ("map_rr", Operation("delete", (), ((b"f", "counter_pn"),)), "taken away with remove"),
    ("map_rr", Operation("remove", (b"x",), ((b"f", "map_rr"),) * (MAP_DEPTH_MAX + 1)), "a path of 9 fields: at most 8"),
]


@pytest.mark.parametrize(("policy", "operation", "message"), REFUSED)
def test_a_wrong_type_or_operation_is_a_clear_error(policy: str, operation: Operation, message: str) -> None:
    """Before anything is numbered, and it says what there is instead."""
    with pytest.raises(InvalidRequest) as caught:
        check(type_of(policy), operation)
    assert message in str(caught.value)


def test_what_takes_away_is_known_by_its_name() -> None:
    """These need what a read quorum holds, when they come without a context."""
    assert [one for one in ("add", "delete", "disable", "enable", "put", "remove", "reset") if is_taking(Operation(one))] == [
        "delete",
        "disable",
        "remove",
        "reset",
    ]


def test_a_context_says_nothing_to_what_adds() -> None:
    """An old context with an addition is no reason to wait, and leaves no second item."""
    state = run("set_aw", Operation("add", (b"x",)))
    unknown = CausalContext({NODES[3]: (0, 7)})
    state.join(update(type_of("set_aw"), state, Operation("add", (b"x",), context=unknown), Dot(NODES[0], 9)))
    assert state.count() == 1 and NODES[3] not in state.context.spans


def test_a_dot_that_does_not_follow_its_previous_one_is_refused() -> None:
    """Numbers of an origin rise."""
    state = run("set_aw", Operation("add", (b"x",)))
    with pytest.raises(InvalidRequest, match="cannot follow"):
        update(type_of("set_aw"), state, Operation("add", (b"y",)), Dot(NODES[0], 1))


def test_a_cell_that_grows_too_large_is_refused_where_it_is_updated() -> None:
    """With the number of bytes, and a replacement of the same size still fits."""
    state = run("register_mv", Operation("write", (b"a" * MIB,)))
    state.join(update(type_of("register_mv"), state, Operation("write", (b"b" * MIB,)), Dot(NODES[0], 2)))
    siblings = run("siblings", *[Operation("put", (bytes(MIB - 8), 0))] * (CELL_BYTES_MAX // MIB))
    with pytest.raises(InvalidRequest, match="spread it over several keys"):
        update(type_of("siblings"), siblings, Operation("put", (bytes(64), 0)), Dot(NODES[0], 9))


def test_a_counter_of_nine_actors_has_less_than_400_bytes() -> None:
    """Also when it has counted far, and has been reset."""
    kind = type_of("counter_pn")
    state = CellState()
    for number, origin in enumerate(NODES):
        state.join(update(kind, state, Operation("increment", (900_000 + number,)), Dot(origin, 40_000_000 + number)))
    assert len(encode(kind.tag, state)) < 300
    state.join(update(kind, state, Operation("reset"), Dot(NODES[0], 41_000_000)))
    for number, origin in enumerate(NODES):
        state.join(update(kind, state, Operation("increment", (10,)), Dot(origin, 50_000_000 + number)))
    assert value(kind, state) == 90 and len(encode(kind.tag, state)) < 400


@pytest.mark.parametrize("name", ["set_aw", "set_grow", "set_rw"])
def test_an_element_of_a_set_costs_less_than_24_bytes_besides_itself(name: str) -> None:
    """A hundred elements from three nodes whose numbers lie far apart."""
    kind = type_of(name)
    state = CellState()
    for number in range(100):
        origin = NODES[number % 3 * 3]
        state.join(update(kind, state, Operation("add", (b"element %02d" % number,)), Dot(origin, 1 + number * 1_000_003)))
    assert (len(encode(kind.tag, state)) - 100 * len(b"element 00")) / 100 < 10


@given(number=st.one_of(st.integers(-AMOUNT_MAX, AMOUNT_MAX), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_has_one_encoding(number: float) -> None:
    """Equal numbers have equal bytes, and come back equal."""
    encoded = encode_number(number)
    assert decode_number(encoded) == number
    assert encode_number(decode_number(encoded)) == encoded
    for damaged in (encoded[:-1], encoded + b"\0", b"x" + encoded[1:]):
        with pytest.raises(RecordError):
            decode_number(damaged)


@pytest.mark.parametrize("count", [0, 1, 10, 100, 1000, 5000, 50_000])
def test_a_sketch_estimates_within_three_standard_errors(count: int) -> None:
    """7 % at most, and exactly nothing for nothing."""
    ranks: dict[int, int] = {}
    for number in range(count):
        register, rank = register_and_rank(b"visitor %d" % number)
        ranks[register] = max(rank, ranks.get(register, 0))
    assert abs(estimate(list(ranks.values())) - count) <= 0.07 * count


def test_a_sketch_merges_without_counting_twice() -> None:
    """Two datacenters that saw the same visitors show their number, not the sum."""
    visitors = [Operation("add", (b"visitor %d" % number,)) for number in range(300)]
    state = run("hll", *visitors)
    state.join(run("hll", *visitors, origin=NODES[4]))
    assert value(type_of("hll"), state) == shown("hll", *visitors)


def test_a_register_of_a_sketch_keeps_the_rarest_element() -> None:
    """A later, more common one that falls into the same register does not lower it."""
    elements = sorted((register_and_rank(b"%d" % number), b"%d" % number) for number in range(4000))
    (_, common), (_, rare) = next(
        (one, other) for one, other in pairwise(elements) if one[0][0] == other[0][0] and one[0][1] < other[0][1]
    )
    state = run("hll", Operation("add", (rare,)), Operation("add", (common,)))
    assert [payload[2] for payload in state.items[NODES[0]].values()] == [register_and_rank(rare)[1]]
