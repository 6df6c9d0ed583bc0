"""The simulated world: datacenters of machines, the network between them and the clients beside it, all from one seed.

    World(seed, options) ── start() ── run(us) / run_until(condition, us) ── checkers look at truth, history and engines

Tests drive it directly: they cut, kill, pause and ask, watch every event and effect of every host (`observers`), and stop the
world at any moment in between. `run` drives it with a drawn workload and drawn faults.

Invariants: everything that happens is a function of the seed and the options; two worlds share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from geokv.core.ring import Member, Ring, partition_of
from geokv.core.topology import Datacenter, Link, NodeSpec, Topology
from geokv.protocol.client.messages import RingMember, RingTold
from geokv.sim.calls import Calls, ring_told
from geokv.sim.clients import DirectClient, SdkClient
from geokv.sim.clocks import ClockOptions, Clocks
from geokv.sim.disks import StorageOptions
from geokv.sim.history import History
from geokv.sim.host import Host, HostOptions, Observer, Recover
from geokv.sim.network import Network, NetworkOptions
from geokv.sim.peers import PeerOptions, Peers
from geokv.sim.real_node import real_node
from geokv.sim.schedule import Schedule, derived_rng
from geokv.sim.trace import Trace
from geokv.sim.truth import Truth


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """The shape of the world and how its parts behave."""

    dcs: int = 3
    nodes_per_dc: int = 3
    replicas: int = 3
    partitions: int = 8
    network: NetworkOptions = field(default_factory=NetworkOptions)
    peers: PeerOptions = field(default_factory=PeerOptions)
    clocks: ClockOptions = field(default_factory=ClockOptions)
    host: HostOptions = field(default_factory=HostOptions)
    storage: StorageOptions = field(default_factory=StorageOptions)


def sim_topology(options: WorldOptions) -> Topology:
    """Datacenters dc1, dc2 …, nodes dc1-n1, dc1-n2 …, each node in a rack of its own; a node's address is its name."""
    datacenters = []
    for number in range(1, options.dcs + 1):
        dc = f"dc{number}"
        nodes = tuple(
            NodeSpec(f"{dc}-n{index}", dc, f"r{index}", 1, f"{dc}-n{index}") for index in range(1, options.nodes_per_dc + 1)
        )
        datacenters.append(Datacenter(dc, options.replicas, nodes))
    names = [dc.name for dc in datacenters]
    links = tuple(Link(one, other, 60) for index, one in enumerate(names) for other in names[index + 1 :])
    return Topology("sim", options.partitions, tuple(datacenters), links)


