"""Operations and values on their way between client and node."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import CELL_TYPES, type_of
from geokv.core.cells.update import value
from geokv.core.cells.wire import OPERATION_BYTES_MAX, decode_operation, decode_value, encode_operation, encode_value
from geokv.core.origin import Origin
from geokv.errors import InvalidRequest, WireError
from tests.core.cells.harness import Tape, play, tape_of_seed
from tests.core.cells.operations import draw_operation

ORIGIN = Origin("eu", "n", 1).packed()


@pytest.mark.parametrize("name", sorted(CELL_TYPES))
def test_every_operation_and_value_comes_back(name: str) -> None:
    """As the harness draws them; a context is no part of it."""
    for seed in range(60):
        tape = tape_of_seed(seed)
        operation = draw_operation(name, Tape(tape), seed, [ORIGIN] * 3)
        assert decode_operation(encode_operation(operation)) == operation._replace(context=None)
        shown = value(type_of(name), play(name, tape[:60]).replicas[0].state)
        assert decode_value(name, encode_value(name, shown)) == shown


def test_a_count_beyond_64_bits_comes_back() -> None:
    """A counter's sum over many origins has no bound of 64 bits."""
    assert decode_value("counter_pn", encode_value("counter_pn", -(1 << 100))) == -(1 << 100)


@given(noise=st.binary(max_size=60))
def test_noise_is_refused_as_an_operation(noise: bytes) -> None:
    """Bytes from anywhere either are an operation or end in InvalidRequest."""
    try:
        operation = decode_operation(noise)
    except InvalidRequest:
        return
    assert isinstance(operation.name, str)


@pytest.mark.parametrize(
    "parts",
    [
        [b"add", [b"x"], []],
        ["add", b"x", []],
        ["add", [["x"]], []],
        ["add", [b"x"], [["f", "set_aw"]]],
        ["add", [b"x"], [[b"f"]]],
        ["add", [b"x"], 5],
        ["add", [b"x"], [], b"token"],
        ["add", [b"x"]],
    ],
)
def test_parts_of_other_types_are_refused(parts: list[object]) -> None:
    """Each part is what the page says, or the whole is no operation."""
    with pytest.raises(InvalidRequest, match="not an operation"):
        decode_operation(msgpack.packb(parts))


def test_a_number_that_is_too_long_to_travel_is_refused_before_it_does() -> None:
    """In the words of what was asked, not of the encoding."""
    with pytest.raises(InvalidRequest, match="increment: a whole number has 64 bits at most"):
        encode_operation(Operation("increment", (1 << 70,)))


def test_an_operation_beyond_the_limit_and_a_value_of_another_type_are_refused() -> None:
    """By their size, and by their shape."""
    with pytest.raises(InvalidRequest, match="at most"):
        decode_operation(bytes(OPERATION_BYTES_MAX + 1))
    with pytest.raises(WireError, match="not a value of a counter_pn"):
        decode_value("counter_pn", encode_value("register_mv", [b"x"]))
    with pytest.raises(WireError, match="not a value of a map_rr"):
        decode_value("map_rr", b"\xc1")
