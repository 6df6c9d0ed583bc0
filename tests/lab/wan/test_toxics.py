"""Toxics in virtual time: when each byte leaves, and that none is lost, doubled or overtaken."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geokv.lab.wan.toxics import Chain, Toxic

Sent = list[tuple[float, bytes]]


def toxic(kind: str, toxicity: float = 1.0, **attributes: int) -> Toxic:
    defaults = {"latency": {"latency": 0, "jitter": 0}, "bandwidth": {"rate": 0}}.get(kind, {"timeout": 0})
    return Toxic(kind, kind, "upstream", toxicity, {**defaults, **attributes})


def chain(*toxics: Toxic, seed: int = 1) -> Chain:
    return Chain(list(toxics), random.Random(seed), 0.0)


def run(lane: Chain, pushes: Sent, until_s: float = 1_000.0) -> Sent:
    """Push pieces at their times and return what left when, waking only when the chain asks for it."""
    left: Sent = []
    waiting = list(pushes)
    now_s = 0.0
    while not lane.is_over:
        times = [time_s for time_s in (lane.wake_at_s(), waiting[0][0] if waiting else None) if time_s is not None]
        if not times or min(times) > until_s:
            break
        now_s = max(now_s, min(times))
        while waiting and waiting[0][0] <= now_s:
            lane.push(waiting.pop(0)[1], now_s)
        left += [(now_s, piece) for piece in lane.take(now_s)]
    return left


def test_latency_delays_each_chunk_by_itself() -> None:
    """A thousand chunks a millisecond apart leave a millisecond apart: throughput is kept."""
    pushes = [(number / 1000, b"%d" % number) for number in range(1000)]
    left = run(chain(toxic("latency", latency=80)), pushes)
    assert left == [(pytest.approx(at + 0.080), piece) for at, piece in pushes]


def test_jitter_stays_in_bounds_and_keeps_the_order() -> None:
    """A chunk leaves between latency - jitter and latency + jitter, or right behind one before it."""
    pushes = [(number / 100, b"%d" % number) for number in range(500)]
    left = run(chain(toxic("latency", latency=50, jitter=20)), pushes)
    assert [piece for _, piece in left] == [piece for _, piece in pushes]
    delays = [at - pushed for (at, _), (pushed, _) in zip(left, pushes, strict=True)]
    assert min(delays) >= 0.030 - 1e-9 and max(delays) <= 0.070 + 1e-9
    assert len({round(delay, 3) for delay in delays}) > 20


def test_bandwidth_is_met_exactly() -> None:
    """A megabyte at 1,000 KB/s leaves in one second, in pieces of at most a tenth."""
    left = run(chain(toxic("bandwidth", rate=1000)), [(0.0, b"x" * 1_000_000)])
    assert left[-1][0] == pytest.approx(1.0)
    assert max(len(piece) for _, piece in left) <= 100_000


def test_bandwidth_gives_no_credit_for_idle_time() -> None:
    """After a pause a burst takes as long as at the start."""
    left = run(chain(toxic("bandwidth", rate=100)), [(0.0, b"x" * 1000), (50.0, b"x" * 10_000)])
    assert left[-1][0] == pytest.approx(50.1)


def test_bandwidth_then_latency_adds_up() -> None:
    """A chain delays by the sum of its stages."""
    left = run(chain(toxic("bandwidth", rate=100), toxic("latency", latency=40)), [(0.0, b"x" * 10_000)])
    assert left[-1][0] == pytest.approx(0.140)


def test_end_follows_the_last_byte() -> None:
    """The end waits for what is held, and for nothing longer."""
    lane = chain(toxic("latency", latency=100), toxic("bandwidth", rate=1))
    lane.push(b"x" * 10, 0.0)
    lane.push_end()
    assert lane.take(0.0) == [] and not lane.is_over
    assert lane.take(0.109) == [] and not lane.is_over
    assert lane.take(0.110 + 1e-9) == [b"x" * 10] and lane.is_over


def test_timeout_counts_from_the_last_byte() -> None:
    """Bytes are dropped, and each one begins the silence anew."""
    lane = chain(toxic("timeout", timeout=100))
    assert run(lane, [(0.05, b"a"), (0.12, b"b")], until_s=0.2) == []
    assert not lane.is_over
    lane.take(0.2201)
    assert lane.is_over


def test_black_hole_ends_when_removed() -> None:
    """timeout 0 never ends by itself; removing it ends the lane, without what it swallowed."""
    hole, line = toxic("timeout"), toxic("latency", latency=10)
    lane = chain(line, hole)
    assert run(lane, [(0.0, b"lost")]) == [] and lane.wake_at_s() is None
    assert lane.remove(hole, 500.0) == [] and lane.is_over


def test_change_of_latency_frees_the_head_and_delays_the_rest_anew() -> None:
    """What was being delayed leaves at once; what waits behind it gets the new delay from its arrival."""
    slow = toxic("latency", latency=10_000)
    lane = chain(slow)
    for at, piece in ((0.0, b"a"), (0.1, b"b")):
        lane.push(piece, at)
        lane.take(at)
    slow.attributes["latency"] = 500
    lane.change(slow, 0.2)
    assert lane.take(0.2) == [b"a"]
    assert lane.take(0.59) == []
    assert lane.take(0.6 + 1e-9) == [b"b"]


def test_toxicity_is_drawn_again_when_it_changes() -> None:
    """A lane that was spared is touched at toxicity 1, and the other way round, without losing bytes."""
    line = toxic("latency", toxicity=0.0, latency=100)
    lane = chain(line)
    lane.push(b"a", 0.0)
    assert lane.take(0.0) == [b"a"]
    line.toxicity = 1.0
    lane.change(line, 0.0)
    lane.push(b"b", 0.0)
    assert lane.take(0.0) == []
    line.attributes["latency"] = 200  # the fresh stage shares the toxic
    lane.push(b"c", 0.0)
    line.toxicity = 0.0
    lane.change(line, 0.0)
    assert lane.take(0.0) == [b"b", b"c"]


def test_held_bytes_are_those_inside() -> None:
    """What the owner bounds is what waits."""
    lane = chain(toxic("latency", latency=100))
    lane.push(b"x" * 70, 0.0)
    assert lane.take(0.0) == [] and lane.held_bytes == 70
    lane.take(1.0)
    assert lane.held_bytes == 0


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.binary(min_size=1, max_size=300)),
        st.tuples(st.just("wait"), st.floats(0, 0.3)),
        st.tuples(st.just("add"), st.sampled_from(["latency", "bandwidth"])),
        st.tuples(st.just("remove"), st.integers(0, 5)),
        st.tuples(st.just("change"), st.integers(0, 5)),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 100))
def test_no_byte_is_lost_doubled_or_overtaken(program: list[tuple[str, object]], seed: int) -> None:
    """Whatever is added, changed and removed, latency and bandwidth give back what came, in order."""
    rng = random.Random(seed)
    toxics = [toxic("latency", latency=50, jitter=30)]
    lane = Chain(toxics, rng, 0.0)
    pushed, left, now_s = b"", b"", 0.0
    for what, value in program:
        match what, value:
            case "push", bytes(piece):
                pushed += piece
                if lane.is_empty:
                    left += piece
                else:
                    lane.push(piece, now_s)
            case "wait", float(seconds):
                now_s += seconds
                left += b"".join(lane.take(now_s)) if not lane.is_empty else b""
            case "add", str(kind):
                toxics.append(toxic(kind, toxicity=0.7, latency=40) if kind == "latency" else toxic(kind, rate=2))
                lane.add(toxics[-1], now_s)
            case "remove", int(index) if toxics:
                left += b"".join(lane.remove(toxics.pop(index % len(toxics)), now_s))
            case "change", int(index) if toxics:
                toxics[index % len(toxics)].toxicity = rng.choice((0.0, 0.5, 1.0))
                lane.change(toxics[index % len(toxics)], now_s)
    if not lane.is_empty:
        lane.push_end()
        while not lane.is_over:
            left += b"".join(lane.take(now_s))
            now_s = max(now_s, lane.wake_at_s() or now_s)
    assert left == pushed
