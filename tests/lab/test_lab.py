"""Labs as a user runs them: up, down, twice, side by side, and after the worst has happened to the supervisor."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from geokv import Client
from geokv.core.topology import OUTSIDE, clients_of
from geokv.errors import Ambiguous, DeadlineExceeded, LabExists, Partial, Unavailable
from geokv.lab.ask import ask
from geokv.lab.lab import Lab, read_topology
from geokv.lab.ports import Ports, is_free
from geokv.lab.state import LabDirectory, LabState
from geokv.lab.supervisor import bring_down, bring_up

pytestmark = pytest.mark.timeout(120)  # each starts real processes: a second or two when the machine is idle


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, "it did not become true in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A process that ended and that nobody has waited for is still listed.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@contextlib.contextmanager
def lab_up(directory: LabDirectory, topology: Path) -> Iterator[LabState]:
    try:
        yield bring_up(directory, str(topology))
    finally:
        bring_down(directory)


def ports_of(directory: LabDirectory) -> set[str]:
    topology = directory.topology()
    return {topology.address(node, view) for node in topology.nodes for view in topology.viewpoints()}


def test_up_and_down_twice_keeps_what_was_written(tmp_path: Path, small_topology: Path) -> None:
    """A lab that went down comes up with its values, and when it is down nothing of it runs."""
    directory = LabDirectory(tmp_path / "lab")
    with lab_up(directory, small_topology) as state, Client(directory.addresses("here"), dc="here") as kv:
        kv.put("kept", b"1")
    assert not any(is_running(pid) for pid in state.node_pids.values())
    assert directory.read() is None
    wait_until(lambda: not is_running(state.supervisor_pid))
    with lab_up(directory, small_topology), Client(directory.addresses("here"), dc="here") as kv:
        assert kv.get("kept").value == b"1"


def test_two_labs_run_side_by_side(lab: Lab, tmp_path: Path, small_topology: Path) -> None:
    """Two labs of one topology share no address, and what one stores the other has not. In the place of one no other starts:
    `lab up` says so and how to go on, and leaves the running one alone.
    """
    one, other = lab.directory, LabDirectory(tmp_path / "other")
    with lab_up(other, small_topology) as state:
        assert not ports_of(one) & ports_of(other)
        with Client(one.addresses("here"), dc="here") as kv, Client(other.addresses("here"), dc="here") as kv_other:
            kv.put("mine", b"1")
            assert not kv_other.get("mine").found
        with pytest.raises(LabExists, match="lab down"):
            bring_up(other, str(small_topology))
        assert other.read() == state


def test_children_end_when_the_supervisor_is_killed_and_the_next_up_works(tmp_path: Path, small_topology: Path) -> None:
    """After kill -9 of the supervisor its nodes and proxies end by themselves, and `lab up` just works, with the values."""
    directory = LabDirectory(tmp_path / "lab")
    with lab_up(directory, small_topology) as state:
        with Client(directory.addresses("here"), dc="here") as kv:
            kv.put("kept", b"1")
        os.kill(state.supervisor_pid, signal.SIGKILL)
        assert (directory.path / "state.json").exists()
        wait_until(lambda: directory.read() is None)  # stale, and seen to be stale
        wait_until(lambda: not any(is_running(pid) for pid in state.node_pids.values()))
        wait_until(lambda: is_free(state.proxy_port))
    with lab_up(directory, small_topology), Client(directory.addresses("here"), dc="here") as kv:
        assert kv.get("kept").value == b"1"


def test_a_bad_topology_is_told_with_its_line(tmp_path: Path) -> None:
    """`lab up` with a topology that makes no sense names the file and the line, and starts nothing."""
    path = tmp_path / "bad.toml"
    path.write_text('cluster = "x"\npartitions = 7\n')
    directory = LabDirectory(tmp_path / "lab")
    with pytest.raises(Exception, match=r"bad\.toml:2: .*power of two"):
        bring_up(directory, str(path))
    assert directory.holder() is None


def test_a_port_is_never_given_twice() -> None:
    """A reserved port is refused to others, in this process too, until it is let go; a port in use is never given out."""
    one, other = Ports(), Ports()
    try:
        port = one.reserve()
        assert other.reserve(preferred=port) != port
        one.close()
        assert other.reserve(preferred=port) == port
    finally:
        one.close()
        other.close()


def test_no_address_that_a_client_or_another_datacenter_is_told_is_a_node_s_own(lab: Lab) -> None:
    """Ring replies for every viewpoint but the own datacenter's nodes name proxies only."""
    direct = {node.address for node in lab.topology.nodes}
    for viewpoint in (OUTSIDE, *map(clients_of, lab.topology.dc_names)):
        assert not direct & set(lab.addresses(viewpoint).values())
    for dc in lab.topology.dc_names:
        for node in lab.topology.nodes:
            assert (lab.topology.address(node, dc) in direct) is (node.dc == dc)


