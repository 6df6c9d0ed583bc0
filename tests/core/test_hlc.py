"""The hybrid logical clock: it only rises, stays near the wall clock, and is not dragged away."""

from hypothesis import given
from hypothesis import strategies as st

from geokv.core.hlc import COUNTER_BITS, HybridClock, hlc_from_ms, hlc_ms

_WALLS = st.integers(0, 10_000)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("stamp"), _WALLS, st.just(0)),
        st.tuples(st.just("stamps"), _WALLS, st.integers(1, 70_000)),
        st.tuples(st.just("observe"), _WALLS, st.integers(0, hlc_from_ms(100_000))),
    ),
    max_size=40,
)


@given(steps=_STEPS)
def test_stamps_strictly_rise_whatever_the_wall_clock_does(steps: list[tuple[str, int, int]]) -> None:
    """A wall clock that jumps back and forth, batches and remote stamps: no stamp comes twice or falls."""
    clock = HybridClock(drift_ms_max=500)
    newest = 0
    for step, wall_ms, argument in steps:
        if step == "observe":
            before = clock.last
            is_followed = clock.observe(argument, wall_ms)
            assert clock.last == (max(before, argument) if is_followed else before)
            assert is_followed or hlc_ms(argument) > wall_ms + 500
        else:
            count = argument or 1
            first = clock.stamps(wall_ms, count) if argument else clock.stamp(wall_ms)
            assert first > newest and hlc_ms(first) >= wall_ms and clock.last == first + count - 1
        newest = max(newest, clock.last)
        assert clock.last == newest


@given(walls=st.lists(_WALLS, min_size=1))
def test_alone_a_clock_runs_ahead_of_the_wall_only_by_its_counter(walls: list[int]) -> None:
    """Without remote stamps the time part is the newest wall clock that was seen."""
    clock = HybridClock()
    for index, wall_ms in enumerate(walls, start=1):
        assert hlc_ms(clock.stamp(wall_ms)) == max(walls[:index])


def test_a_wall_clock_that_is_ahead_resets_the_counter() -> None:
    """The counter counts within a millisecond and begins at 0 in the next."""
    clock = HybridClock()
    assert [clock.stamp(5), clock.stamp(5), clock.stamp(4)] == [hlc_from_ms(5) + count for count in range(3)]
    assert clock.stamp(6) == hlc_from_ms(6)


def test_a_full_counter_carries_into_the_milliseconds() -> None:
    """More stamps in one millisecond than the counter holds borrow from the next one."""
    clock = HybridClock()
    first = clock.stamps(7, (1 << COUNTER_BITS) + 3)
    assert hlc_ms(first) == 7 and hlc_ms(clock.last) == 8
    assert clock.stamp(8) == hlc_from_ms(8) + 3


def test_a_stamp_beyond_the_drift_limit_is_counted_and_not_followed() -> None:
    """Up to the limit a remote stamp is followed; beyond it the clock stays and the refusal is counted."""
    clock = HybridClock(drift_ms_max=1000)
    clock.stamp(100)
    assert clock.observe(hlc_from_ms(1101), 100) is False
    assert (clock.refused, clock.last) == (1, hlc_from_ms(100))
    assert clock.observe(hlc_from_ms(1100) + 7, 100) is True
    assert clock.stamp(100) == hlc_from_ms(1100) + 8
    # What the clock itself has reached is no news and never refused, however far back the wall clock fell.
    assert clock.observe(hlc_from_ms(1100), 0) is True and clock.refused == 1


def test_a_clock_that_starts_at_a_bound_never_stamps_below_it() -> None:
    """After a restart with the wall clock set back, stamps begin above the bound that was written ahead."""
    bound = hlc_from_ms(9_000)
    assert HybridClock(bound).stamp(10) == bound + 1
