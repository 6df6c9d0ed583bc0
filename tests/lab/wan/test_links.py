"""Links and the driver under them, against both proxy servers: what changes as one, and what a loss is."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geokv.core.topology import OUTSIDE, Topology, clients_of, parse_topology, render_topology
from geokv.errors import InvalidRequest, LabError
from geokv.lab.wan.links import Links, proxy_name
from geokv.lab.wan.proxies import Proxies, ToxicSpec
from geokv.lab.wan.server import Kind, ProxyServer, has_real, start_server
from tests.lab.wan.conftest import WAIT_S, Upstream, address_of, echo, read_exactly

NODES = {"eu-1": "eu", "eu-2": "eu", "us-1": "us", "asia-1": "asia"}
SLACK_S = 0.002


def layout() -> Topology:
    """Three datacenters, one of two nodes; addresses are replaced by `build`."""
    lines = ['cluster = "links"']
    for dc in ("eu", "us", "asia"):
        lines += ["[[datacenter]]", f'name = "{dc}"', "replicas = 1"]
        for number, (node, home) in enumerate(NODES.items()):
            if home == dc:
                lines += [
                    "[[datacenter.node]]",
                    f'name = "{node}"',
                    'rack = "a"',
                    f'address = "h:{number + 1}"',
                ]
    for one, other, round_trip_ms in (("eu", "us", 41), ("eu", "asia", 60), ("us", "asia", 80)):
        lines += ["[[link]]", f'from = "{one}"', f'to = "{other}"', f"round_trip_ms = {round_trip_ms}"]
    return parse_topology("\n".join(lines))


class Wan:
    """Links over echo servers that stand for nodes."""

    def __init__(self, links: Links, resolved: Topology) -> None:
        self.links = links
        self.resolved = resolved

    def reaches(self, viewpoint: str, node: str, within_s: float = 2.0) -> bool:
        """Whether an echo comes back from a node."""
        try:
            with socket.create_connection(address_of(self.resolved.address(node, viewpoint)), within_s) as connection:
                connection.sendall(b"ping")
                return read_exactly(connection, 4) == b"ping"
        except (ConnectionError, TimeoutError):
            return False

    def silent(self, viewpoint: str, node: str) -> bool:
        """Whether no echo comes back for a while."""
        return not self.reaches(viewpoint, node, within_s=0.4)


@pytest.fixture(scope="module")
def wan(server: ProxyServer) -> Iterator[Wan]:
    upstreams = {name: Upstream(echo) for name in NODES}
    links = Links(layout(), server.proxies())
    addresses = {name: f"127.0.0.1:{upstream.address[1]}" for name, upstream in upstreams.items()}
    yield Wan(links, links.build(addresses))
    for name in server.proxies().states():
        server.proxies().delete(name)
    for upstream in upstreams.values():
        upstream.close()


@pytest.fixture(autouse=True)
def healed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "wan" in request.fixturenames:
        request.getfixturevalue("wan").links.heal_all()


def test_every_viewpoint_has_its_own_address(wan: Wan) -> None:
    """No two viewpoints share a way to a node, and none but its own datacenter has the direct one."""
    for node, dc in NODES.items():
        spec = wan.resolved.node(node)
        views = [view for view in wan.resolved.viewpoints() if view != dc]
        found = [wan.resolved.address(node, view) for view in views]
        assert len(set(found)) == len(views) == 6
        assert spec.address not in found
    assert parse_topology(render_topology(wan.resolved)) == wan.resolved


def test_links_show_what_the_topology_says(wan: Wan) -> None:
    """Round trips are read back whole from their two halves, an odd millisecond included."""
    shown = {(link.from_view, link.to_dc): link for link in wan.links.show()}
    assert len(shown) == 6 + 9 + 3
    assert shown["us", "eu"].round_trip_ms == shown[clients_of("eu"), "us"].round_trip_ms == 41
    assert shown["eu", "asia"].round_trip_ms == 60
    assert shown[clients_of("eu"), "eu"].round_trip_ms is None
    assert shown["us", "eu"].proxies == 2
    assert {link.condition for link in shown.values()} == {"up"}


def test_latency_of_a_link_is_felt(wan: Wan) -> None:
    """A round trip over a link takes its time, for nodes and for clients."""
    for viewpoint in ("eu", clients_of("eu")):
        started_s = time.monotonic()
        assert wan.reaches(viewpoint, "asia-1")
        assert time.monotonic() - started_s >= 0.060 - SLACK_S


def test_latency_changes_as_one(wan: Wan) -> None:
    """set_latency reaches every proxy of both directions, while they are used."""
    wan.links.set_latency("eu", "us", 100, jitter_ms=3)
    shown = {(link.from_view, link.to_dc): link for link in wan.links.show()}
    changed = {row for row, link in shown.items() if link.round_trip_ms == 100 and link.jitter_ms == 3}
    assert changed == {("eu", "us"), ("us", "eu"), (clients_of("eu"), "us"), (clients_of("us"), "eu")}
    wan.links.set_latency("eu", "us", 41)


def test_bandwidth_is_shared_out_and_lifted(wan: Wan, server: ProxyServer) -> None:
    """A limit is divided by the pairs of nodes, belongs to nodes only, and goes away again."""
    wan.links.set_bandwidth("eu", "us", 1000)
    share = server.proxies().state(proxy_name("us", "eu-2")).toxic("bandwidth_upstream")
    assert share is not None and share.attributes == {"rate": 500}
    shown = {(link.from_view, link.to_dc): link.bandwidth_kb_s for link in wan.links.show()}
    assert {row for row, rate in shown.items() if rate is not None} == {("eu", "us"), ("us", "eu")}
    assert shown["eu", "us"] == 1000
    wan.links.set_bandwidth("eu", "us", None)
    assert {link.bandwidth_kb_s for link in wan.links.show()} == {None}


def test_cut_is_a_black_hole_and_heals(wan: Wan) -> None:
    """A cut link swallows both ways and leaves the others alone; healing keeps its latency."""
    wan.links.cut("eu", "us")
    assert wan.silent("eu", "us-1") and wan.silent("us", "eu-1") and wan.silent(clients_of("us"), "eu-2")
    assert wan.reaches("eu", "asia-1") and wan.reaches("asia", "us-1")
    assert wan.links.condition("eu", "us") == wan.links.condition("us", "eu") == "cut"
    wan.links.cut("eu", "us")  # twice is once
    wan.links.heal("eu", "us")
    assert wan.reaches("eu", "us-1") and wan.reaches("us", "eu-1")
    assert {link.condition for link in wan.links.show()} == {"up"}
    assert {link.round_trip_ms for link in wan.links.show() if link.from_view == "us"} == {41, 80}


def test_cut_one_way_leaves_the_other(wan: Wan) -> None:
    """both_ways=False is for one-way failures."""
    wan.links.cut("eu", "us", both_ways=False)
    assert wan.silent("eu", "us-1")
    assert wan.reaches("us", "eu-1")


def test_refused_link_refuses(wan: Wan) -> None:
    """refuse gives "connection refused", on the same addresses before and after."""
    wan.links.refuse("us", "asia")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address_of(wan.resolved.address("asia-1", "us")), WAIT_S)
    assert wan.links.condition("us", "asia") == "refused"
    wan.links.heal("us", "asia")
    assert wan.reaches("us", "asia-1")


def test_lost_datacenter_is_lost_for_all_but_its_clients_live(wan: Wan) -> None:
    """Nobody reaches it, its nodes reach nobody, its clients reach the others."""
    wan.links.lose_dc("eu")
    for viewpoint in ("us", "asia", OUTSIDE, clients_of("eu"), clients_of("us")):
        assert wan.silent(viewpoint, "eu-1"), viewpoint
    assert wan.silent("eu", "us-1")
    assert wan.reaches(clients_of("eu"), "us-1")
    assert wan.reaches("us", "asia-1")
    wan.links.heal_dc("eu")
    assert {link.condition for link in wan.links.show()} == {"up"}
    assert wan.reaches(clients_of("eu"), "eu-2")


def test_isolated_datacenter_keeps_its_clients_inside(wan: Wan) -> None:
    """Its clients reach it and nothing else; others do not reach it; outside still sees it."""
    wan.links.isolate_dc("eu")
    assert wan.reaches(clients_of("eu"), "eu-1") and wan.reaches(OUTSIDE, "eu-2")
    assert wan.silent(clients_of("eu"), "us-1") and wan.silent(clients_of("us"), "eu-1")
    assert wan.silent("eu", "asia-1") and wan.silent("asia", "eu-1")
    assert wan.reaches("us", "asia-1")


def test_sent_bytes_are_counted_per_link(wan: Wan) -> None:
    """What went over a link and back is counted there and nowhere else."""
    before = wan.links.sent_bytes()
    assert wan.reaches("asia", "us-1")
    row = ("asia", "us")
    deadline_s = time.monotonic() + WAIT_S
    while wan.links.sent_bytes()[row] < before[row] + 8 and time.monotonic() < deadline_s:
        threading.Event().wait(0.02)
    after = wan.links.sent_bytes()
    assert {row: after[row] - before[row] for row in after if after[row] != before[row]} == {row: 8}


def test_unknown_names_are_named(wan: Wan) -> None:
    """A link from or to nowhere is refused with what there is."""
    for change in (wan.links.cut, wan.links.heal, wan.links.refuse):
        with pytest.raises(InvalidRequest, match='no datacenter "mars"; there are: eu, us, asia'):
            change("eu", "mars")
    with pytest.raises(InvalidRequest, match='no link from "mars"'):
        wan.links.cut("mars", "eu")
    with pytest.raises(InvalidRequest, match='no datacenter "mars"'):
        wan.links.lose_dc("mars")


def test_driver_says_what_the_server_said(server: ProxyServer) -> None:
    """404, 409, 400 and 500 all become a LabError with status and words."""
    proxies = server.proxies()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        proxies.create("driver", "127.0.0.1:9")
        cases: list[tuple[int, str, Callable[[], object]]] = [
            (404, "proxy not found", lambda: proxies.state("none")),
            (409, "proxy already exists", lambda: proxies.create("driver", "127.0.0.1:9")),
            (
                400,
                "invalid toxic type",
                lambda: proxies.add_toxic("driver", ToxicSpec("x", "nothing", "upstream")),
            ),
            (500, "address already in use", lambda: _on_port(proxies, taken.getsockname()[1])),
        ]
        for status, words, call in cases:
            with pytest.raises(LabError, match=words) as caught:
                call()
            assert caught.value.details["status"] == status
    for name in ("driver", "taken"):
        proxies.delete(name)


def test_two_servers_are_driven_side_by_side(server: ProxyServer, tmp_path: Path) -> None:
    """The library's global address does not send a call to the wrong server."""
    with start_server(tmp_path, "embedded") as other:
        assert other.port != server.port
        other.proxies().create("only-here", "127.0.0.1:9")
        assert "only-here" not in server.proxies().states()
        assert "only-here" in other.proxies().states()


