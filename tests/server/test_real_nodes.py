"""Real nodes as processes: what must hold when they are killed, told to stop, crowded or mistaken for others."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from geokv import Client
from geokv.core.topology import Datacenter, NodeSpec, Topology, render_topology
from geokv.errors import GeokvError, LabError, Unavailable
from geokv.lab.ask import NodeConnection, ask
from geokv.lab.ports import Ports
from geokv.lab.process import NodeProcess, ParentPipe, wait_ready
from geokv.testing import Cluster
from tests.conftest import Samples
from tests.tally import Tally

pytestmark = pytest.mark.timeout(150)  # each starts real processes: a second or two when the machine is idle

WRITERS = 4
MIB = 1 << 20


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


class Load:
    """Threads that write keys, each once, and remember those that were acknowledged."""

    def __init__(self, client: Client) -> None:
        self.acknowledged: dict[bytes, bytes] = {}
        self.failures: list[GeokvError] = []
        self._client = client
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]

    def _write(self, number: int) -> None:
        serial = 0
        while not self._stop.is_set():
            key, value = b"load/%d/%06d" % (number, serial), b"%d" % (serial * 7)
            serial += 1
            try:
                self._client.put(key, value, consistency="QUORUM")
            except GeokvError as error:
                self.failures.append(error)
            else:
                self.acknowledged[key] = value

    def has(self, count: int) -> Callable[[], bool]:
        """Asks whether so many were acknowledged."""
        return lambda: len(self.acknowledged) >= count

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()


def holds_all(address: str, wanted: dict[bytes, bytes]) -> bool:
    """Whether one node, asked by itself, has every one of these keys with its value."""
    keys = list(wanted)
    with NodeConnection(address) as node:
        for start in range(0, len(keys), 500):
            part = keys[start : start + 500]
            if node.read("default", part).values != [wanted[key] for key in part]:
                return False
    return True


def test_killing_nodes_at_any_moment_loses_no_acknowledged_write(samples: Samples, tally: Tally) -> None:
    """Killed with -9, one or all at once, at drawn moments of a load: in the end each has all that was acknowledged."""
    rng = random.Random(7)
    rounds = samples.of(test=4, check=8, soak=200)
    counted = tally.of("SIGKILL of one node or of all three under load, and a restart")
    with counted as count, Cluster(nodes=3) as cluster, cluster.client(timeout=10) as kv, Load(kv) as load:
        for round_number in range(rounds):
            victims = cluster.names if round_number % 4 == 3 else [cluster.names[round_number % 3]]
            wait_until(load.has(len(load.acknowledged) + 200), "writes before the kill")
            threading.Event().wait(rng.random() * 0.05)  # at any moment of a group commit
            for name in victims:
                cluster.node(name).signal(signal.SIGKILL)
            for name in victims:
                cluster.kill(name)  # waits for what was killed
            if len(victims) == 1:
                wait_until(load.has(len(load.acknowledged) + 50), "writes with one node down")
            for name in victims:
                cluster.node(name).start()
            wait_ready(cluster.node(name) for name in victims)
            count.add()
        load.stop()
        for name in cluster.names:
            wait_until(partial(holds_all, cluster.address_of(name), load.acknowledged), f"{name} has everything")


def test_sigterm_drains_and_ends_with_0() -> None:
    """A node that is told to stop under load ends with exit code 0, and all that it acknowledged is there when it is back."""
    with Cluster(nodes=1) as cluster, cluster.client(timeout=2) as kv:
        with Load(kv) as load:
            wait_until(lambda: len(load.acknowledged) > 200, "writes")
            assert cluster.node("node-1").stop() == 0
        assert "SIGTERM" in cluster.log("node-1")
        cluster.restart("node-1")
        assert holds_all(cluster.address, load.acknowledged)


def test_a_node_that_is_told_to_stop_under_load_fails_no_write() -> None:
    """Its clients hear that it drains before its connections end, and go on elsewhere. Several seconds: real processes."""
    with Cluster(nodes=3) as cluster, cluster.client(timeout=5) as kv:
        for name in cluster.names:
            with Load(kv) as load:
                wait_until(lambda load=load: len(load.acknowledged) > 200, "writes")
                assert cluster.node(name).stop() == 0
                before = len(load.acknowledged)
                wait_until(load.has(before + 100), "writes without it")
            assert load.failures == []
            cluster.restart(name)


def test_a_directory_that_is_given_is_kept(tmp_path: Path) -> None:
    """A second cluster on the directory of the first finds what that one wrote, on whatever ports."""
    with Cluster(directory=tmp_path) as cluster, cluster.client() as kv:
        kv.put("kept", b"1")
    with Cluster(directory=tmp_path) as cluster, cluster.client() as kv:
        assert kv.get("kept").value == b"1"


# --- nodes that must not start, or must not be listened to


@pytest.fixture
def pipe() -> Iterator[ParentPipe]:
    made = ParentPipe()
    yield made
    made.close()


@contextlib.contextmanager
def started(node: NodeProcess) -> Iterator[NodeProcess]:
    node.start()
    try:
        yield node
    finally:
        node.kill()


def topology_file(path: Path, cluster: str, addresses: dict[str, str]) -> Path:
    specs = tuple(NodeSpec(name, "dc1", name, 1, address) for name, address in addresses.items())
    text = render_topology(Topology(cluster, 16, (Datacenter("dc1", len(specs), specs),)))
    path.write_text(text, encoding="utf-8")
    return path


def test_two_nodes_on_one_port_fail_instead_of_sharing_it(tmp_path: Path, pipe: ParentPipe) -> None:
    """The second node on a port ends with an error that names the address; the first one goes on."""
    with Cluster(nodes=1) as cluster:
        path = topology_file(tmp_path / "t.toml", "other", {"second": cluster.address})
        with started(NodeProcess("second", path, tmp_path / "second", pipe)) as second:
            with pytest.raises(LabError, match=cluster.address):
                wait_ready([second])
            assert "Traceback" not in second.log_tail()
        assert ask(cluster.address, "status")["node"] == "node-1"


def test_two_nodes_in_one_directory_fail_instead_of_sharing_it(tmp_path: Path, pipe: ParentPipe) -> None:
    """A directory that a node holds is refused to another process; the first one goes on."""
    with Cluster(nodes=1) as cluster, contextlib.closing(Ports()) as ports:
        path = topology_file(tmp_path / "t.toml", "testing", {"node-1": f"127.0.0.1:{ports.reserve()}"})
        with started(NodeProcess("node-1", path, cluster.directory / "node-1", pipe)) as second:
            wait_until(lambda: not second.is_alive(), "the second ends")
            assert "Traceback" not in second.log_tail()
        assert ask(cluster.address, "status")["node"] == "node-1"


def test_a_directory_of_another_node_is_refused_by_name(tmp_path: Path, pipe: ParentPipe) -> None:
    """A node does not open what another node has written; the message names both."""
    with contextlib.closing(Ports()) as ports:
        addresses = {name: f"127.0.0.1:{ports.reserve()}" for name in ("left", "right")}
        path = topology_file(tmp_path / "t.toml", "c", addresses)
        with started(NodeProcess("left", path, tmp_path / "store", pipe)) as left:
            wait_ready([left])
            assert left.stop() == 0
        with (
            started(NodeProcess("right", path, tmp_path / "store", pipe)) as right,
            pytest.raises(LabError, match=r'(?s)"left".*"right"'),
        ):
            wait_ready([right])


def test_a_node_of_another_cluster_is_refused_by_name(tmp_path: Path, pipe: ParentPipe) -> None:
    """Where a peer's address leads to a node of another cluster, the log names that cluster, and no write reaches it."""
    with contextlib.closing(Ports()) as ports:
        addresses = {name: f"127.0.0.1:{ports.reserve()}" for name in ("a", "b")}
        ours = topology_file(tmp_path / "ours.toml", "ours", addresses)
        theirs = topology_file(tmp_path / "theirs.toml", "theirs", addresses)
        with (
            started(NodeProcess("a", ours, tmp_path / "a", pipe)) as one,
            started(NodeProcess("b", theirs, tmp_path / "b", pipe)) as other,
        ):
            wait_ready([one, other])
            wait_until(lambda: "theirs" in one.log_tail() or "ours" in other.log_tail(), "the refusal is logged")
            peers = ask(addresses["a"], "status")["peers"]
            assert [peer["live"] for peer in peers] == [False]