class World:
    """See the module. `recover` makes the machine of a node; the real one unless a test brings its own."""

    def __init__(
        self, seed: int, options: WorldOptions | None = None, recover: Callable[[Topology], Recover] | None = None
    ) -> None:
        self.seed = seed
        self.options = options or WorldOptions()
        self.schedule = Schedule()
        self.trace = Trace(self.schedule)
        self.history = History()
        self.notes: dict[str, int] = {}
        self.topology = sim_topology(self.options)
        self.rings = {
            dc.name: Ring(self.topology.partitions, [Member(node.name, node.rack) for node in dc.nodes])
            for dc in self.topology.datacenters
        }
        self.network = Network(self.schedule, derived_rng(seed, "network"), replace(self.options.network))
        self.peers = Peers(self.schedule, self.network, derived_rng(seed, "peers"), self.options.peers)
        self.dc_of = {node.name: node.dc for node in self.topology.nodes}
        self.truth = Truth(
            lambda: self.schedule.now_us,
            self.dc_of,
            lambda _: self.options.replicas // 2 + 1,
            lambda name: self.hosts[name].incarnation,
        )
        self.observers: list[Observer] = [self.truth]
        recover_one = (recover or real_node)(self.topology)
        self.hosts = {node.name: self._host(node, recover_one) for node in self.topology.nodes}
        self.peers.join(self.hosts)
        self.calls = Calls(self.schedule, self.network, self.hosts, self._ring_told)
        self._members = [RingMember(node.name, node.dc, node.rack, node.weight, node.address) for node in self.topology.nodes]
        self._clients = 0

    def _host(self, node: NodeSpec, recover: Recover) -> Host:
        self.network.attach(node.name, node.dc)
        clocks = Clocks(self.schedule, derived_rng(self.seed, f"clocks/{node.name}"), self.options.clocks)
        return Host(
            node.name,
            node.dc,
            self.schedule,
            self.trace,
            derived_rng(self.seed, f"host/{node.name}"),
            clocks,
            self.options.host,
            self.options.storage,
            recover,
            self.peers.send,
            self.peers.check_node,
            self.observers,
            self.notes,
        )

    # --- clients ----------------------------------------------------------------------------------------------------

    def _ring_told(self, node: str) -> RingTold:
        replicas = {dc.name: dc.replicas for dc in self.topology.datacenters}
        return ring_told(self._members, self.topology.partitions, replicas, node)

    def sdk_client(self, dc: str) -> SdkClient:
        """A client in `dc` that fails over to the other datacenters in their order."""
        self._clients += 1
        name = f"client{self._clients}-{dc}"
        failover = [other for other in self.topology.dc_names if other != dc]
        rng = derived_rng(self.seed, f"client/{name}")
        return SdkClient(self, name, dc, self.nodes_of(dc), failover, rng)

    def direct_client(self, node: str) -> DirectClient:
        """A client beside `node` that asks only that."""
        self._clients += 1
        return DirectClient(self, f"direct{self._clients}", self.dc_of[node], node)

    # --- time -------------------------------------------------------------------------------------------------------

    @property
    def now_us(self) -> int:
        return self.schedule.now_us

    def run(self, for_us: int) -> None:
        self.schedule.run_until(self.schedule.now_us + for_us)

    def run_until(self, condition: Callable[[], bool], at_most_us: int) -> bool:
        """Go on until `condition()` holds; False where it does not within `at_most_us`."""
        return self.schedule.run_while(lambda: not condition(), at_most_us)

    # --- nodes ------------------------------------------------------------------------------------------------------

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start the processes that do not run (of these nodes, or of all)."""
        for name in names if names is not None else self.hosts:
            self.hosts[name].start()

    def nodes_of(self, dc: str) -> list[str]:
        return [name for name, its_dc in self.dc_of.items() if its_dc == dc]

    def partition(self, key: bytes) -> int:
        return partition_of(key, self.topology.partitions)

    def owners(self, key: bytes, dc: str) -> tuple[str, ...]:
        """The owners of a key in one datacenter, the first one first."""
        return self.rings[dc].owners_of_key(key, self.options.replicas)

    def is_connected(self) -> bool:
        """Every pair of running nodes has a connection that both believe in."""
        names = list(self.hosts)
        return all(self.peers.is_connected(one, other) for index, one in enumerate(names) for other in names[index + 1 :])

    def heal(self) -> None:
        """No more faults: links whole, disks whole and with room, processes run, clocks go."""
        self.network.is_faulty = False
        self.network.heal_all()
        for host in self.hosts.values():
            host.storage.disk.heal()
            host.storage.make_room()
            host.clocks.thaw()
            host.extra_sync_us = 0
            host.go_on()
            host.start()

    def isolate(self, dc: str) -> None:
        """Cut a whole datacenter off from the others, both ways."""
        self.network.cut_between([dc], [other for other in self.topology.dc_names if other != dc])

    def rejoin(self, dc: str) -> None:
        self.network.heal_between([dc], [other for other in self.topology.dc_names if other != dc])

    def clock_error_us(self) -> int:
        """More than any wall clock of this world is off the true time by now."""
        return max(abs(host.clocks.error_us_max) for host in self.hosts.values()) + 500_000

    def digest(self) -> str:
        return self.trace.digest()
