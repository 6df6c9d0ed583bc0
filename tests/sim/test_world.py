"""The simulator itself: the same seed gives the same run, and its parts do what they say."""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys

import pytest

from geokv.sim.clocks import EPOCH_US, ClockOptions, Clocks
from geokv.sim.network import Network, NetworkOptions
from geokv.sim.run import Run, drawn_options, drawn_seeds, run, soak
from geokv.sim.schedule import SECOND, Schedule
from tests.conftest import Samples

PROGRAM = "import json; from geokv.sim.run import run; print(json.dumps([hash('a'), run(1).as_dict()]))"
made = functools.cache(run)  # a run is seconds of work, and several tests look at the same ones


def test_digest_does_not_depend_on_hashing() -> None:
    """Two processes with different PYTHONHASHSEED make the same run, event for event. Takes some seconds: two runs."""
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    hashed, result = json.loads(done.stdout)
    assert hashed != hash("a")
    assert result["digest"] == made(1).digest
    assert result["operations"] == made(1).operations > 100


def test_other_seed_is_another_run() -> None:
    """The digest tells runs apart. Takes some seconds, if it is the first that makes them."""
    assert made(1).digest != made(2).digest


def test_drawn_runs_pass_every_checker(samples: Samples) -> None:
    """Under faults drawn from the menu, no checker complains."""
    for seed in range(1, samples.of(test=2, check=10, soak=1_000) + 1):
        result = made(seed)
        failed = {name: verdict for name, verdict in result.checkers.items() if verdict != "ok"}
        assert not failed, f"seed {seed}: {failed}"


def test_messages_are_not_changed_after_they_were_sent() -> None:
    """The nodes never change a message that is on its way: what is sent may be handed over without a copy."""
    one = Run(3)
    one.world.network.is_checking_mutation = True
    assert one.run().is_ok


def test_soak_says_nothing_of_seeds_that_pass() -> None:
    """A soak of good seeds has no failures, and tells of each run that ended."""
    told: list[tuple[int, int]] = []
    assert soak(2, processes=1, progress=lambda done, total: told.append((done, total))) == []
    assert told == [(1, 2), (2, 2)]


def test_drawn_seeds_follow_from_the_text() -> None:
    """The same commit draws the same seeds, another one others."""
    assert drawn_seeds(3, "abc") == drawn_seeds(3, "abc")
    assert set(drawn_seeds(3, "abc")).isdisjoint(drawn_seeds(3, "abd"))


# --- parts -----------------------------------------------------------------------------------------------------------------


def test_schedule_keeps_the_order_of_one_instant() -> None:
    """What is due at the same microsecond happens in the order in which it was scheduled; what was cancelled does not."""
    schedule = Schedule()
    done: list[int] = []
    timers = [schedule.at(5, done.append, number) for number in range(4)]
    timers[2].cancel()
    schedule.run_until(10)
    assert done == [0, 1, 3]
    assert schedule.now_us == 10


@pytest.mark.parametrize("seed", range(20))
def test_monotonic_clock_is_inverted_exactly_enough(seed: int) -> None:
    """At the true time that a clock names for a moment, it has reached that moment, by less than three microseconds."""
    schedule = Schedule()
    clocks = Clocks(schedule, random.Random(seed), ClockOptions())
    due_us = clocks.monotonic_us() + 1_234_567
    schedule.run_until(clocks.true_us(due_us))
    assert due_us <= clocks.monotonic_us() <= due_us + 3


def test_wall_clock_is_stepped_and_frozen() -> None:
    """A step moves it, a frozen clock stands, a thawed one is back at the time it would have had."""
    schedule = Schedule()
    clocks = Clocks(schedule, random.Random(1), ClockOptions(0, 0))
    clocks.step(-5 * SECOND)
    assert clocks.wall_us() == EPOCH_US - 5 * SECOND
    clocks.freeze()
    schedule.run_until(2 * SECOND)
    assert clocks.wall_us() == EPOCH_US - 5 * SECOND
    clocks.thaw()
    assert clocks.wall_us() == EPOCH_US - 3 * SECOND
    assert clocks.error_us_max >= 5 * SECOND


def network(options: NetworkOptions) -> tuple[Schedule, Network, list[object]]:
    schedule = Schedule()
    made = Network(schedule, random.Random(1), options)
    for name in ("a", "b"):
        made.attach(name, "dc1")
    return schedule, made, []


def test_packets_arrive_in_order_unless_reordered() -> None:
    """One pair's packets keep their order on a quiet network; a faulty one loses, doubles and reorders."""
    schedule, net, arrived = network(NetworkOptions(loss=0.2, duplicate=0.2, reorder=0.2))
    for number in range(100):
        net.carry("a", "b", number, arrived.append)
    schedule.run_until(SECOND)
    assert arrived == list(range(100))
    arrived.clear()
    net.is_faulty = True
    for number in range(200):
        net.carry("a", "b", number, arrived.append)
    schedule.run_until(10 * SECOND)
    assert arrived != sorted(arrived, key=repr)
    assert len(set(arrived)) < 200
    assert net.counts["doubled"] > 0


def test_cuts_work_one_way_and_nest() -> None:
    """A cut stops one direction, also what is on its way, and is over when each of its causes is."""
    schedule, net, arrived = network(NetworkOptions())
    net.carry("a", "b", "on its way", arrived.append)
    net.cut("a", "b")
    net.cut("a", "b")
    net.carry("b", "a", "back", arrived.append)
    schedule.run_until(SECOND)
    assert arrived == ["back"]
    net.heal("a", "b")
    assert net.is_cut("a", "b")
    net.heal("a", "b")
    net.carry("a", "b", "again", arrived.append)
    schedule.run_until(2 * SECOND)
    assert arrived == ["back", "again"]


def test_runs_differ_in_their_namespaces() -> None:
    """Among few seeds there are runs with one namespace, with two, and with one whose writes are synced by interval."""
    drawn = [drawn_options(seed).workload for seed in range(1, 20)]
    kinds = {(len(workload.namespaces), len(workload.interval)) for workload in drawn}
    assert kinds == {(1, 0), (2, 0), (2, 1)}
