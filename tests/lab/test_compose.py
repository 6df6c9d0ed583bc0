"""docker-compose.geo.yml against topology/three-dc.toml, the code that its containers run, and (docker) all of it for real."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2

from geokv.core.topology import OUTSIDE, Topology, clients_of, parse_topology
from geokv.errors import LabError, Unavailable
from geokv.lab import compose
from geokv.lab.ports import Ports
from geokv.lab.wan.links import Links, proxy_name
from geokv.lab.wan.server import ProxyServer, start_server
from geokv.runtime.methods import HEALTH_CHECK
from geokv.server.config import SETTINGS, read_config
from geokv.testing import Cluster
from tests.lab.compose_drill import wait_until

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.geo.yml"
COMPOSE_TOPOLOGY = ROOT / "topology" / "compose-three-dc.toml"
FILE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IN_IMAGE = {"/etc/geokv": ROOT / "topology"}  # what the Dockerfile copies where
PROXY, ONE_SHOT = "toxiproxy", "links"


def topology_of(path: Path) -> Topology:
    return parse_topology(path.read_text(), path.name)


BASE = topology_of(ROOT / "topology" / "three-dc.toml")
PLACED = topology_of(COMPOSE_TOPOLOGY)
NODES = {node.name: node for node in PLACED.nodes}


def settings_of(node: str) -> dict[str, str]:
    return {name: str(value) for name, value in SERVICES[node]["environment"].items()}


# --- the file against the topology


def test_the_topology_of_the_containers_is_made_from_three_dc() -> None:
    """The committed file is what the generator makes now: same datacenters, nodes, racks, replicas, partitions, links."""
    assert COMPOSE_TOPOLOGY.read_text() == compose.render(BASE, "three-dc.toml")
    assert compose.compose_topology(BASE) == PLACED
    addresses = {node.name: node.address for node in BASE.nodes}
    assert PLACED.with_addresses(addresses) == BASE


def test_every_node_of_the_topology_is_a_container_and_nothing_else_is() -> None:
    """Nodes, the proxy server and the one-shot; each node is told its own name and keeps its log on its own volume."""
    assert set(SERVICES) == {*NODES, PROXY, ONE_SHOT}
    for name in NODES:
        assert settings_of(name)["GEOKV_NODE"] == SERVICES[name]["hostname"] == name
        assert SERVICES[name]["volumes"] == [f"{name}:{settings_of(name)['GEOKV_DIRECTORY']}"]
    assert set(FILE["volumes"]) == set(NODES)


def test_a_node_stands_on_the_network_of_its_datacenter_only() -> None:
    """Each datacenter is an internal network, which has no way out; only the proxy server stands on several."""
    for name, node in NODES.items():
        assert SERVICES[name]["networks"] == [node.dc]
    assert SERVICES[ONE_SHOT]["networks"] == ["outside"]
    assert set(SERVICES[PROXY]["networks"]) == {"outside", *PLACED.dc_names} == set(FILE["networks"])
    assert {name for name, network in FILE["networks"].items() if network.get("internal")} == set(PLACED.dc_names)


def test_nothing_goes_round_the_networks() -> None:
    """No container takes the host's network or another's, and no node has a published port, a shared folder or a socket."""
    forbidden = {"network_mode", "links", "external_links", "extra_hosts", "privileged", "pid", "ipc", "cap_add", "devices"}
    for name, service in SERVICES.items():
        assert forbidden.isdisjoint(service), name
        assert (name == PROXY) == ("ports" in service), name


def test_every_address_of_the_topology_is_a_listener_of_the_file() -> None:
    """At home the container itself, from other datacenters a port of the proxy server, from the host a published port."""
    wanted = set()
    for node in PLACED.nodes:
        assert node.address == f"{node.name}:{compose.port_of(settings_of(node.name)['GEOKV_LISTEN'])}"
        for view, address in node.seen_from:
            host = compose.PUBLISHED_HOST if view == OUTSIDE or view.startswith("clients.") else PROXY
            assert address == f"{host}:{compose.port_of(address)}"
            wanted |= {compose.port_of(address)} if host != PROXY else set()
        assert {view for view, _ in node.seen_from} == set(PLACED.viewpoints()) - {node.dc}
    assert published() == {port: port for port in (*wanted, compose.API_PORT)}


def published() -> dict[int, int]:
    """Port on the host's loopback to port in the proxy server's container."""
    ports: dict[int, int] = {}
    for line in SERVICES[PROXY]["ports"]:
        host, outer, inner = line.split(":")
        assert host == compose.PUBLISHED_HOST, "plaintext is for loopback only"
        ports.update(zip(span(outer), span(inner), strict=True))
    return ports


def span(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def test_every_node_is_given_settings_that_it_knows() -> None:
    """Each GEOKV_ variable is a setting; together they are a configuration, for a topology that is in the image."""
    known = {setting.variable for setting in SETTINGS}
    for name in NODES:
        assert settings_of(name).keys() <= known
        config = read_config({}, settings_of(name))
        assert IN_IMAGE[str(config.topology.parent)] / config.topology.name == COMPOSE_TOPOLOGY
        assert config.allow_plaintext_network and SERVICES[name]["command"] == ["serve"]
        assert any(mount.startswith("/tmp:") for mount in SERVICES[name]["tmpfs"])


def test_the_one_shot_sets_the_links_of_the_same_topology() -> None:
    """Its command parses, names that file and the proxy server, and the nodes wait until it has ended well."""
    command = SERVICES[ONE_SHOT]["command"]
    options = compose._parser().parse_args(command)
    assert options.command == "links" and options.toxiproxy == f"{PROXY}:{compose.API_PORT}"
    assert IN_IMAGE[str(options.topology.parent)] / options.topology.name == COMPOSE_TOPOLOGY
    assert SERVICES[ONE_SHOT]["entrypoint"] == ["python", "-m", "geokv.lab.compose"]
    for name in NODES:
        assert SERVICES[name]["depends_on"] == {ONE_SHOT: {"condition": "service_completed_successfully"}}


def test_the_health_check_asks_the_node_where_it_listens() -> None:
    """The command of every node's health check parses, and leads to the port of GEOKV_LISTEN inside the container."""
    for name in NODES:
        kind, *command = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD" and command[:3] == ["python", "-m", "geokv.lab.compose"]
        options = compose._parser().parse_args(command[3:])
        assert options.command == "health"
        assert options.address == f"127.0.0.1:{compose.port_of(settings_of(name)['GEOKV_LISTEN'])}"


