"""The bytes of cells: canonical, exact, and refused when they are anything else."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.core.cells import codec
from geokv.core.cells.codec import append, decode, decode_token, encode, encode_token, fold, merge
from geokv.core.cells.context import NUMBER_MAX, CausalContext, Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import CELL_TYPES, type_of
from geokv.core.cells.state import CellState, Totals
from geokv.core.cells.update import is_tombstone, update, value
from geokv.core.cells.varint import append_varint, read_varint, unzigzag, zigzag
from geokv.core.conflict import policy_of
from geokv.core.limits import APPENDED_BYTES_MIN
from geokv.core.origin import Origin
from geokv.errors import InvalidRequest, RecordError
from tests.core.cells.harness import play, tape_of_seed

TAG = type_of("set_aw").tag
ORIGIN = Origin("eu-west", "eu-1", 0x0123456789ABCDEF).packed()
OTHER = Origin("eu-west", "eu-2", 0x0123456789ABCDEF).packed()

# The examples of docs/formats/cells.md: cells of format 1 read like this for ever.
GOLDEN_SET = bytes.fromhex(
    "08014302001565752d776573740065752d31000123456789abcdef01003901001575732d656173740075732d31000123"
    "456789abcdf001000501002d0004036567677372756d"
)
GOLDEN_COUNTER = bytes.fromhex(
    "0a014402001565752d776573740065752d31000123456789abcdef01000901001575732d656173740075732d31000123"
    "456789abcdf00100030010000407b10200010007050000"
)
GOLDEN_TOKEN = bytes.fromhex(
    "c70102001565752d776573740065752d31000123456789abcdef010039001575732d656173740075732d31000123456789abcdf002000c1c01"
)


_NAMES = st.sampled_from(["a", "ab", "b", "eu-west", "eu"])
_ORIGINS = st.builds(Origin, _NAMES, _NAMES, st.sampled_from([0, 1, 255, 256, 2**64 - 1])).map(Origin.packed)
_NUMBERS = st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 65_535, 65_536, 2**32, 2**62, NUMBER_MAX]))


@st.composite
def _states(draw: st.DrawFn) -> CellState:
    """Any state that keeps the invariants: gaps, wide numbers, empty and long payloads, marks."""
    state = CellState()
    for origin in draw(st.lists(_ORIGINS, max_size=4, unique=True)):
        for number in draw(st.lists(_NUMBERS, min_size=1, max_size=5, unique=True)):
            state.context.add(origin, number - draw(st.integers(1, min(number, 9))), number)
            if draw(st.booleans()):
                state.items.setdefault(origin, {})[number] = draw(st.binary(max_size=4)) * draw(st.sampled_from([1, 1, 90]))
        if draw(st.booleans()):
            paths = draw(st.lists(st.binary(max_size=3), min_size=1, max_size=3, unique=True))
            state.marks[origin] = {path: Totals(draw(_NUMBERS), draw(_NUMBERS), draw(st.integers(0, 2**127))) for path in paths}
    return state


@given(state=_states())
def test_decoding_gives_back_what_was_encoded(state: CellState) -> None:
    """And encoding that again gives the same bytes."""
    cell = encode(TAG, state)
    assert decode(TAG, cell) == state
    assert encode(TAG, decode(TAG, cell)) == cell == fold(TAG, cell)
    assert decode_token(encode_token(state.context)) == state.context


@given(states=st.lists(_states(), min_size=3, max_size=3))
def test_merging_bytes_obeys_the_laws(states: list[CellState]) -> None:
    """For any cells, also such as no coordinator makes: the three laws, byte for byte."""
    a, b, c = (encode(TAG, state) for state in states)
    assert merge(TAG, a, b) == merge(TAG, b, a)
    assert merge(TAG, merge(TAG, a, b), c) == merge(TAG, a, merge(TAG, b, c))
    assert merge(TAG, a, a) == a and merge(TAG, merge(TAG, a, b), b) == merge(TAG, a, b)
    assert fold(TAG, append(TAG, append(TAG, a, b), c)) == merge(TAG, merge(TAG, a, b), c)


@given(state=_states(), position=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_exactly(state: CellState, position: int, byte: int) -> None:
    """Damage ends in a RecordError, or in another cell whose canonical bytes these are: never in anything else."""
    cell = bytearray(encode(TAG, state))
    cell[position % len(cell)] = byte
    _read_or_refuse(bytes(cell))
    _read_or_refuse(bytes(cell[: position % len(cell)]))


@given(noise=st.binary(max_size=80))
def test_noise_is_refused_or_read_exactly(noise: bytes) -> None:
    """Bytes from nowhere, bare and behind a valid head."""
    _read_or_refuse(noise)
    head = bytearray((TAG, codec.FORMAT))
    append_varint(head, len(noise))
    _read_or_refuse(bytes(head) + noise)
    try:
        token = decode_token(bytes((codec.TOKEN_TAG, codec.FORMAT)) + noise)
    except InvalidRequest:
        return
    assert encode_token(token)[2:] == noise


def _read_or_refuse(cell: bytes) -> None:
    try:
        state = decode(TAG, cell)
        frames = fold(TAG, cell)
    except RecordError:
        return
    assert encode(TAG, state) == frames


@pytest.mark.parametrize("name", sorted(CELL_TYPES))
def test_damaged_payloads_of_every_type_are_refused_by_name(name: str) -> None:
    """A cell whose frame is right and whose payload is not: a value or a RecordError, nothing else."""
    kind = type_of(name)
    rng = random.Random(name)
    for seed in range(40):
        for delta in play(name, tape_of_seed(seed)).deltas[:6]:
            state = decode(kind.tag, delta)
            for dots in state.items.values():
                for number, payload in dots.items():
                    dots[number] = _damaged(rng, payload)
            try:
                value(kind, state)
                is_tombstone(kind, state)
                update(kind, state, Operation("delete"), Dot(ORIGIN, 99))
            except (RecordError, InvalidRequest):
                pass


def _damaged(rng: random.Random, payload: bytes) -> bytes:
    damaged = bytearray(payload)
    for _ in range(rng.randrange(1, 3)):
        if damaged:
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged[: rng.randrange(len(damaged) + 1)]) if rng.random() < 0.5 else bytes(damaged)


def test_the_examples_of_the_format_page_read_like_this_for_ever() -> None:
    """Committed bytes of format 1."""
    a, b = ORIGIN, Origin("us-east", "us-1", 0x0123456789ABCDF0).packed()
    cart = decode(TAG, GOLDEN_SET)
    assert cart.context.spans == {a: (0, 57), b: (0, 5)}
    assert cart.items == {a: {12: b"eggs"}, b: {5: b"rum"}} and encode(TAG, cart) == GOLDEN_SET
    counter = type_of("counter_pn")
    likes = decode(counter.tag, GOLDEN_COUNTER)
    assert likes.items == {a: {9: b"\x07\xb1\x02\x00"}} and likes.marks == {a: {b"": Totals(7, 5, 0)}}
    assert value(counter, likes) == 300 and encode(counter.tag, likes) == GOLDEN_COUNTER
    assert decode_token(GOLDEN_TOKEN).spans == {a: (0, 57), b: (0, 12, 40, 41)}


def test_another_type_format_or_length_is_named() -> None:
    """The message says what stands there and what was expected."""
    cell = encode(TAG, CellState())
    with pytest.raises(RecordError, match="format 2, this version reads format 1"):
        decode(TAG, bytes((TAG, 2)) + cell[2:])
    with pytest.raises(RecordError, match=f"type {TAG}, where the namespace's policy has 10"):
        decode(10, cell)
    with pytest.raises(RecordError, match="no frame"):
        decode(TAG, b"")
    with pytest.raises(RecordError, match="announced"):
        decode(TAG, cell[:-1])
    with pytest.raises(RecordError, match="type 9"):
        merge(TAG, cell, bytes((9,)) + cell[1:])


def test_announced_counts_are_checked_before_anything_is_made_of_them() -> None:
    """A few bytes that promise 2^60 items cost nothing."""
    for count in (1 << 20, 1 << 60):
        body = bytearray(b"\1\0")
        body.append(len(ORIGIN))
        body += ORIGIN + b"\1\0\5"
        append_varint(body, count)
        body.append(0)
        frame = bytearray((TAG, 1))
        append_varint(frame, len(body))
        with pytest.raises(RecordError, match="items in"):
            decode(TAG, bytes(frame + body))


def test_appended_deltas_are_folded_once_they_outgrow_the_cell() -> None:
    """A stored cell is never more than twice what it need be, or the least amount, and each delta is still in it."""
    kind = type_of("set_aw")
    state, stored, lengths = CellState(), b"", []
    for number in range(1, 400):
        delta = update(kind, state, Operation("add", (b"%d" % (number % 7),)), Dot(ORIGIN, number))
        state.join(delta)
        encoded = encode(TAG, delta)
        stored = append(TAG, stored, encoded) if stored else encoded
        lengths.append(len(stored))
        assert len(stored) <= APPENDED_BYTES_MIN + 2 * len(encode(TAG, state)) + len(encoded)
    assert any(later < earlier for earlier, later in pairwise(lengths))
    assert fold(TAG, stored) == encode(TAG, state)


def test_append_decodes_nothing_and_merge_of_a_policy_is_folded() -> None:
    """The table's append leaves frames as they are; its merge and fold give the canonical cell."""
    policy = policy_of("set_aw")
    kind = type_of("set_aw")
    one = encode(TAG, update(kind, CellState(), Operation("add", (b"x",)), Dot(ORIGIN, 1)))
    two = encode(TAG, update(kind, CellState(), Operation("add", (b"y",)), Dot(OTHER, 1)))
    assert policy.append(one, two) == one + two
    assert policy.fold(one + two) == policy.merge(one, two) == policy.merge(two, one) != one + two