def test_every_byte_between_datacenters_goes_through_the_proxies(lab: Lab) -> None:
    """A write is counted on the way from its client and on the link to the other datacenter; with that cut nothing comes."""
    values = [os.urandom(9_000) for _ in range(20)]  # all different: what is sent twice is packed into next to nothing
    value, nbytes = values[0], sum(map(len, values))
    links = lab.links
    before = links.sent_bytes()

    def has_crossed() -> bool:
        return _grown(before, links.sent_bytes(), ("here", "there"), ("there", "here")) >= nbytes

    with Client(lab.client_addresses("there"), dc="there") as far:
        # The real server counts a connection when it ends, and not at all where something was on its way just then: nodes
        # always talk, so it may take some tries.
        for _ in range(8):
            with Client(lab.client_addresses("here"), dc="here") as kv:
                for number, one in enumerate(values):
                    kv.put(f"k{number}", one, replicated_to=2)
            wait_until(lambda: _grown(before, links.sent_bytes(), (clients_of("here"), "here")) >= nbytes)
            links.refuse("here", "there")
            with contextlib.suppress(AssertionError):
                wait_until(has_crossed, seconds=2)
                break
            links.heal("here", "there")
        assert has_crossed()
        with Client(lab.client_addresses("here"), dc="here") as kv:
            kv.put("cut", value)
        with pytest.raises(DeadlineExceeded):
            _until_found(far, "cut", seconds=1.0)
        links.heal("here", "there")
        assert _until_found(far, "cut", seconds=30.0) == value


def _grown(before: dict[tuple[str, str], int], after: dict[tuple[str, str], int], *pairs: tuple[str, str]) -> int:
    """Bytes on these links since then."""
    return sum(after[pair] - before[pair] for pair in pairs)


def _until_found(kv: Client, key: str, seconds: float) -> bytes:
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        got = kv.get(key, consistency="ONE")
        if got.found:
            value: bytes = got.value
            return value
        time.sleep(0.02)
    raise DeadlineExceeded(f"{key} did not arrive within {seconds} s")


def test_a_lost_datacenter_is_lost_for_its_own_clients_too(lab: Lab) -> None:
    """Its clients go on in the other one within five seconds and come back when it is healed; without failover they cannot."""
    with Client(lab.client_addresses("here"), dc="here", failover="there", failback_after=0.5) as kv:
        assert kv.put("a", b"1").dc == "here"
        lab.links.lose_dc("here")
        began_s = time.monotonic()
        assert _served_by(kv) == "there"
        assert time.monotonic() - began_s < 5.0
        with (
            Client(lab.client_addresses("here")[:2], dc="here", timeout=1.0) as stubborn,
            pytest.raises((Unavailable, DeadlineExceeded)),
        ):
            stubborn.put("b", b"1")
        lab.links.heal_dc("here")
        wait_until(lambda: _served_by(kv) == "here")


def _served_by(kv: Client) -> str:
    """The datacenter that takes a write now; one that failed, or whose outcome is unknown, is made again."""
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        with contextlib.suppress(Unavailable, DeadlineExceeded, Ambiguous, Partial):
            return kv.put("who", b"1").dc
    raise AssertionError("no datacenter takes writes")


def test_an_isolated_datacenter_still_serves_its_own_clients(lab: Lab) -> None:
    """Isolation cuts the links with the clients inside: they go on in it."""
    lab.links.isolate_dc("here")
    with Client(lab.client_addresses("here"), dc="here") as kv:
        assert kv.put("inside", b"1").dc == "here"


def test_nodes_prefer_the_ports_of_the_topology_where_they_are_free(lab: Lab, tmp_path: Path, small_topology: Path) -> None:
    """A second lab gets other ports than the first, which may have those of the file."""
    direct = {node.address for node in lab.topology.nodes}
    with Lab(read_topology(small_topology), LabDirectory(tmp_path / "second")) as second:
        assert not direct & {node.address for node in second.topology.nodes}
        for node in second.topology.nodes:
            assert ask(node.address, "status")["node"] == node.name
