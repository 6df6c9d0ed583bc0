"""Streams: the frontier of a replica, whatever the order in which numbers come, are synced and are closed."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from geokv.core.origin import Origin
from geokv.protocol.streams import BEYOND_MAX, Stream, StreamTable

ORIGIN = Origin("dc1", "n1", 7).packed()


def a_stream() -> Stream:
    return Stream(1, 0, ORIGIN)


def land(stream: Stream, *numbers: int) -> None:
    for at, number in enumerate(numbers):
        assert stream.take(number)
        stream.synced(number, 1, 100 * at, 10)


@given(st.sets(st.integers(1, 40)), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_longest_run_from_one(numbers: set[int], rng: random.Random) -> None:
    """Frontier and received end at the last number before the first gap, in whatever order and however often numbers come."""
    stream = a_stream()
    arriving = [number for number in numbers for _ in range(rng.choice((1, 2)))]
    rng.shuffle(arriving)
    on_disk: list[int] = []
    for number in arriving:
        if stream.take(number):
            on_disk.append(number)
        if rng.random() < 0.5:
            while on_disk:
                stream.synced(on_disk.pop(0), 1, number, 10)
        assert stream.frontier <= stream.received
    for number in on_disk:
        stream.synced(number, 1, number, 10)
    expected = next(n for n in range(1, 42) if n not in numbers) - 1
    assert stream.frontier == stream.received == expected
    assert stream.synced_beyond == stream.beyond == {n for n in numbers if n > expected}
    assert all(stream.has(number) for number in numbers)


@given(st.sets(st.integers(1, 30), min_size=1), st.data())
def test_a_closing_at_any_moment_ends_at_the_last_number(present: set[int], data: st.DataObject) -> None:
    """Whenever the closing comes, a replica that has all that exists covers the stream to its end, and no more."""
    last = max(present)
    voids = [n for n in range(1, last) if n not in present]
    arriving = data.draw(st.permutations([*sorted(present), *voids, last + 1, last + 2]))
    is_late = data.draw(st.integers(0, len(arriving)))
    stream = a_stream()
    for at, number in enumerate(arriving):
        if at == is_late:
            stream.close(last, voids)
        if number not in present and at < is_late:
            continue  # it exists nowhere before the closing, or the closing would say otherwise
        if stream.take(number):
            assert number in present
            stream.synced(number, 1, at, 10)
    if stream.last is None:
        stream.close(last, voids)
    assert stream.frontier == stream.received == last
    assert stream.is_complete
    assert not stream.take(last + 1)


def test_a_number_behind_the_last_of_a_closed_stream_is_not_taken() -> None:
    """A late record of a closed run, right behind the last number, is refused: nobody else will ever have it."""
    stream = a_stream()
    land(stream, 1, 2)
    stream.close(2, ())
    assert not stream.take(3)
    assert stream.received == stream.frontier == 2


def test_a_void_number_is_not_taken() -> None:
    """A number that was agreed to exist nowhere is not taken in, and what follows it counts."""
    stream = a_stream()
    land(stream, 1, 3)
    stream.close(4, [2])
    assert stream.frontier == 3
    assert not stream.take(2)
    land(stream, 4)
    assert stream.is_complete


def test_numbers_ahead_of_a_gap_are_bounded() -> None:
    """Beyond the bound further numbers are refused; they come again from a log."""
    stream = a_stream()
    for number in range(2, BEYOND_MAX + 2):
        assert stream.take(number)
    assert not stream.take(BEYOND_MAX + 2)
    assert stream.take(1)
    assert stream.received == BEYOND_MAX + 1


def test_a_number_absurdly_far_ahead_is_refused() -> None:
    """One record with a wild number cannot make the index of places as long as that number."""
    stream = a_stream()
    assert not stream.take(1 << 40)
    assert not stream.beyond


@given(st.permutations(list(range(1, 13))))
def test_every_synced_number_is_found_in_the_log(order: list[int]) -> None:
    """The index of places finds each record, whatever order they were written in."""
    stream = a_stream()
    for number in order:
        assert stream.take(number)
        stream.synced(number, 3, number * 100, number)
    assert [stream.place(number) for number in range(1, 13)] == [(3, n * 100, n) for n in range(1, 13)]
    assert stream.place(0) is None
    assert stream.place(13) is None


def test_places_in_removed_segments_are_forgotten_whatever_their_order() -> None:
    """After a trim no place points into a removed segment, also where a later number was written first."""
    stream = a_stream()
    assert stream.take(1)
    stream.synced(1, 1, 0, 10)
    assert stream.take(3)
    stream.synced(3, 1, 50, 10)
    assert stream.take(2)
    stream.synced(2, 2, 0, 10)
    stream.drop_places(2)
    assert [stream.place(n) for n in (1, 2, 3)] == [None, (2, 0, 10), None]
    stream.synced(4, 2, 90, 10)
    assert stream.place(4) == (2, 90, 10)


def test_what_is_missing_is_named_in_order_and_bounded() -> None:
    """`missing` lists what is not synced, leaves out void numbers and stops at its limit."""
    stream = a_stream()
    land(stream, 1, 4)
    assert stream.missing(6, 10) == [2, 3, 5, 6]
    assert stream.missing(6, 2) == [2, 3]
    stream.close(6, [3])
    assert stream.missing(6, 10) == [2, 5, 6]


def test_a_table_makes_a_stream_once() -> None:
    """The stream of one name is one object until it is dropped."""
    table = StreamTable(1, 4)
    stream = table.make(2, ORIGIN)
    assert table.make(2, ORIGIN) is stream
    assert list(table) == [stream]
    table.drop(2, ORIGIN)
    assert table.get(2, ORIGIN) is None
