"""A whole lab: nodes, the proxies between them, and the topology that says who reaches whom where.

    ports for the nodes ──> proxy server ──> a proxy per (place, node) ──> topology.toml ──> all nodes at once ──> ready

Nodes are told addresses of the proxies only, apart from those of their own datacenter, so nothing between datacenters can go
round them; clients get theirs from the nodes' ring replies or from the state file, and they are the proxies', too.

Invariants: everything that is started here ends when this process does, however it ends.

Not here: staying alive after the command line has ended (supervisor.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from geokv.core.topology import OUTSIDE, Topology, clients_of, parse_topology, render_topology
from geokv.errors import ConfigurationError, LabError
from geokv.lab.ask import ask_all, why_not_serving
from geokv.lab.ports import HOST, Ports
from geokv.lab.process import NodeProcess, ParentPipe, stop_all, wait_ready
from geokv.lab.state import LabDirectory, LabState
from geokv.lab.wan.links import Links
from geokv.lab.wan.server import Kind, ProxyServer, start_server

SERVING_S_MAX: Final = 60.0
TOPOLOGY_DEFAULT: Final = "three-dc.toml"
SETTINGS_DEFAULT: Final = {"log-segment-bytes": str(16 * 1024 * 1024)}  # nine logs share one disk here


class Lab:
    """A lab that this process runs. Use it in a `with` block, or call `start` and `close`."""

    def __init__(
        self,
        topology: Topology,
        directory: LabDirectory,
        *,
        proxy_kind: Kind | None = None,
        settings: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.topology = topology
        self.directory = directory
        self.nodes: dict[str, NodeProcess] = {}
        self._proxy_kind = proxy_kind
        self._settings = {**SETTINGS_DEFAULT, **(settings or {})}
        self._say = say
        self._ports = Ports()
        self._pipe: ParentPipe | None = None
        self._server: ProxyServer | None = None

    @property
    def links(self) -> Links:
        """The links between its datacenters."""
        return Links(self.topology, self._running_server().proxies())

    @property
    def proxy_kind(self) -> str:
        return self._running_server().kind

    def start(self) -> Self:
        """Start everything; return when every node serves. Raises LabError, with nothing left behind."""
        self.directory.make()
        self._pipe = ParentPipe()
        try:
            self._start_wan()
            self._start_nodes(self._pipe)
            self._wait_serving()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End everything, nodes first. A second time does nothing."""
        stop_all(self.nodes.values())
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._server is not None:
            self._server.close()
            self._server = None
        self._ports.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def state(self, supervisor_pid: int) -> LabState:
        """What other processes need to know of it."""
        server = self._running_server()
        return LabState(
            cluster=self.topology.cluster,
            supervisor_pid=supervisor_pid,
            proxy_kind=server.kind,
            proxy_host=server.host,
            proxy_port=server.port,
            node_pids={name: node.pid for name, node in self.nodes.items() if node.pid is not None},
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def addresses(self, viewpoint: str) -> dict[str, str]:
        """Node name to address, as seen from a viewpoint."""
        return {node.name: self.topology.address(node, viewpoint) for node in self.topology.nodes}

    def client_addresses(self, dc: str) -> list[str]:
        """Where clients near `dc` begin: its nodes first, then the others, all through the proxies."""
        near_first = sorted(self.topology.nodes, key=lambda node: node.dc != dc)
        return [self.topology.address(node, clients_of(dc)) for node in near_first]

    def _running_server(self) -> ProxyServer:
        if self._server is None:
            raise LabError("the lab does not run")
        return self._server

    def _start_wan(self) -> None:
        direct = {node.name: f"{HOST}:{self._ports.reserve(_port_of(node.address))}" for node in self.topology.nodes}
        self._server = start_server(self.directory.path, self._proxy_kind)
        self._say(f"proxies: {self._server.kind}, version {self._server.version}")
        self.topology = Links(self.topology, self._server.proxies()).build(direct)
        self.directory.topology_path.write_text(render_topology(self.topology), encoding="utf-8")

    def _start_nodes(self, pipe: ParentPipe) -> None:
        for node in self.topology.nodes:
            process = NodeProcess(
                node.name, self.directory.topology_path, self.directory.nodes / node.name, pipe, self._settings
            )
            self.nodes[node.name] = process
            process.start()
        wait_ready(self.nodes.values())

    def _wait_serving(self) -> None:
        """A node that listens may still be asking its peers whether its disk is complete."""
        deadline_s = time.monotonic() + SERVING_S_MAX
        waiting = self.addresses(OUTSIDE)
        while waiting:
            found = ask_all(waiting, "status", timeout_s=2.0)
            reasons = {name: why_not_serving(said) for name, said in found.items()}
            waiting = {name: address for name, address in waiting.items() if reasons[name]}
            for name in waiting:
                self.nodes[name].is_ready()  # raises where it has ended
            if waiting and time.monotonic() > deadline_s:
                name = next(iter(waiting))
                raise LabError(f"node {name} does not serve after {SERVING_S_MAX:g} s: {reasons[name]}")
            if waiting:
                time.sleep(0.05)


def _port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def read_topology(path: str | Path | None) -> Topology:
    """Read a topology file; None is the three datacenters that come with geokv. Raises ConfigurationError."""
    wanted = _shipped(TOPOLOGY_DEFAULT) if path is None else Path(path)
    try:
        return parse_topology(wanted.read_text(encoding="utf-8"), str(wanted))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the topology {wanted} cannot be read: {error}") from error


def _shipped(name: str) -> Path:
    """A file of topology/: beside the package in a checkout, inside it where it was installed from a wheel."""
    package = Path(__file__).resolve().parent
    in_checkout = package.parents[1] / "topology" / name
    return in_checkout if in_checkout.exists() else package / "topology" / name