def test_a_long_token_is_refused() -> None:
    """The bound on what a client may hand back."""
    with pytest.raises(InvalidRequest, match="at most"):
        decode_token(bytes(codec.TOKEN_BYTES_MAX + 1))


def test_a_token_is_no_cell_and_a_cell_no_token() -> None:
    """Neither is taken for the other."""
    token = encode_token(CausalContext({ORIGIN: (0, 5)}))
    with pytest.raises(RecordError):
        decode(TAG, token)
    with pytest.raises(InvalidRequest, match="not a context"):
        decode_token(encode(TAG, CellState()))


@given(number=st.integers(0, 2**130))
def test_numbers_have_one_form(number: int) -> None:
    """What is written is read; a longer form of it is refused."""
    out = bytearray()
    append_varint(out, number)
    assert read_varint(bytes(out), 0) == (number, len(out))
    out[-1] |= 128
    with pytest.raises(RecordError):
        read_varint(bytes(out), 0)
    with pytest.raises(RecordError):
        read_varint(bytes(out) + b"\0", 0)
    assert unzigzag(zigzag(number)) == number and unzigzag(zigzag(-number)) == -number


@given(
    after=st.integers(0, 1 << 40),
    length=st.integers(1, 1 << 40),
    payload=st.binary(max_size=300),
    name=st.text("abc-", min_size=1, max_size=31),
)
def test_the_usual_delta_has_the_same_bytes_by_the_short_way(after: int, length: int, payload: bytes, name: str) -> None:
    """One item of one origin is written and read without the columns; beside a second origin it takes the long way."""
    origin, other = Origin(name, "n", 7).packed(), Origin("z", "z", 9).packed()
    alone, both = CellState(), CellState()
    for state in (alone, both):
        state.context.add(origin, after, after + length)
        state.items[origin] = {after + length: payload}
    both.context.add(other, 0, 3)
    cell = encode(8, alone)
    assert decode(8, cell) == alone
    taken = decode(8, encode(8, both))
    del taken.context.spans[other]
    assert taken == alone and encode(8, taken) == cell
    body = bytearray()
    codec._append_context(body, alone.context, alone.items)
    codec._append_items(body, alone)
    head = bytearray((8, codec.FORMAT))
    codec.append_varint(head, len(body))
    assert cell == bytes(head + body)
