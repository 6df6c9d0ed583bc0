"""What the scenarios share: a world that serves, and observers that strike at one exact moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from geokv.protocol.effects import Effect, Event, Persist
from geokv.sim.checkers import OK, check_all, converged
from geokv.sim.history import Operation
from geokv.sim.host import Host, Onlooker
from geokv.sim.schedule import MS, SECOND
from geokv.sim.world import World, WorldOptions

Condition = Callable[[Host, Any], bool]


def is_serving(world: World, names: Iterable[str] | None = None) -> bool:
    """Those nodes run, and refuse nobody."""
    hosts = [world.hosts[name] for name in (names if names is not None else world.hosts)]
    return all(host.node is not None and not host.node.is_refusing for host in hosts)


def serving_world(seed: int = 1, options: WorldOptions | None = None) -> World:
    """A world whose nodes all serve and are connected."""
    world = World(seed, options)
    world.start()
    assert world.run_until(lambda: is_serving(world) and world.is_connected(), 20 * SECOND), refusals(world)
    world.run(1 * SECOND)
    return world


def refusals(world: World) -> str:
    """Why it is not serving, for the message of an assertion."""
    return "; ".join(
        f"{name}: {host.node.is_refusing if host.node is not None else host.last_end or 'down'}"
        for name, host in world.hosts.items()
        if host.node is None or host.node.is_refusing
    )


def settle(world: World, at_most_us: int = 60 * SECOND) -> None:
    """Heal everything, wait until all replicas are equal, and demand that no checker complains."""
    world.heal()
    world.run_until(lambda: is_serving(world) and world.is_connected() and converged(world) == OK, at_most_us)
    world.run(3 * SECOND)
    demand(world)


def demand(world: World) -> None:
    """No checker complains."""
    failed = {name: verdict for name, verdict in check_all(world).items() if verdict != OK}
    assert not failed, failed


def holders(world: World, operation: Operation) -> set[str]:
    """The nodes whose disk holds the write (or a later one)."""
    return set(world.truth.holders(operation.key, operation.version, world.now_us + 1))


def value_at(world: World, node: str, key: bytes) -> bytes | None:
    """The cell of a key in the engine of one node."""
    for table in world.hosts[node].tables().values():
        if key in table:
            return table[key]
    return None


def key_led_by(world: World, node: str, number: int = 0) -> bytes:
    """A key whose first owner in its datacenter is `node`."""
    dc = world.dc_of[node]
    found = [key for index in range(2_000) if world.owners(key := b"key-%d" % index, dc)[0] == node]
    return found[number]


class When(Onlooker):
    """Does something once, at the first moment that fits. `seen` says whether it came."""

    def __init__(
        self,
        world: World,
        action: Callable[[], object],
        before_effect: Condition | None = None,
        after_effect: Condition | None = None,
        before_event: Condition | None = None,
        durable: Callable[[Host], bool] | None = None,
    ) -> None:
        self.seen = False
        self._action = action
        self._before_effect = before_effect
        self._after_effect = after_effect
        self._before_event = before_event
        self._durable = durable
        world.observers.append(self)

    def _strike(self, is_it: bool) -> None:
        if is_it and not self.seen:
            self.seen = True
            self._action()

    def saw_event(self, host: Host, event: Event) -> None:
        if self._before_event is not None:
            self._strike(self._before_event(host, event))

    def saw_effect(self, host: Host, effect: Effect) -> None:
        if self._before_effect is not None:
            self._strike(self._before_effect(host, effect))

    def saw_performed(self, host: Host, effect: Effect) -> None:
        if self._after_effect is not None:
            self._strike(self._after_effect(host, effect))

    def saw_written(self, host: Host, effect: Persist, segment: int, offset: int) -> None:
        pass

    def saw_durable(self, host: Host) -> None:
        if self._durable is not None:
            self._strike(self._durable(host))


def is_restarted(world: World, node: str, incarnation: int) -> bool:
    """The node runs again, as another incarnation, and serves."""
    host = world.hosts[node]
    return host.node is not None and host.node.incarnation != incarnation and not host.node.is_refusing


__all__ = [
    "MS",
    "SECOND",
    "When",
    "demand",
    "holders",
    "is_restarted",
    "is_serving",
    "key_led_by",
    "refusals",
    "serving_world",
    "settle",
    "value_at",
]
