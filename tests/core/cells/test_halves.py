"""The bytes of cells of several policies, and what is found in them."""

from __future__ import annotations

import random

import pytest

from geokv.core import cell as lww
from geokv.core.cells import changed, codec, halves
from geokv.core.cells.context import CausalContext, Dot
from geokv.core.cells.operation import Operation
from geokv.core.cells.policies import type_of
from geokv.core.cells.state import CellState
from geokv.core.cells.update import update, value
from geokv.core.conflict import POLICIES, policy_after, policy_of
from geokv.core.namespace import Catalog, NamespaceDefinition, decode, define
from geokv.core.origin import Origin
from geokv.errors import InvalidRequest, RecordError

EU = Origin("eu-west", "eu-1", 0x0123456789ABCDEF).packed()
US = Origin("us-east", "us-1", 0x0123456789ABCDEF).packed()
OLD = lww.encode_lww(1_700_000_000_000 << 16, EU, 7, False, 0, 0, b"old")


def _put(held: changed.ChangedState, origin: bytes, number: int, text: bytes, seen: bool) -> bytes:
    operation = Operation("put", (text, 0), context=held.context.copy() if seen else None)
    return held.encoded_delta(update(type_of("siblings"), held, operation, Dot(origin, number)))


def test_the_bytes_of_both_halves_stay_as_they_are() -> None:
    """As on the page of the format: an lww value beside a sibling, and what is left of it once a put has seen it."""
    kind = type_of("siblings")
    beside = halves.merge(OLD, _put(changed.decode(kind, OLD), US, 5, b"new", seen=False))
    assert beside.hex() == BESIDE
    assert value(kind, changed.decode(kind, beside)) == [b"old", b"new"]
    delta = _put(changed.decode(kind, OLD), US, 5, b"new", seen=True)
    assert delta.hex() == ENDED
    assert halves.merge(OLD, delta) == delta == halves.merge(delta, OLD)
    assert value(kind, changed.decode(kind, delta)) == [b"new"]


BESIDE = (
    "11015f3a01018bcfe56800000065752d776573740065752d31000123456789abcdef0000000000000007000000000000"
    "00000000000000000000006f6c6401001575732d656173740075732d31000123456789abcdef0100050100000502006e"
    "6577"
)
ENDED = (
    "1101773701018bcfe56800000065752d776573740065752d31000123456789abcdef0000000000000007050000000000"
    "000000000000000000000002001565752d776573740065752d31000123456789abcdef01060100001575732d65617374"
    "0075732d31000123456789abcdef0100050100000502006e6577"
)


def test_what_is_of_one_type_stays_a_plain_cell() -> None:
    """Keys that are made after the change, and those that nobody has written since, cost nothing more."""
    fresh = _put(changed.ChangedState(type_of("siblings")), US, 5, b"new", seen=False)
    assert codec.tags(fresh) == {2} and halves.fold(fresh) == fresh
    assert halves.fold(OLD) == OLD == halves.merge(OLD, OLD)
    assert halves.fold(halves.behind(OLD, OLD)) == OLD


def test_an_ended_lww_cell_sorts_just_above_itself_and_below_what_is_later() -> None:
    """With a deadline too; and whatever writes next is above it."""
    for deadline_ms in (0, 1 << 40):
        one = lww.encode_lww(100, EU, 7, False, deadline_ms, 0, b"\xff" * 9)
        gone = lww.ended(one)
        assert one < gone and lww.live_value(gone, 0) is None and lww.ended(gone) == gone
        assert gone < lww.encode_lww(100, EU, 8, False, 0, 0, b"") < lww.encode_lww(101, EU, 1, False, 0, 0, b"")
        assert gone > lww.encode_lww(99, US, 9, True, 0, 0, b"")


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_damaged_halves_are_refused(at: int) -> None:
    """A byte that is cut off or added is a RecordError, never another value in silence."""
    kind = type_of("siblings")
    cell = halves.merge(OLD, _put(changed.decode(kind, OLD), US, 5, b"new", seen=False))
    with pytest.raises(RecordError):
        halves.decode(cell[:at] if at else cell + b"\0")