def test_every_container_is_confined() -> None:
    """Read-only root, no capability, no new privilege, not root, and limits on memory, CPU, processes and logs."""
    for name, service in SERVICES.items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "memswap_limit", "cpus", "pids_limit"} <= service.keys(), name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
    assert SERVICES[PROXY]["user"].split(":")[0] != "0"
    assert "\nUSER 10001:10001\n" in DOCKERFILE.rpartition("\nFROM ")[2]


def test_the_file_keeps_to_what_both_compose_versions_understand() -> None:
    """docker-compose 1.29 refuses `name` and ignores the limits under `deploy`; version 2 warns of `version`."""
    assert FILE.keys() - {"services", "networks", "volumes"} == {"x-node", "x-settings"}
    assert all("deploy" not in service for service in SERVICES.values())
    builders = [name for name, service in SERVICES.items() if "build" in service]
    assert builders == [ONE_SHOT], "built once: the nodes use the image that the one-shot builds"
    for name in (*NODES, ONE_SHOT):
        assert SERVICES[name]["image"] == "geokv:latest"
        assert SERVICES[name]["pull_policy"] == "never", "version 2 asks a registry for it before it builds"
    assert SERVICES[PROXY]["image"] == "ghcr.io/shopify/toxiproxy:2.12.0"


def test_the_build_context_holds_what_the_dockerfile_copies() -> None:
    """.dockerignore lets in each source of a COPY, and nothing else; the image's entry point is geokv."""
    copies = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line]
    copied = {source for sources in copies for source in sources}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == let_in and all((ROOT / source).exists() for source in copied)
    assert 'ENTRYPOINT ["geokv"]' in DOCKERFILE and "COPY topology /etc/geokv" in DOCKERFILE
    assert "http" not in DOCKERFILE.replace("https_proxy", ""), "no address of an index or of anything else"


