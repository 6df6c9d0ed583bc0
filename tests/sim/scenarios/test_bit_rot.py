"""A bit of a table flips: the claim is taken back, reads go to others, nothing acknowledged is lost, nothing comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from geokv.core.quorum import Consistency
from geokv.core.topology import Topology
from geokv.errors import Damaged
from geokv.protocol.requests import Outcome
from geokv.sim.checkers import OK
from geokv.sim.clients import Ask
from geokv.sim.faults import MENU, FaultOptions
from geokv.sim.host import Host, Machine, Recover
from geokv.sim.real_node import real_node
from geokv.sim.run import Run, RunOptions, SimResult
from geokv.sim.world import World
from geokv.storage.lsm.manifest import read_manifest
from tests.sim.scenes import SECOND, demand, is_restarted, is_serving, key_led_by, serving_world, settle

pytestmark = pytest.mark.timeout(300)  # worlds of nine nodes, hundreds of calls each
NODE = "dc1-n1"
OTHERS = ("dc1-n2", "dc1-n3")


def rotting(**others: Any) -> RunOptions:
    """Nothing but bit rot, of one node per datacenter, and what else is named."""
    off = {field.name: 0.0 for field in fields(FaultOptions) if field.name in MENU}
    return RunOptions(calm_us_max=8 * SECOND, faults=FaultOptions(**{**off, "count": (8, 8), "bit_rot": 1.0, **others}))


def run(seed: int, recover: Callable[[Topology], Recover] | None = None) -> SimResult:
    return Run(seed, rotting(), recover).run()


def forgetful(topology: Topology) -> Recover:
    """A node that sets damaged tables aside and does not take its claim back."""
    recover = real_node(topology)

    def planted(*arguments: Any) -> Machine:
        node: Any = recover(*arguments)
        quarantine = node.assembly.quarantine
        quarantine._withdraw = lambda one: quarantine._noted.add(one.facts.number)
        return node  # type: ignore[no-any-return]

    return planted


def test_a_node_that_keeps_its_claim_over_a_damaged_table_is_found_out() -> None:
    """The planted bug fails the checkers at several of the promises; the real node passes the same seed.

    Takes some seconds: two whole runs.
    """
    result = run(3, forgetful)
    assert result.faults["bit_rot"]
    failed = {name for name, verdict in result.checkers.items() if verdict != OK}
    assert {"converged", "acknowledged_survives"} <= failed, result.checkers
    real = run(3)
    assert real.is_ok, {name: verdict for name, verdict in real.checkers.items() if verdict != OK}
    assert real.faults["bit_rot"] >= 1 and real.notes["quarantine.claims_taken_back"] >= 1


def flushed_world(count: int = 300) -> World:
    """A world in which every replica in dc1 has tables."""
    world = serving_world()
    client = world.direct_client(NODE)
    for number in range(count):
        assert client.put(b"key-%d" % number, bytes(400)).is_acknowledged
    world.run(2 * SECOND)
    assert all(world.hosts[name].engine.figures()["tables"] for name in (NODE, *OTHERS))  # type: ignore[union-attr]
    return world


def is_taken_back(host: Host) -> bool:
    engine = host.engine
    return bool(getattr(host.node, "unserved", None)) and engine is not None and bool(engine.quarantined())


def is_readable(host: Host) -> bool:
    """Whether all tables can be read; who finds that they cannot tells the engine, as every reader does."""
    try:
        host.tables()
    except Damaged:
        return False
    return True


def read_all(world: World, node: str, count: int = 300) -> None:
    client = world.direct_client(node)
    for number in range(count):
        read = client.get(b"key-%d" % number, Ask(level=Consistency.ONE))
        assert read.value == bytes(400), f"{read}"


def test_after_a_restart_with_a_table_that_cannot_be_opened_every_read_and_write_works() -> None:
    """Found at start: the note stands before the node serves, and through it every key can be read at ONE and written.

    Takes some seconds: hundreds of calls in a world of nine nodes.
    """
    world = flushed_world()
    host = world.hosts[NODE]
    host.kill()
    for facts in read_manifest(host.storage.disk).all_tables():
        size = host.storage.disk.size(facts.name)
        host.storage.disk.damage(facts.name, size - 20, b"\x00\xff")
    world.truth.saw_disk(host, "bit rot")
    host.start()
    assert world.run_until(lambda: is_serving(world, [NODE]) and is_taken_back(host), 20 * SECOND)
    world.run(2 * SECOND)
    read_all(world, NODE)
    assert world.direct_client(NODE).put(b"key-1", b"new").is_acknowledged
    assert world.direct_client(OTHERS[0]).get(b"key-1", Ask(level=Consistency.QUORUM)).value == b"new"
    world.hosts[NODE].kill()  # what was taken back stays so, from the log and from the node's state
    host.start()
    assert world.run_until(lambda: is_serving(world, [NODE]), 20 * SECOND)
    assert is_taken_back(host)
    settle(world)


def test_a_crash_soon_after_the_finding_is_harmless() -> None:
    """Killed, or without power, soon after the damage was found: the claim is taken back in the end.

    Takes some seconds: two worlds of nine nodes.
    """
    for skip in (0, 3):
        world = flushed_world(200)
        host = world.hosts[NODE]
        assert host.rot()
        host.kill()
        host.start()
        assert world.run_until(partial(is_serving, world, [NODE]), 20 * SECOND)
        assert not is_readable(host)
        world.run(skip * 30_000)
        run_before = host.incarnation
        if skip % 2:
            host.cut_power(is_all_lost=True)
        else:
            host.kill()
        host.start()
        assert world.run_until(partial(is_back, world, run_before), 30 * SECOND)
        settle(world)
        demand(world)


def is_back(world: World, run_before: int) -> bool:
    return is_restarted(world, NODE, run_before) and is_serving(world)


def test_what_only_a_node_without_its_claim_has_in_its_log_reaches_the_others() -> None:
    """A write acknowledged by its coordinator and by such a node outlives the coordinator's run."""
    world = flushed_world()
    host = world.hosts[OTHERS[1]]
    assert host.rot()
    assert not is_readable(host)
    assert world.run_until(lambda: is_taken_back(host), 10 * SECOND)
    world.network.cut_between([OTHERS[0]], [NODE, OTHERS[1]])
    world.run(3 * SECOND)
    key = key_led_by(world, NODE)
    assert world.direct_client(NODE).put(key, b"on two", Ask(level=Consistency.QUORUM)).is_acknowledged
    world.hosts[NODE].kill()
    world.network.heal_all()
    cells = world.hosts[OTHERS[0]].tables
    assert world.run_until(lambda: any(key in table for table in cells().values()), 20 * SECOND)
    world.hosts[NODE].start()
    settle(world)


