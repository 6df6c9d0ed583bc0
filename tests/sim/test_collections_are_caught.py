"""Bugs of collection, planted in the real node and laid out in a simulated world: the checkers see what comes back or is lost.

Each story passes with the node as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from geokv.core.quorum import Consistency
from geokv.sim.checkers import OK, check_all, converged
from geokv.sim.clients import Ask, Update
from geokv.sim.real_node import real_node
from geokv.sim.world import World, WorldOptions
from tests.sim.scenes import MS, SECOND, is_serving

Plant = Callable[[Any], None]
ALL = Ask(level=Consistency.ALL)


def planted_world(dcs: int, plant: Plant | None) -> World:
    """A small world whose nodes all serve, each with that bug."""

    def recover(topology: Any) -> Any:
        make = real_node(topology)

        def made(*what: Any) -> Any:
            node: Any = make(*what)
            if plant is not None:
                plant(node)
            return node

        return made

    world = World(1, WorldOptions(dcs=dcs, partitions=1), recover)
    world.start()
    assert world.run_until(lambda: is_serving(world) and world.is_connected(), 20 * SECOND)
    world.run(1 * SECOND)
    return world


def complaints(world: World) -> set[str]:
    """Who complains when all is healed and at rest."""
    world.heal()
    world.run_until(lambda: is_serving(world) and world.is_connected() and converged(world) == OK, 8 * SECOND)
    world.run(1 * SECOND)
    return {name for name, verdict in check_all(world).items() if verdict != OK}


class Without:
    """A placement that forgets some owners."""

    def __init__(self, placement: Any, is_left_out: Callable[[str, str], bool]) -> None:
        self._placement = placement
        self._is_left_out = is_left_out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._placement, name)

    def everyone(self, partition: int) -> list[tuple[str, str]]:
        return [(dc, node) for dc, node in self._placement.everyone(partition) if not self._is_left_out(dc, node)]


def asks_two_of_three(node: Any) -> None:
    """It takes what two owners have for stable, whatever the third one has."""
    stability = node.assembly.stability
    stability._placement = Without(stability._placement, lambda dc, name: name == "dc1-n3")


def asks_its_own_datacenter(node: Any) -> None:
    stability = node.assembly.stability
    stability._placement = Without(stability._placement, lambda dc, name: dc != node.context.dc)


def ignores_that_its_claim_is_gone(node: Any) -> None:
    """It sweeps, and says what it has of its streams, as if no table had been set aside."""

    def blind(call: Callable[..., Any]) -> Callable[..., Any]:
        def planted(*what: Any) -> Any:
            claims = node.context.claims
            known, claims.is_whole = claims.is_whole, True
            try:
                return call(*what)
            finally:
                claims.is_whole = known

        return planted

    sweeper, stability = node.assembly.sweeper, node.assembly.stability
    sweeper._sweep = blind(sweeper._sweep)
    stability._answer = blind(stability._answer)


def holds(world: World, names: tuple[str, ...], key: bytes) -> bool:
    return any(key in table for name in names for table in world.hosts[name].tables().values())


@pytest.mark.parametrize("plant", [None, asks_two_of_three])
def test_a_replica_that_was_away_brings_back_what_the_others_have_collected(plant: Plant | None) -> None:
    """It is down while the key is deleted; back, it is read before it has caught up."""
    world = planted_world(1, plant)
    client = world.direct_client("dc1-n1")
    assert client.put(b"k", b"old", ALL).is_acknowledged
    world.hosts["dc1-n3"].kill()
    assert client.delete(b"k").is_acknowledged
    world.run(5 * SECOND)
    assert holds(world, ("dc1-n1", "dc1-n2"), b"k") == (plant is None)
    world.hosts["dc1-n3"].start()
    for _ in range(20):
        client.get(b"k", ALL)
        world.run(50 * MS)
    assert ("no_resurrection" in complaints(world)) == (plant is not None)


@pytest.mark.parametrize("plant", [None, asks_its_own_datacenter])
def test_an_older_put_of_another_datacenter_comes_after_the_collection(plant: Plant | None) -> None:
    """Cut apart, one datacenter puts, the other deletes later, and collects."""
    world = planted_world(2, plant)
    world.network.cut_between(world.nodes_of("dc1"), world.nodes_of("dc2"))
    world.run(1 * SECOND)
    assert world.direct_client("dc2-n1").put(b"k", b"older").is_acknowledged
    world.run(5 * SECOND)  # clocks differ
    assert world.direct_client("dc1-n1").delete(b"k").is_acknowledged
    world.run(5 * SECOND)
    assert holds(world, ("dc1-n1", "dc1-n2", "dc1-n3"), b"k") == (plant is None)
    found = complaints(world)
    assert ({"no_resurrection", "converged"} <= found) if plant else not found


@pytest.mark.parametrize("plant", [None, ignores_that_its_claim_is_gone])
def test_a_sweep_of_half_a_cell_takes_the_other_half(plant: Plant | None) -> None:
    """The sweeping owner's table is set aside with an element in it; then comes a removal of another one."""
    world = planted_world(1, plant)
    assert world.direct_client("dc1-n1").admin("namespace_create", {"name": "set_rw", "policy": "set_rw"}) is not None
    world.run(1 * SECOND)
    name = world.owners(b"set_rw/k", "dc1")[0]
    client = world.sdk_client("dc1")

    def change(operation: str, element: bytes) -> None:
        done = client.update("set_rw", [Update(b"set_rw/k", operation, element)], Ask("set_rw", Consistency.ALL))
        assert world.run_until(lambda: done.is_done, 5 * SECOND) and done.operations[0].is_acknowledged

    change("add", b"goes")
    change("add", b"stays")
    assert world.direct_client(name).admin("storage_flush", {}) is not None
    world.run(200 * MS)
    assert world.hosts[name].rot()
    change("remove", b"goes")
    world.run(15 * SECOND)
    assert world.hosts[name].engine.quarantined()  # type: ignore[union-attr]
    assert ("values_kept" in complaints(world)) == (plant is not None)