@pytest.mark.docker
@pytest.mark.parametrize("command", [["docker-compose"], ["docker", "compose"]], ids=["version 1", "version 2"])
def test_compose_accepts_the_file(command: list[str]) -> None:
    """`config` exits 0 with each version of compose that is installed, and finds the services of the file."""
    if subprocess.run([*command, "version"], capture_output=True, check=False, timeout=30).returncode:
        pytest.skip(f"{' '.join(command)} is not installed")
    ran = subprocess.run(
        [*command, "-f", COMPOSE_FILE, "config", "--services"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) == set(SERVICES)


# --- addresses for the host


def test_a_topology_beyond_the_ports_is_refused() -> None:
    """More datacenters than there are thousands of ports: an error, not two proxies on one port."""
    dcs = [
        f'[[datacenter]]\nname = "dc{n}"\nreplicas = 1\n[[datacenter.node]]\nname = "n{n}"\nrack = "a"\naddress = "h:{n + 1}"'
        for n in range(7)
    ]
    links = [f'[[link]]\nfrom = "dc{a}"\nto = "dc{b}"\nround_trip_ms = 1' for a in range(7) for b in range(a)]
    with pytest.raises(LabError, match="7 datacenters; the ports suffice for 6"):
        compose.compose_topology(parse_topology("\n".join(['cluster = "seven"', *dcs, *links])))


def test_clients_on_the_host_begin_near_their_datacenter() -> None:
    """The nodes of the stated datacenter first, at the ports of its clients; without one the ports of outside."""
    near = compose.host_addresses("us-east")
    assert near[:3] == ["127.0.0.1:10201", "127.0.0.1:10202", "127.0.0.1:10203"] and len(set(near)) == 9
    assert compose.host_addresses()[0] == "127.0.0.1:8101"
    assert set(near).isdisjoint(compose.host_addresses())


# --- the links


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyServer]:
    with start_server(tmp_path_factory.mktemp("wan")) as running:
        yield running


@pytest.fixture
def placed() -> Iterator[Topology]:
    """Two datacenters of one node, with free ports of this machine for all viewpoints."""
    ports = Ports()
    dcs = [
        f'[[datacenter]]\nname = "{dc}"\nreplicas = 1\n[[datacenter.node]]\nname = "{dc}-1"\nrack = "a"\naddress = "{dc}-1:1"'
        for dc in ("eu", "us")
    ]
    link = '[[link]]\nfrom = "eu"\nto = "us"\nround_trip_ms = 41\njitter_ms = 2'
    topology = parse_topology("\n".join(['cluster = "two"', *dcs, link]))
    views = {
        "eu-1": ("us", OUTSIDE, clients_of("eu"), clients_of("us")),
        "us-1": ("eu", OUTSIDE, clients_of("eu"), clients_of("us")),
    }
    seen = {name: {view: f"127.0.0.1:{ports.reserve()}" for view in each} for name, each in views.items()}
    yield topology.with_addresses({name: f"127.0.0.1:{ports.reserve()}" for name in views}, seen)
    ports.close()


def test_links_are_made_at_the_ports_that_the_topology_names(server: ProxyServer, placed: Topology) -> None:
    """Every viewpoint's address is a proxy to the node, with half of the round trip on each direction of a link."""
    proxies = server.proxies()
    assert compose.set_links(placed, proxies)
    states = proxies.states()
    for node in placed.nodes:
        for view, address in node.seen_from:
            state = states[proxy_name(view, node.name)]
            assert (compose.port_of(state.listen), state.upstream) == (compose.port_of(address), node.address)
    by_row = {(link.from_view, link.to_dc): link for link in Links(placed, proxies).show()}
    assert (by_row["eu", "us"].round_trip_ms, by_row["eu", "us"].jitter_ms) == (41, 2)
    assert by_row["us", "eu"].round_trip_ms == by_row[clients_of("eu"), "us"].round_trip_ms == 41
    assert by_row[OUTSIDE, "us"].round_trip_ms is by_row[clients_of("us"), "us"].round_trip_ms is None


def test_links_that_stand_are_left_as_they_are(server: ProxyServer, placed: Topology) -> None:
    """`up` a second time does not heal what `geokv wan` has cut."""
    proxies = server.proxies()
    assert compose.set_links(placed, proxies)
    Links(placed, proxies).cut("eu", "us")
    assert not compose.set_links(placed, proxies)
    assert Links(placed, proxies).condition("eu", "us") == "cut"


