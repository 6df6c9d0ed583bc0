"""What the clients of a run do: a seeded mix of puts, deletes, gets and batches, on a few hot keys and many cold ones.

Each client has several lanes. A lane asks, waits for what it is told (or for its patience to end), thinks, asks again; the
lanes of one client share its SDK machine, so their operations travel together. A value names its client and place in the run,
so a checker that sees it knows who wrote it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geokv.core.quorum import Consistency
from geokv.errors import GeokvError, NamespaceExists
from geokv.protocol.requests import AdminRequest, Reply
from geokv.sim.clients import Ask, Batch, Client, SdkClient
from geokv.sim.schedule import MS, SECOND
from geokv.sim.typed import BORN_AS, TYPED, TypedWork

if TYPE_CHECKING:
    from geokv.sim.world import World


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """Shares are of 1. What is left of `puts` + `deletes` is gets."""

    clients_per_dc: int = 2
    lanes: int = 2
    think_us: int = 150_000  # on average
    hot_keys: int = 4
    cold_keys: int = 150
    hot_share: float = 0.5
    batch_share: float = 0.25
    batch_items_max: int = 8
    puts: float = 0.50
    deletes: float = 0.06
    ttl_share: float = 0.08  # of the puts
    ttl_ms: tuple[int, int] = (300, 4_000)
    value_bytes_max: int = 4_000
    far_share: float = 0.06  # writes that wait for other datacenters (EACH_QUORUM, replicated_to)
    repair_before_share: float = 0.05
    namespaces: tuple[str, ...] = ("default",)  # others than "default" are created when the run begins
    interval: tuple[str, ...] = ()  # those of them with durability "interval"
    policies: tuple[str, ...] = TYPED  # a run draws one of them, and makes a namespace of it and by its name
    typed_share: float = 0.4  # of the operations go there
    changed_share: float = 0.4  # of the runs, where the policy is one that a namespace can be changed to


_WRITE_LEVELS = (
    *([Consistency.QUORUM] * 6),
    Consistency.ONE,
    Consistency.ONE,
    Consistency.TWO,
    Consistency.ALL,
    Consistency.DEFAULT,
)
_READ_LEVELS = (*([Consistency.QUORUM] * 5), Consistency.ONE, Consistency.TWO, Consistency.ALL, Consistency.DEFAULT)


class Workload:
    """All clients of a run. `stop` lets what is under way end."""

    def __init__(self, world: World, rng: random.Random, options: WorkloadOptions) -> None:
        self.world = world
        self.options = options
        self.is_stopped = False
        self.is_ready: dict[str, bool] = {"default": True}
        world.truth.unpromised = tuple(f"{name}/".encode() for name in options.interval)
        self.clients = [world.sdk_client(dc) for dc in world.topology.dc_names for _ in range(options.clients_per_dc)]
        self._rng = rng
        self._values = 0
        self.policy = rng.choice(options.policies) if options.policies else ""
        self._typed = TypedWork(self.policy, rng, options) if self.policy else None
        is_changed = self.policy in BORN_AS and rng.random() < options.changed_share
        self.born_as = BORN_AS[self.policy] if is_changed else self.policy
        world.history.born_as = self.born_as

    def start(self) -> None:
        for name in self.options.namespaces:
            if name != "default":
                self._create(name, "lww", 0)
        if self.policy:
            self._create(self.policy, self.born_as, 0)
            if self.born_as != self.policy:
                self.world.schedule.after(self._rng.randrange(SECOND, 6 * SECOND), self._change_policy, 0)
        for client in self.clients:
            for _ in range(self.options.lanes):
                self.world.schedule.after(self._rng.randrange(self.options.think_us), self._ask, client)

    def stop(self) -> None:
        self.is_stopped = True

    def _change_policy(self, turn: int) -> None:
        """Asked of one datacenter after the other until one says that it is done: two may do it, cut apart."""
        client = self.clients[turn % len(self.clients)]

        def told(_: Reply | None, error: GeokvError | None) -> None:
            if error is not None and not self.is_stopped:
                self.world.schedule.after(500 * MS, self._change_policy, turn + 1)

        client.admin(AdminRequest("namespace_alter", {"name": self.policy, "policy": self.policy}), told)

    def _create(self, name: str, policy: str, turn: int) -> None:
        client = self.clients[turn % len(self.clients)]

        def told(_: Reply | None, error: GeokvError | None) -> None:
            if error is None or isinstance(error, NamespaceExists):
                self.is_ready[name] = True
            elif not self.is_stopped:
                self.world.schedule.after(200 * MS, self._create, name, policy, turn + 1)

        arguments: dict[str, object] = {"name": name, "policy": policy, "exist_ok": True}
        if name in self.options.interval:
            arguments |= {"durability": "interval", "interval_ms": 200}
        client.admin(AdminRequest("namespace_create", arguments), told)

    # --- one lane ---------------------------------------------------------------------------------------------------

    def _ask(self, client: SdkClient) -> None:
        if self.is_stopped:
            return
        rng, options = self._rng, self.options
        if self._typed is not None and self.is_ready.get(self.policy) and rng.random() < options.typed_share:
            self._typed.ask(client, lambda: self._think(client))
            return
        namespace = rng.choice([name for name in options.namespaces if self.is_ready.get(name)] or ["default"])
        chance = rng.random()
        if chance < options.puts + options.deletes:
            is_delete = chance >= options.puts
            items = [(key, None if is_delete else self._value(client)) for key in self._keys(namespace)]
            client.write(items, self._write_ask(namespace, is_delete), lambda _: self._think(client))
        else:
            client.read(self._keys(namespace), self._read_ask(namespace), lambda _: self._think(client))

    def _think(self, client: SdkClient) -> None:
        delay_us = int(self._rng.expovariate(1 / self.options.think_us)) + 1
        self.world.schedule.after(min(delay_us, 2 * SECOND), self._ask, client)

    def _keys(self, namespace: str) -> list[bytes]:
        rng, options = self._rng, self.options
        count = rng.randint(2, options.batch_items_max) if rng.random() < options.batch_share else 1
        keys: dict[bytes, None] = {}
        for _ in range(count):
            is_hot = rng.random() < options.hot_share
            number = rng.randrange(options.hot_keys) if is_hot else options.hot_keys + rng.randrange(options.cold_keys)
            keys[f"{namespace}/{number}".encode()] = None
        return list(keys)

    def _value(self, client: Client) -> bytes:
        self._values += 1
        padding = self._rng.randrange(self.options.value_bytes_max)
        return f"{client.name}:{self._values}:".encode() + b"." * padding

    def _write_ask(self, namespace: str, is_delete: bool) -> Ask:
        rng, options = self._rng, self.options
        ttl_ms = 0 if is_delete or rng.random() >= options.ttl_share else rng.randint(*options.ttl_ms)
        if rng.random() < options.far_share:
            if rng.random() < 0.5:
                return Ask(namespace, Consistency.EACH_QUORUM, ttl_ms=ttl_ms)
            dcs = rng.randint(2, max(2, len(self.world.topology.dc_names)))
            return Ask(namespace, Consistency.QUORUM, ttl_ms=ttl_ms, replicated_to=dcs)
        if rng.random() < 0.05:
            return Ask(namespace, Consistency.QUORUM, replicas=rng.randint(1, self.world.options.replicas), ttl_ms=ttl_ms)
        return Ask(namespace, rng.choice(_WRITE_LEVELS), ttl_ms=ttl_ms)

    def _read_ask(self, namespace: str) -> Ask:
        rng = self._rng
        is_careful = rng.random() < self.options.repair_before_share
        if rng.random() < 0.05:
            return Ask(namespace, Consistency.QUORUM, replicas=rng.randint(1, self.world.options.replicas))
        return Ask(namespace, rng.choice(_READ_LEVELS), repair_before=is_careful)

    # --- the end of a run -------------------------------------------------------------------------------------------

    def last_round(self) -> list[Batch]:
        """Every client writes to every datacenter and reads back: what must work once all is healed."""
        ask = Ask("default", Consistency.EACH_QUORUM, timeout_us=10 * SECOND)
        batches = []
        for client in self.clients:
            keys = [f"default/last-{client.name}-{number}".encode() for number in range(4)]
            batches.append(client.write([(key, self._value(client)) for key in keys], ask))
            batches.append(client.read([f"default/{number}".encode() for number in range(4)]))
        return batches
