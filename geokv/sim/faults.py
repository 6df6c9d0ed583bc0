"""The fault menu, and the drawn schedule of what strikes whom, when and for how long.

`FaultOptions` is the menu: one weight per fault, documented there; 0 takes it off. A run draws how many strike (`count`)
and for each of them the kind, the victim, the moment and how long. Each fault undoes itself; the calm phase undoes the rest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from geokv.node.node import Node
from geokv.protocol.effects import Effect, Persist
from geokv.protocol.requests import AdminRequest
from geokv.sim.disks import Storage
from geokv.sim.host import Host, Onlooker
from geokv.sim.schedule import MS, SECOND

if TYPE_CHECKING:
    from geokv.sim.world import World


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """Weights of the menu, and how often and how long it strikes."""

    count: tuple[int, int] = (3, 12)
    duration_us: tuple[int, int] = (100 * MS, 4 * SECOND)

    kill: float = 2.0  # a process ends (kill -9) and starts again after the duration
    kill_at_effect: float = 2.0  # the same, between two effects of one handle
    power_cut: float = 2.0  # a machine loses power: what was not synced is lost, kept or torn
    power_cut_at_effect: float = 3.0  # the same, between two effects, often right behind a Persist
    power_cut_dc: float = 0.7  # every machine of a datacenter at once
    power_cut_all: float = 0.5  # every machine of the world at once
    slow_disk: float = 0.7  # each sync of a machine takes tens of milliseconds more
    pause: float = 1.5  # a process stands still; its sockets keep what comes
    cut_node: float = 1.0  # one node is cut off from all others, both ways
    cut_one_way: float = 1.5  # what one node sends to another is lost, not what comes back
    cut_dcs: float = 1.0  # two datacenters do not reach each other
    isolate_dc: float = 1.0  # a datacenter reaches no other one, its clients with it
    noise: float = 3.0  # packets are lost, doubled and reordered everywhere
    clock_step: float = 1.5  # a wall clock is set, by up to `clock_step_ms_max` either way
    clock_freeze: float = 1.0  # a wall clock stands still
    failed_append: float = 0.7  # a write to the log fails (EIO)
    failed_sync: float = 0.7  # an fdatasync of the log fails; what it should have synced may be lost
    full_disk: float = 0.5  # nothing can be allocated for a while
    bit_rot: float = 1.0  # a bit of a table flips, of one node per datacenter at most: a majority can do without it
    old_disk: float = 0.0  # a machine comes back with a copy of its disk from before (needs re-entry: scenarios only)
    snapshot: float = 0.0  # no fault: a node takes a snapshot, and removes it after the duration (scenarios only)
    wiped_disk: float = 0.0  # a machine comes back with an empty disk (needs re-entry: scenarios only)

    clock_step_ms_max: int = 5_000
    loss: float = 0.02
    duplicate: float = 0.02
    reorder: float = 0.08


_SETTINGS = ("count", "duration_us", "clock_step_ms_max", "loss", "duplicate", "reorder")
MENU = tuple(field.name for field in fields(FaultOptions) if field.name not in _SETTINGS)


class CrashAtEffect(Onlooker):
    """An observer that ends a host in the middle of a handle: before the n-th effect from now on, or behind a Persist."""

    def __init__(self, host: Host, skip: int, is_at_persist: bool, crash: Callable[[], None]) -> None:
        self._host = host
        self._left = skip
        self._is_at_persist = is_at_persist
        self._crash = crash
        self.has_struck = False

    def saw_performed(self, host: Host, effect: Effect) -> None:
        if host is not self._host or self.has_struck:
            return
        if self._left > 0:
            self._left -= 1
        elif not self._is_at_persist or isinstance(effect, Persist):
            self.has_struck = True
            self._crash()


class Faults:
    """Draws the schedule of a run and carries it out. `struck` counts what happened, by name."""

    def __init__(self, world: World, rng: random.Random, options: FaultOptions) -> None:
        self.world = world
        self.options = options
        self.struck: dict[str, int] = {}
        self._rng = rng
        self._noises = 0
        self._old_disks: dict[str, Storage] = {}
        self._rotten: set[str] = set()  # datacenters

    def plan(self, from_us: int, until_us: int) -> None:
        """Schedule the drawn faults between two moments."""
        rng, options = self._rng, self.options
        kinds = [name for name in MENU if getattr(options, name) > 0]
        weights = [getattr(options, name) for name in kinds]
        if not kinds:
            return
        for _ in range(rng.randint(*options.count)):
            kind = rng.choices(kinds, weights)[0]
            when_us = rng.randrange(from_us, until_us)
            low, high = options.duration_us
            duration_us = int(low * (high / low) ** rng.random())  # short ones as often as long ones
            self.world.schedule.at(when_us, self._strike, kind, min(duration_us, until_us - when_us))
            if kind == "old_disk":
                name = rng.choice(list(self.world.hosts))
                self.world.schedule.at(rng.randrange(from_us, when_us + 1), self._copy_disk, name)

    def _strike(self, kind: str, duration_us: int) -> None:
        self.struck[kind] = self.struck.get(kind, 0) + 1
        self.world.trace.add("faults", kind, str(duration_us))
        getattr(self, f"_{kind}")(duration_us)

    # --- whom -------------------------------------------------------------------------------------------------------

    def _host(self) -> Host:
        return self.world.hosts[self._rng.choice(list(self.world.hosts))]

    def _dc(self) -> str:
        return self._rng.choice(self.world.topology.dc_names)

    def _pair(self, names: list[str]) -> tuple[str, str]:
        one, other = self._rng.sample(names, 2)
        return one, other

    def _later(self, duration_us: int, undo: Callable[..., object], *arguments: object) -> None:
        self.world.schedule.after(duration_us, undo, *arguments)

    # --- processes and machines -------------------------------------------------------------------------------------

    def _kill(self, duration_us: int) -> None:
        self._end([self._host()], duration_us, is_power=False)

    def _power_cut(self, duration_us: int) -> None:
        self._end([self._host()], duration_us, is_power=True)

    def _power_cut_dc(self, duration_us: int) -> None:
        self._end([self.world.hosts[name] for name in self.world.nodes_of(self._dc())], duration_us, is_power=True)

    def _power_cut_all(self, duration_us: int) -> None:
        self._end(list(self.world.hosts.values()), duration_us, is_power=True)

    def _kill_at_effect(self, duration_us: int) -> None:
        self._at_effect(duration_us, is_power=False)

    def _power_cut_at_effect(self, duration_us: int) -> None:
        self._at_effect(duration_us, is_power=True)

    def _at_effect(self, duration_us: int, is_power: bool) -> None:
        host = self._host()
        is_at_persist = self._rng.random() < 0.5
        crash = CrashAtEffect(host, self._rng.randrange(60), is_at_persist, lambda: self._end([host], duration_us, is_power))
        self.world.observers.append(crash)

    def _end(self, hosts: list[Host], duration_us: int, is_power: bool) -> None:
        for host in hosts:
            if is_power:
                host.cut_power(is_all_lost=self._rng.random() < 0.4)
            else:
                host.kill()
            self._later(duration_us, host.start)

    def _pause(self, duration_us: int) -> None:
        host = self._host()
        host.pause()
        self._later(duration_us, host.go_on)

    # --- the network ------------------------------------------------------------------------------------------------

    def _cut_node(self, duration_us: int) -> None:
        name = self._host().name
        others = [other for other in self.world.hosts if other != name]
        self.world.network.cut_between([name], others)
        self._later(duration_us, self.world.network.heal_between, [name], others)

    def _cut_one_way(self, duration_us: int) -> None:
        source, target = self._pair(list(self.world.hosts))
        self.world.network.cut(source, target)
        self._later(duration_us, self.world.network.heal, source, target)

    def _cut_dcs(self, duration_us: int) -> None:
        if len(self.world.topology.dc_names) < 2:
            return
        one, other = self._pair(list(self.world.topology.dc_names))
        self.world.network.cut_between([one], [other])
        self._later(duration_us, self.world.network.heal_between, [one], [other])

    def _isolate_dc(self, duration_us: int) -> None:
        dc = self._dc()
        self.world.isolate(dc)
        self._later(duration_us, self.world.rejoin, dc)

    def _noise(self, duration_us: int) -> None:
        network, options = self.world.network, self.options
        network.options.loss, network.options.duplicate = options.loss, options.duplicate
        network.options.reorder = options.reorder
        self._noises += 1
        network.is_faulty = True
        self._later(duration_us, self._quiet)

    def _quiet(self) -> None:
        self._noises -= 1
        self.world.network.is_faulty = self._noises > 0

    # --- clocks and disks -------------------------------------------------------------------------------------------

    def _clock_step(self, duration_us: int) -> None:
        host = self._host()
        by_us = self._rng.randint(-self.options.clock_step_ms_max, self.options.clock_step_ms_max) * MS
        host.clocks.step(by_us)
        self._later(duration_us, host.clocks.step, -by_us)

    def _clock_freeze(self, duration_us: int) -> None:
        host = self._host()
        host.clocks.freeze()
        self._later(duration_us, host.clocks.thaw)

    def _failed_append(self, duration_us: int) -> None:
        self._host().storage.fail_next("append", self._rng.randrange(4))

    def _failed_sync(self, duration_us: int) -> None:
        self._host().storage.fail_next("sync", self._rng.randrange(4))

    def _full_disk(self, duration_us: int) -> None:
        host = self._host()
        host.storage.fill()
        self._later(duration_us, _make_room, host)

    def _slow_disk(self, duration_us: int) -> None:
        host = self._host()
        host.extra_sync_us = self._rng.randrange(5 * MS, 80 * MS)
        self._later(duration_us, setattr, host, "extra_sync_us", 0)

    def _bit_rot(self, duration_us: int) -> None:
        host = self._host()
        if host.dc in self._rotten or not host.rot():
            self.struck["bit_rot"] -= 1
        else:
            self._rotten.add(host.dc)

    def _snapshot(self, duration_us: int) -> None:
        """With a cut above every clock that is up, as a backup draws it."""
        host = self._host()
        clocks = [int(other.node.status()["hlc"]) for other in self.world.hosts.values() if isinstance(other.node, Node)]
        arguments: dict[str, object] = {"name": f"s{self.struck['snapshot']}", "cut": str(max(clocks, default=0))}
        host.ask(AdminRequest("snapshot_create", arguments), lambda reply: None)
        self._later(duration_us, host.ask, AdminRequest("snapshot_remove", arguments), lambda reply: None)

    def _copy_disk(self, name: str) -> None:
        self._old_disks[name] = self.world.hosts[name].storage.copied()

    def _old_disk(self, duration_us: int) -> None:
        for name, storage in self._old_disks.items():
            self._old_disks = {}
            host = self.world.hosts[name]
            host.kill()
            host.replace_disk(storage, "old copy")
            self._later(duration_us, host.start)
            return

    def _wiped_disk(self, duration_us: int) -> None:
        host = self._host()
        host.kill()
        host.replace_disk(host.storage.emptied(), "empty")
        self._later(duration_us, host.start)


def _make_room(host: Host) -> None:
    host.storage.make_room()  # of the disk that is in it by now