def test_when_all_owners_in_a_datacenter_lost_a_table_clients_are_served_by_another_one() -> None:
    """Each node says which table and which partition; the SDK goes to the next datacenter, for reads and writes.

    Takes some seconds: hundreds of calls in a world of nine nodes.
    """
    world = flushed_world()
    for name in (NODE, *OTHERS):
        host = world.hosts[name]
        for facts in read_manifest(host.storage.disk).all_tables():
            host.storage.disk.damage(facts.name, 30, b"\x00\xff\x00\xff")
        world.truth.saw_disk(host, "bit rot")
        assert not is_readable(host)
    assert world.run_until(lambda: all(is_taken_back(world.hosts[name]) for name in (NODE, *OTHERS)), 20 * SECOND)
    reply = world.direct_client(NODE).get(b"key-1")
    assert reply.outcome is Outcome.UNAVAILABLE
    client = world.sdk_client("dc1")
    read, write = client.read([b"key-1"]), client.write([(b"key-2", b"new")])
    assert world.run_until(lambda: read.is_done and write.is_done, 20 * SECOND)
    assert read.values == [bytes(400)] and read.operations[0].coordinator_dc != "dc1", read.errors
    assert write.operations[0].is_acknowledged and write.operations[0].coordinator_dc != "dc1", write.errors
