"""The three datacenters as containers: what docker-compose.geo.yml needs besides the nodes themselves.

Every datacenter is a network of its own, and the proxy server is the only container that stands on all of them:

    host ── published ports ──┐
                              │
    network eu-west ───── toxiproxy ───── network us-east          eu-west-1 at home:       eu-west-1:7100
    eu-west-1 -2 -3           │           us-east-1 -2 -3          from us-east:            toxiproxy:22101
                       network ap-south                            clients near ap-south:   127.0.0.1:11101
                       ap-south-1 -2 -3                            from outside:            127.0.0.1:8101

    python -m geokv.lab.compose topology topology/three-dc.toml    print the same cluster with these addresses
    python -m geokv.lab.compose links --topology FILE              make the proxies that FILE names, set their links
    python -m geokv.lab.compose health 127.0.0.1:7100              exit 0 where a node serves: the health check

Invariants: ports follow from the order of datacenters and nodes in the file, so they never depend on what runs.
`links` a second time changes nothing where all proxies stand: what `geokv wan` has done to a link stays done.

Not here: the links themselves (geokv.lab.wan.links), and docker-compose.geo.yml, which a test holds against the
topology.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from geokv.core.topology import OUTSIDE, NodeSpec, Topology, clients_of, parse_topology, render_topology
from geokv.errors import GeokvError, LabError, Unavailable

if TYPE_CHECKING:  # each subcommand imports what it needs: the health check runs every few seconds in every node
    from geokv.lab.wan.links import Links
    from geokv.lab.wan.proxies import Proxies, ProxyState

PROXY_HOST: Final = "toxiproxy"
API_PORT: Final = 8474  # Toxiproxy's own
PUBLISHED_HOST: Final = "127.0.0.1"
NODE_PORT: Final = 7100
# The last three digits of a proxy's port say which node it leads to (datacenter, place in it), the rest who asks. Those on
# the host lie apart from the ports that a lab takes (7101 and on, 15000 and on), so that both run side by side.
NODES_PER_DC_MAX: Final = 99
DCS_MAX: Final = 6
OUTSIDE_PORTS: Final = 8_000
CLIENTS_PORTS: Final = 9_000
DC_PORTS: Final = 21_000
PORTS_PER_VIEW: Final = 1_000
ANSWER_S_MAX: Final = 60.0
HEALTH_S_MAX: Final = 4.0
POLL_S: Final = 0.2

HEADER: Final = """\
# The cluster of {source} as docker-compose.geo.yml runs it: the same datacenters, nodes and links, other addresses.
# Between datacenters, and from the host, every address is a port of the proxy server.
#
# Made by `python -m geokv.lab.compose topology topology/{source}`; change that file and make this one again.