def test_links_that_are_not_whole_are_made_anew(server: ProxyServer, placed: Topology) -> None:
    """A proxy that is missing, or leads elsewhere, as after an interruption or a change of the topology."""
    proxies = server.proxies()
    compose.set_links(placed, proxies)
    proxies.delete(proxy_name("eu", "us-1"))
    assert compose.set_links(placed, proxies)
    assert Links(placed, proxies).condition("eu", "us") == "up"
    moved = placed.with_addresses(
        {node.name: "127.0.0.1:9" for node in placed.nodes}, {n.name: dict(n.seen_from) for n in placed.nodes}
    )
    assert compose.set_links(moved, proxies)
    assert {state.upstream for state in proxies.states().values()} == {"127.0.0.1:9"}


def test_the_one_shot_ends_with_an_error_where_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No proxy server, or no topology: exit code 1 and the reason, so that no node starts."""
    nowhere = ["--toxiproxy", "127.0.0.1:1", "--wait-s", "0.3"]
    assert compose.main(["links", "--topology", str(COMPOSE_TOPOLOGY), *nowhere]) == 1
    assert "no proxy server after" in capsys.readouterr().err
    assert compose.main(["links", "--topology", str(tmp_path / "none.toml")]) == 1
    assert "cannot be read" in capsys.readouterr().err


# --- the health check


def test_the_health_check_passes_where_a_node_serves() -> None:
    """Against a real node; starting one takes over a second."""
    with Cluster() as cluster:
        # Its cluster waits until it listens; it serves as soon as it knows that its disk is complete.
        wait_until(lambda: compose.main(["health", cluster.address]) == 0, "the node serves", 20.0)
    assert compose.main(["health", cluster.address]) == 1


def test_the_health_check_fails_where_a_node_does_not_serve() -> None:
    """A node that listens but takes no calls yet (or no more) is not healthy, by the standard's own status."""
    answer = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING).SerializeToString()
    service, method = HEALTH_CHECK.service, HEALTH_CHECK.name
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[grpc.method_handlers_generic_handler(service, {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(Unavailable, match="NOT_SERVING"):
            compose.check_health(f"127.0.0.1:{port}")
    finally:
        server.stop(None).wait()


# --- all of it, for real


PROJECT = "geokv-test"


@pytest.fixture(scope="module")
def containers() -> Iterator[str]:
    """The containers, built and up under a project name of their own; gone afterwards, volumes and all."""
    tool = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    if subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=30).returncode:
        pytest.skip("no Docker daemon answers")
    command = [*tool, "-f", str(COMPOSE_FILE), "-p", PROJECT]
    run(["docker", "build", "--network", "host", "-t", "geokv:latest", str(ROOT)], 900)
    try:
        run([*command, "up", "-d"], 300)
        yield PROJECT
    finally:
        run([*command, "down", "-v"], 120)


def run(command: list[str], timeout_s: float) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    assert ran.returncode == 0, f"{command}: {ran.stdout[-2_000:]} {ran.stderr[-2_000:]}"


@pytest.mark.docker
@pytest.mark.timeout(1_500)  # an image is built, nine nodes start, and a datacenter is away for 12 s
def test_clients_outlive_the_loss_of_a_datacenter_of_containers(containers: str) -> None:
    """Nothing acknowledged is lost, clients go on elsewhere within 5 s, and no byte crosses but through the proxies."""
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("compose_drill.py"), "--project", containers],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    print(ran.stdout)
    assert all(count > 100 for count in seen["acknowledged"].values())
    assert seen["settled"]["replicas"] == 9 and seen["settled"]["wrong_values"] == 0
    assert seen["served_again_s"] - seen["cut_took_s"] < 5 and set(seen["served_by_while_lost"]) <= {"eu-west", "ap-south"}
    assert seen["reaches"] == {"eu-west-2": True, "us-east-1": False, "ap-south-1": False}
    if os.geteuid() == 0:
        for dc, counted in seen["traffic_bytes"].items():
            assert counted["with_others"] == 0, dc
            assert min(counted["with_toxiproxy"], counted["among_nodes"]) > 100_000, dc
