"""Replicas that were away, feeds that were cut, partitions that are stuck, clocks that stand still."""

from __future__ import annotations

import pytest

from geokv.core.quorum import Consistency
from geokv.protocol.requests import Outcome
from geokv.sim.clients import Ask
from geokv.sim.disks import StorageOptions
from geokv.sim.faults import CrashAtEffect, FaultOptions
from geokv.sim.run import Run, RunOptions
from geokv.sim.schedule import derived_rng
from geokv.sim.workload import WorkloadOptions
from geokv.sim.world import World, WorldOptions
from tests.conftest import Samples
from tests.sim.scenes import (
    MS,
    SECOND,
    holders,
    key_led_by,
    serving_world,
    settle,
    value_at,
)


def test_next_put_through_another_coordinator_with_a_frozen_clock_wins() -> None:
    """A client's second put is ordered after its first, though the clock of its second coordinator stands still."""
    world = serving_world()
    key = key_led_by(world, "dc1-n1")
    world.hosts["dc1-n1"].clocks.step(3 * SECOND)
    world.hosts["dc1-n2"].clocks.freeze()
    world.run(1 * SECOND)
    # Only the client can tell the second coordinator of the first put: no other node has it.
    for other in ("dc1-n2", "dc1-n3"):
        world.network.cut("dc1-n1", other)
    client = world.direct_client("dc1-n1")
    first = client.put(key, b"first", Ask(level=Consistency.ONE))
    client.node = "dc1-n2"
    second = client.put(key, b"second")
    assert first.is_acknowledged
    assert second.is_acknowledged
    assert second.version > first.version
    settle(world)
    cell = value_at(world, "dc3-n3", key)
    assert cell is not None
    assert cell.endswith(b"second")


@pytest.mark.parametrize("is_power", [False, True])
def test_clock_set_back_across_a_restart_stamps_nothing_lower(is_power: bool) -> None:
    """A bound is written ahead of the HLC: after a restart with a clock set back, stamps go on above all earlier ones."""
    world = serving_world(1, WorldOptions(dcs=1))
    client = world.direct_client("dc1-n1")
    before = client.put(b"before", b"1")
    host = world.hosts["dc1-n1"]
    host.clocks.step(-30 * SECOND)
    # No peer may tell it the time either.
    world.network.cut_between(["dc1-n1"], ["dc1-n2", "dc1-n3"])
    if is_power:
        host.cut_power(is_all_lost=True)
    else:
        host.kill()
    host.start()
    fresh = world.direct_client("dc1-n1")
    assert world.run_until(lambda: fresh.put(b"after", b"2", Ask(level=Consistency.ONE)).is_acknowledged, 20 * SECOND)
    after = world.history.operations[-1]
    assert after.version > before.version
    settle(world)


def test_replica_that_missed_messages_catches_up_without_being_read() -> None:
    """What a co-owner did not get comes to it from the others' logs, though nobody reads the keys."""
    world = serving_world(1, WorldOptions(dcs=1))
    world.network.cut("dc1-n1", "dc1-n3")
    client = world.direct_client("dc1-n1")
    operations = [client.put(b"missed-%d" % number, b"value %d" % number) for number in range(20)]
    assert all(operation.is_acknowledged for operation in operations)
    assert not any("dc1-n3" in holders(world, operation) for operation in operations)
    world.network.heal_all()
    assert world.run_until(lambda: all("dc1-n3" in holders(world, operation) for operation in operations), 15 * SECOND)
    settle(world)


@pytest.mark.parametrize("victim", ["dc1-n1", "dc2-n1", "dc2-n2"])
@pytest.mark.parametrize("is_power", [False, True])
def test_feed_resumes_after_a_restart_of_either_side(victim: str, is_power: bool) -> None:
    """Shipping goes on from the receiver's frontier, whoever of the two restarted, again and again."""
    world = serving_world(1, WorldOptions(dcs=2))
    client = world.direct_client("dc1-n1" if victim != "dc1-n1" else "dc1-n2")
    operations = []
    for number in range(40):
        operations.append(client.put(b"shipped-%d" % number, b"value %d" % number))
        if number % 10 == 4:
            host = world.hosts[victim]
            if is_power:
                host.cut_power()
            else:
                host.kill()
            host.start(200 * MS)
    acknowledged = [operation for operation in operations if operation.is_acknowledged]
    assert len(acknowledged) > 10
    assert world.run_until(
        lambda: all({"dc2-n1", "dc2-n2", "dc2-n3"} <= holders(world, operation) for operation in acknowledged),
        30 * SECOND,
    )
    settle(world)


def test_one_blocked_partition_does_not_fill_the_window() -> None:
    """A partition without a quorum in the other datacenter holds up itself; writes to others arrive there."""
    storage = StorageOptions(segment_bytes=32 << 20)
    world = serving_world(1, WorldOptions(dcs=2, nodes_per_dc=5, partitions=16, storage=storage))
    down = world.nodes_of("dc2")[:2]
    blocked = next(key for key in keys() if set(down) <= set(world.owners(key, "dc2")))
    blocked_partition = world.partition(blocked)
    free = next(key for key in keys() if not set(down) & set(world.owners(key, "dc2")))
    for name in down:
        world.hosts[name].cut_power()
    world.run(3 * SECOND)
    client = world.direct_client(world.owners(blocked, "dc1")[0])
    # More than the window holds, all into the blocked partition.
    stuck = [key for key in keys(200_000) if world.partition(key) == blocked_partition][:600]
    for start in range(0, len(stuck), 60):
        batch = client.write([(key, b"s" * 10_000) for key in stuck[start : start + 60]])
        world.run_until(lambda batch=batch: batch.is_done, 5 * SECOND)  # type: ignore[misc]
        assert set(batch.outcomes) == {Outcome.APPLIED}
    world.run(2 * SECOND)
    client.node = world.owners(free, "dc1")[0]
    far = client.put(free, b"gets there", Ask(level=Consistency.EACH_QUORUM))
    assert far.outcome is Outcome.APPLIED
    client.node = world.owners(blocked, "dc1")[0]
    near = client.put(blocked, b"waits", Ask(level=Consistency.EACH_QUORUM))
    assert near.outcome is Outcome.PENDING
    for name in down:
        world.hosts[name].start()
    settle(world)


def keys(count: int = 20_000) -> list[bytes]:
    return [b"key-%d" % number for number in range(count)]


def test_kill_of_any_node_at_any_moment_loses_nothing_acknowledged(samples: Samples) -> None:
    """Kill or power cut between any two effects of any node, under load: every checker is content afterwards."""
    workload = WorkloadOptions(think_us=40 * MS)
    options = RunOptions(workload=workload, faults=FaultOptions(count=(0, 0)), faulty_us=2 * SECOND, probes=1)
    for seed in range(samples.of(test=1, check=12, soak=600)):
        run = Run(seed, options)
        strike_anywhere(run.world, seed)
        result = run.run()
        failed = {name: verdict for name, verdict in result.checkers.items() if verdict != "ok"}
        assert not failed, (seed, failed)


def strike_anywhere(world: World, seed: int) -> None:
    """One node ends before some effect of its, two seconds in, and is started again."""
    rng = derived_rng(seed, "strike")
    host = world.hosts[rng.choice(list(world.hosts))]
    end = rng.choice((host.kill, host.cut_power))

    def strike() -> None:
        end()
        host.start(300 * MS)

    world.schedule.at(
        1_500 * MS,
        lambda: world.observers.append(CrashAtEffect(host, rng.randrange(200), rng.random() < 0.3, strike)),
    )