"""


# --- addresses


def compose_topology(topology: Topology) -> Topology:
    """The same cluster with its addresses as containers. Raises LabError where it is too large for the ports."""
    if len(topology.datacenters) > DCS_MAX:
        raise LabError(f"{len(topology.datacenters)} datacenters; the ports suffice for {DCS_MAX}")
    for dc in topology.datacenters:
        if len(dc.nodes) > NODES_PER_DC_MAX:
            raise LabError(f"datacenter {dc.name} has {len(dc.nodes)} nodes; the ports suffice for {NODES_PER_DC_MAX}")
    direct = {node.name: f"{node.name}:{NODE_PORT}" for node in topology.nodes}
    return topology.with_addresses(direct, {node.name: _views(topology, node) for node in topology.nodes})


def _views(topology: Topology, node: NodeSpec) -> dict[str, str]:
    """Viewpoint to address, for every viewpoint that needs a proxy to this node."""
    dcs = topology.dc_names
    place = 100 * (dcs.index(node.dc) + 1) + topology.datacenter(node.dc).nodes.index(node) + 1
    views = {OUTSIDE: f"{PUBLISHED_HOST}:{OUTSIDE_PORTS + place}"}
    for index, dc in enumerate(dcs):
        views[clients_of(dc)] = f"{PUBLISHED_HOST}:{CLIENTS_PORTS + index * PORTS_PER_VIEW + place}"
        if dc != node.dc:
            views[dc] = f"{PROXY_HOST}:{DC_PORTS + index * PORTS_PER_VIEW + place}"
    return views


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def render(topology: Topology, source: str) -> str:
    """The file topology/compose-*.toml for a topology file called `source`."""
    return HEADER.format(source=source) + render_topology(compose_topology(topology))


def host_addresses(dc: str = "") -> list[str]:
    """Where clients on the host begin: near datacenter `dc`, its nodes first, or (no such datacenter) outside."""
    topology = _on_host()
    viewpoint = clients_of(dc) if dc in topology.dc_names else OUTSIDE
    return [topology.address(node, viewpoint) for node in sorted(topology.nodes, key=lambda node: node.dc != dc)]


def host_links() -> Links:
    """The links, as the host changes them. Raises LabError where nothing answers there."""
    from geokv.lab.wan.links import Links
    from geokv.lab.wan.proxies import Proxies

    proxies = Proxies(PUBLISHED_HOST, API_PORT)
    try:
        proxies.probe()
    except LabError as error:
        raise LabError(
            f"no Toxiproxy answers on {PUBLISHED_HOST}:{API_PORT}; start the containers with "
            "`docker compose -f docker-compose.geo.yml up`"
        ) from error
    return Links(_on_host(), proxies)


def _on_host() -> Topology:
    from geokv.lab.lab import read_topology

    return compose_topology(read_topology(None))


# --- links


def set_links(topology: Topology, proxies: Proxies) -> bool:
    """Make every proxy that the topology names, with its link; False where all stood already. Raises LabError."""
    from geokv.lab.wan.links import Links, proxy_name

    links = Links(topology, proxies)
    wanted = {
        proxy_name(view, node.name): (port_of(node.address_from(view)), node.address)
        for view, dc in links.rows()
        for node in topology.datacenter(dc).nodes
    }
    standing = proxies.states()
    if _is_complete(wanted, standing):
        return False
    for name in wanted.keys() & standing.keys():
        proxies.delete(name)
    links.build(
        {node.name: node.address for node in topology.nodes},
        # On every network: who may reach which port is decided by who is on a network at all.
        lambda view, node: f"0.0.0.0:{port_of(node.address_from(view))}",
    )
    return True


def _is_complete(wanted: Mapping[str, tuple[int, str]], standing: Mapping[str, ProxyState]) -> bool:
    return all(
        name in standing and (port_of(standing[name].listen), standing[name].upstream) == place
        for name, place in wanted.items()
    )


def wait_for(proxies: Proxies, timeout_s: float) -> str:
    """Wait until the proxy server answers; its version. Raises LabError with what it said last."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return proxies.probe()
        except LabError as error:
            if time.monotonic() > deadline_s:
                raise LabError(f"no proxy server after {timeout_s:g} s: {error}") from error
        time.sleep(POLL_S)


# --- health


def check_health(address: str, timeout_s: float = HEALTH_S_MAX) -> None:
    """Ask the standard health service of a node. Raises Unavailable where it does not serve."""
    import grpc
    from grpc_health.v1 import health_pb2

    from geokv.runtime.credentials import open_sync_channel
    from geokv.runtime.methods import HEALTH_CHECK

    with open_sync_channel(address) as channel:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH_CHECK.path)
        try:
            answer = ask(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            raise Unavailable(f"{address} does not answer: {error.details()}") from error
    status = health_pb2.HealthCheckResponse.FromString(answer).status
    if status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(f"{address} is {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}")


# --- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """One of the three subcommands; 1 with one line on standard error where it fails."""
    options = _parser().parse_args(arguments)
    try:
        said = _run(options)
    except GeokvError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(said)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m geokv.lab.compose", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    topology = commands.add_parser("topology", help="print a topology with the addresses that it has as containers")
    topology.add_argument("file", type=Path)
    links = commands.add_parser("links", help="make the proxies and set the links of a topology")
    links.add_argument("--topology", type=Path, required=True, help="file with the addresses of all viewpoints")
    links.add_argument("--toxiproxy", default=f"{PROXY_HOST}:{API_PORT}", help="host:port of the proxy server (%(default)s)")
    links.add_argument("--wait-s", type=float, default=ANSWER_S_MAX, help="how long to wait for it (%(default)s)")
    health = commands.add_parser("health", help="exit 0 where the node at an address serves")
    health.add_argument("address")
    return parser


def _run(options: argparse.Namespace) -> str:
    match options.command:
        case "topology":
            return render(_read(options.file), options.file.name)
        case "links":
            return _set_links(_read(options.topology), options.toxiproxy, options.wait_s)
        case _:
            check_health(options.address)
            return ""


def _set_links(topology: Topology, toxiproxy: str, wait_s: float) -> str:
    from geokv.lab.wan.proxies import Proxies
    from geokv.runtime.credentials import split_address

    proxies = Proxies(*split_address(toxiproxy))
    version = wait_for(proxies, wait_s)
    done = "made" if set_links(topology, proxies) else "stood already, left as they are"
    count = sum(len(node.seen_from) for node in topology.nodes)
    return f"{count} proxies of Toxiproxy {version} {done}\n"


def _read(path: Path) -> Topology:
    try:
        return parse_topology(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"the topology {path} cannot be read: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