def test_nodes_end_when_their_parent_is_gone(tmp_path: Path) -> None:
    """Closing the pipe that the parent holds ends a node by itself, with exit code 0."""
    pipe = ParentPipe()
    with contextlib.closing(Ports()) as ports:
        path = topology_file(tmp_path / "t.toml", "c", {"n": f"127.0.0.1:{ports.reserve()}"})
        with started(NodeProcess("n", path, tmp_path / "n", pipe)) as node:
            wait_ready([node])
            pipe.close()
            assert node.wait(20.0) == 0


# --- a disk that is full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 96 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_refuses_writes_says_so_and_recovers(small_disk: Path) -> None:
    """Without room writes are refused with the reason and reads go on; with room it takes writes again, and nothing is lost."""
    filler = small_disk / "filler"
    with Cluster(directory=small_disk) as cluster, cluster.client(timeout=5) as kv:
        kv.put("before", b"1")
        _fill(filler, leave_bytes=2 * MIB)
        written = _write_until_refused(kv)
        assert kv.get("before").value == b"1"
        reason = ask(cluster.address, "status")["log"]["room_reason"]
        assert reason
        filler.unlink()
        wait_until(lambda: _takes(kv), "writes after there is room again")
        assert holds_all(cluster.address, written)


def _fill(path: Path, leave_bytes: int) -> None:
    room = os.statvfs(path.parent)
    with path.open("wb") as out:
        left = room.f_bavail * room.f_frsize - leave_bytes
        while left > 0:
            left -= out.write(bytes(min(left, MIB)))


def _write_until_refused(kv: Client) -> dict[bytes, bytes]:
    written: dict[bytes, bytes] = {}
    for number in range(20_000):
        key, value = b"fill/%06d" % number, b"%06d" % number + bytes(9_000)
        try:
            kv.put(key, value)
        except Unavailable:
            return written
        written[key] = value
    raise AssertionError("nothing was refused")


def _takes(kv: Client) -> bool:
    try:
        kv.put("after", b"1")
    except GeokvError:
        return False
    return True