def test_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    """A server that accepts and never answers ends in a LabError, not in waiting for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LabError, match="takes longer than"):
        Proxies("127.0.0.1", silent.getsockname()[1], timeout_s=0.3).probe()


def test_what_is_no_toxiproxy_is_refused() -> None:
    """Nothing there, and something else there, are told apart."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LabError, match="does not answer"):
        Proxies("127.0.0.1", port).probe()
    other = Upstream(lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"))
    with pytest.raises(LabError, match=r"not a Toxiproxy|does not answer"):
        Proxies(*other.address).probe()
    other.close()


@pytest.mark.parametrize("wanted", ["embedded", pytest.param("real", marks=pytest.mark.go)])
def test_server_ends_with_the_process_that_started_it(wanted: Kind, tmp_path: Path) -> None:
    """kill -9 of the starter ends the server too (two processes are started, hence a second)."""
    if wanted == "real" and not has_real():
        pytest.skip("toxiproxy-server is not on the PATH")
    script = (
        "import pathlib, sys, time\n"
        "from geokv.lab.wan.server import start_server\n"
        "running = start_server(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
        "print(running.port, flush=True)\n"
        "time.sleep(600)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", script, tmp_path, wanted], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    port = int(starter.stdout.readline())
    assert Proxies("127.0.0.1", port).probe().startswith("2.12.")
    os.kill(starter.pid, signal.SIGKILL)
    starter.wait()
    starter.stdout.close()
    deadline_s = time.monotonic() + WAIT_S
    while _listens(port) and time.monotonic() < deadline_s:
        threading.Event().wait(0.02)
    assert not _listens(port)


def test_start_that_fails_shows_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ends at once is reported with exit code and log (it is started five times: a second)."""
    broken = tmp_path / "bin" / "toxiproxy-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:{os.environ['PATH']}")
    with pytest.raises(LabError, match=r"\(real\) ended with code 3; .*no such thing"):
        start_server(tmp_path)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _on_port(proxies: Proxies, port: int) -> None:
    proxies.create("taken", "127.0.0.1:9", listen=f"127.0.0.1:{port}")