def test_every_other_change_is_refused_with_a_reason() -> None:
    """Of all pairs of policies those of one family alone can be changed, and each refusal says why."""
    definition = define(5, "x", {}, ["eu"], 10, "eu")
    for old in POLICIES:
        for new in set(POLICIES) - {old, *changed.COMPATIBLE.get(old, ())}:
            with pytest.raises(InvalidRequest, match=f"{old} cannot be changed to {new}: .+ It can be changed to: "):
                NamespaceDefinition(6, "y", policy=old).altered({"policy": new}, 20, "eu")
        for new in changed.COMPATIBLE.get(old, ()):
            after = NamespaceDefinition(6, "y", policy=old).altered({"policy": new}, 20, "eu")
            assert (after.policy, after.earlier, after.version) == (new, (old,), 2)
            assert decode(after.encode()) == after
    assert definition.altered({"policy": "lww"}, 20, "eu").earlier == ()


def test_a_setting_that_is_altered_elsewhere_does_not_undo_a_change_of_policy() -> None:
    """Of two definitions the later stands, but of the policy the later change; all earlier policies are remembered."""
    born = define(5, "x", {}, ["eu", "us"], 10, "eu")
    one = born.altered({"policy": "register_mv"}, 20, "eu")
    other = born.altered({"policy": "siblings"}, 30, "us")
    third = born.altered({"ttl_ms": 7}, 40, "us")
    for order in ((one, other, third), (third, other, one), (other, third, one, other)):
        held = Catalog([born, *order]).by_id[5]
        assert (held.policy, held.earlier, held.ttl_ms) == ("siblings", ("lww", "register_mv"), 7)
    assert Catalog([born]).merged(one).merged(other).merged(third) == Catalog([third]).merged(other).merged(one)


def test_a_cell_of_a_policy_that_is_not_known_to_be_there_is_not_held() -> None:
    """Before the change is heard of, cells of the new policy, and of both, wait; after it the old ones are welcome."""
    kind = type_of("siblings")
    fresh = _put(changed.ChangedState(kind), US, 5, b"new", seen=False)
    both = halves.merge(OLD, fresh)
    assert [policy_of("lww").holds(cell) for cell in (OLD, fresh, both)] == [True, False, False]
    assert [policy_after("siblings", ("lww",)).holds(cell) for cell in (OLD, fresh, both)] == [True, True, True]
    assert [policy_of("siblings").holds(cell) for cell in (OLD, fresh, both)] == [False, True, False]


def test_what_will_be_over_at_a_deadline_is_counted_for_it() -> None:
    """An lww value that expires beside dots that have gone: what a collection would take is what is said to wait for it."""
    kind, policy = type_of("siblings"), policy_after("siblings", ("lww",))
    expiring = lww.encode_lww(100, EU, 7, False, 1000, 0, b"old")
    beside = halves.merge(expiring, _put(changed.decode(kind, expiring), US, 5, b"new", seen=False))
    held = changed.decode(kind, beside)
    context = CausalContext()
    context.add(US, 4, 5)
    delete = held.encoded_delta(update(kind, held, Operation("delete", context=context), Dot(US, 6)))
    alone = halves.merge(beside, delete)
    assert [policy.waits(cell) for cell in (expiring, beside, alone)] == [(False, 1000), (False, 0), (False, 1000)]
    assert policy.waits(policy.append(beside, delete)) == (False, 1000)
    for clock_ms, over in ((1000, [False, False, False]), (1001, [True, False, True])):
        assert [policy.is_over(cell, lambda dot: True, clock_ms) for cell in (expiring, beside, alone)] == over
    assert policy.waits(halves.merge(alone, lww.encode_lww(101, EU, 8, True, 0, 100, b""))) == (True, 0)


def test_the_index_of_a_kept_state_finds_what_a_scan_finds() -> None:
    """After any joins: deltas, removals, whole states, an element that two have added."""
    kind, rng = type_of("set_aw"), random.Random(5)
    states = [CellState(), CellState()]
    for number in range(1, 400):
        at = rng.randrange(2)
        element = b"%d" % rng.randrange(30)
        operation = Operation(rng.choice(("add", "add", "remove")), (element,))
        states[at].join(update(kind, states[at], operation, Dot((EU, US)[at], number)))
        if rng.random() < 0.1:
            states[at].join(states[1 - at].copy())
        for state in states:
            sought = b"%d" % rng.randrange(30)
            scanned = {(o, n) for o, dots in state.items.items() for n, payload in dots.items() if payload == sought}
            assert set(state.dots_of(sought)) == scanned
