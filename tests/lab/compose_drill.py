"""The loss of a datacenter, with the containers of docker-compose.geo.yml: what docs/compose.md reports, measured.

Clients on the host write near every datacenter; one datacenter is lost by `geokv wan`, and comes back; then every
replica is read. As root, every packet on the datacenters' networks is looked at meanwhile.

    python tests/lab/compose_drill.py --project NAME     the containers must be up; prints one JSON document

Not here: bringing the containers up and down, which is their user's (or test_compose.py's) part.
"""

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from geokv import Client
from geokv.core.topology import OUTSIDE
from geokv.errors import GeokvError
from geokv.lab.ask import NodeConnection
from geokv.lab.compose import compose_topology, host_addresses
from geokv.lab.lab import read_topology

COMPOSE = "compose"
LOST = "us-east"
PACE_S = 0.01
SETTLE_S_MAX = 60.0
KEYS_PER_READ = 500
SOL_PACKET, ADD_MEMBERSHIP, PROMISCUOUS, ALL_PROTOCOLS, IPV4 = 263, 1, 1, 3, 0x0800
TOPOLOGY = compose_topology(read_topology(None))


def geokv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line against the containers."""
    command = [sys.executable, "-m", "geokv", *arguments, "--lab", COMPOSE]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float = SETTLE_S_MAX) -> float:
    """Wait for a condition; how long it took."""
    start_s = time.monotonic()
    while not is_so():
        if time.monotonic() > start_s + timeout_s:
            raise AssertionError(f"not after {timeout_s} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - start_s


@dataclass
class Writer:
    """Clients near one datacenter: one write after the other, all others to fail over to."""

    dc: str
    done: list[tuple[float, float, str, bytes]] = field(default_factory=list)  # when answered, took s, by dc, key
    failed: list[tuple[float, str]] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        others = [dc for dc in TOPOLOGY.dc_names if dc != self.dc]
        with Client(host_addresses(self.dc), dc=self.dc, failover=others, timeout=10.0) as client:
            kv = client.namespace("default")
            count = 0
            while not stop.wait(PACE_S):
                key = f"drill/{self.dc}/{count:06}".encode()
                count += 1
                self._write(kv, key)

    def _write(self, kv: Any, key: bytes) -> None:
        start_s = time.monotonic()
        try:
            put = kv.put(key, b"value of " + key, consistency="QUORUM")
        except GeokvError as error:
            self.failed.append((time.monotonic(), type(error).__name__))
        else:
            now_s = time.monotonic()
            self.done.append((now_s, now_s - start_s, put.dc, key))

    def served_again_s(self, cut_s: float) -> float | None:
        """From the cut to the first write that another datacenter acknowledged."""
        return next((when - cut_s for when, _, dc, _ in self.done if when > cut_s and dc != self.dc), None)

    def back_home_s(self, heal_s: float) -> float | None:
        """From healing to the first write at home."""
        return next((when - heal_s for when, _, dc, _ in self.done if when > heal_s and dc == self.dc), None)

    def latency_ms(self, from_s: float, to_s: float) -> dict[str, float | None]:
        took = sorted(took for when, took, _, _ in self.done if from_s <= when < to_s)
        if not took:
            return {"p50": None, "p99": None}
        return {"p50": round(took[len(took) // 2] * 1e3, 1), "p99": round(took[int(len(took) * 0.99)] * 1e3, 1)}


@contextmanager
def writing() -> Iterator[dict[str, Writer]]:
    """Load from all three datacenters while the block runs."""
    stop = threading.Event()
    writers = {dc: Writer(dc) for dc in TOPOLOGY.dc_names}
    threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers.values()]
    for thread in threads:
        thread.start()
    try:
        yield writers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def held_by(node: str, keys: list[bytes]) -> dict[bytes, tuple[bytes | None, int]]:
    """Key to value and version, as this node holds them: each node owns every key here."""
    found = {}
    with NodeConnection(TOPOLOGY.address(node, OUTSIDE)) as connection:
        for start in range(0, len(keys), KEYS_PER_READ):
            part = keys[start : start + KEYS_PER_READ]
            reply = connection.read("default", part)
            found.update(zip(part, zip(reply.values, reply.versions, strict=True), strict=True))
    return found


def settle(keys: list[bytes]) -> dict[str, Any]:
    """Wait until every replica holds every key, all of them the same."""
    seen: dict[str, dict[bytes, tuple[bytes | None, int]]] = {}

    def are_equal() -> bool:
        seen.update({node.name: held_by(node.name, keys) for node in TOPOLOGY.nodes})
        first = next(iter(seen.values()))
        return all(held == first for held in seen.values()) and all(value is not None for value, _ in first.values())

    took_s = wait_until(are_equal, "all replicas hold all acknowledged writes")
    wrong = sum(value != b"value of " + key for held in seen.values() for key, (value, _) in held.items())
    return {"replicas": len(seen), "wrong_values": wrong, "equal_after_s": round(took_s, 2)}


# --- who sends what to whom


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout


def places(project: str) -> dict[str, dict[str, str]]:
    """Network (a datacenter) to address to name of the container, without its project."""
    found = {}
    for dc in TOPOLOGY.dc_names:
        network = json.loads(docker("network", "inspect", f"{project}_{dc}"))[0]
        found[dc] = {
            member["IPv4Address"].partition("/")[0]: _service(member["Name"], project)
            for member in network["Containers"].values()
        }
    return found


def _service(container: str, project: str) -> str:
    return container.removeprefix(project)[1:-2]  # project_service_1, or with "-" from version 2 on


def bridge_of(project: str, dc: str) -> str:
    return "br-" + docker("network", "inspect", "--format", "{{.Id}}", f"{project}_{dc}")[:12]


class Packets:
    """Counts the bytes of every packet on one bridge by (from address, to address). Needs root."""

    def __init__(self, interface: str) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()
        # It is given its protocol only with its interface: before that it would hear all interfaces.
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((interface, ALL_PROTOCOLS))
        wanted = struct.pack("IHH8s", socket.if_nametoindex(interface), PROMISCUOUS, 0, b"")
        self._socket.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, wanted)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frame = self._socket.recv(64)  # the headers; how long it is stands in them
            except TimeoutError:
                continue
            if len(frame) >= 34 and int.from_bytes(frame[12:14], "big") == IPV4:
                ends = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
                self.bytes[ends] += int.from_bytes(frame[16:18], "big")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


@contextmanager
def watching(project: str) -> Iterator[dict[str, Packets]]:
    """Look at every packet on the datacenters' networks while the block runs; nothing where this is not root."""
    if os.geteuid() != 0:
        yield {}
        return
    packets = {dc: Packets(bridge_of(project, dc)) for dc in TOPOLOGY.dc_names}
    try:
        yield packets
    finally:
        for each in packets.values():
            each.close()


def traffic(packets: dict[str, Packets], members: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Bytes per network: among its nodes, between them and the proxy server, and from or to anybody else."""
    summary = {}
    for dc, seen in packets.items():
        kinds: Counter[str] = Counter()
        strangers: defaultdict[str, int] = defaultdict(int)
        for (source, target), count in seen.bytes.items():
            names = {members[dc].get(source), members[dc].get(target)}
            if None in names:
                strangers[f"{source} -> {target}"] += count
            else:
                kinds["with_toxiproxy" if "toxiproxy" in names else "among_nodes"] += count
        summary[dc] = {**kinds, "with_others": sum(strangers.values()), "others": dict(strangers)}
    return summary


def reaches(project: str, members: dict[str, dict[str, str]]) -> dict[str, bool]:
    """Whether eu-west-1 gets a connection to the address of a node at home, and of nodes elsewhere, without a proxy."""
    address_of = {name: address for dc in members.values() for address, name in dc.items()}
    targets = ("eu-west-2", "us-east-1", "ap-south-1")
    return {target: can_connect(project, "eu-west-1", address_of[target]) for target in targets}


def can_connect(project: str, source: str, address: str) -> bool:
    """Whether a container reaches an address, port 7100."""
    code = f"import socket; socket.create_connection(({address!r}, 7100), timeout=2)"
    containers = docker("ps", "--filter", f"label=com.docker.compose.service={source}", "--format", "{{.Names}}")
    name = next(name for name in containers.split() if name.startswith(project))
    ran = subprocess.run(["docker", "exec", name, "python", "-c", code], capture_output=True, timeout=60, check=False)
    return ran.returncode == 0


# --- the drill


def drill(project: str, phase_s: float = 8.0, lost_s: float = 12.0) -> dict[str, Any]:
    """Load, loss, heal, settle; the figures."""
    wait_until(lambda: geokv("status").returncode == 0, "all nodes serve")
    members = places(project)
    with watching(project) as packets:
        with writing() as writers:
            start_s = time.monotonic()
            time.sleep(phase_s)
            cut_s = time.monotonic()
            assert geokv("wan", "lose-dc", LOST).returncode == 0
            is_cut_s = time.monotonic()
            time.sleep(lost_s)
            heal_s = time.monotonic()
            assert geokv("wan", "heal", LOST).returncode == 0
            time.sleep(lost_s)
            stop_s = time.monotonic()
        keys = [key for writer in writers.values() for _, _, _, key in writer.done]
        settled = settle(keys)
    phases = {"before": (start_s, cut_s), "lost": (cut_s, heal_s), "healed": (heal_s, stop_s)}
    near = writers[LOST]
    return {
        "acknowledged": {dc: len(writer.done) for dc, writer in writers.items()},
        "failed": {dc: Counter(name for _, name in writer.failed) for dc, writer in writers.items()},
        "cut_took_s": round(is_cut_s - cut_s, 2),
        "served_again_s": near.served_again_s(cut_s),
        "longest_write_s": {dc: round(max(took for _, took, _, _ in w.done), 2) for dc, w in writers.items()},
        "served_by_while_lost": Counter(dc for when, _, dc, _ in near.done if is_cut_s < when < heal_s),
        "back_home_s": near.back_home_s(heal_s),
        "latency_ms": {dc: {name: writer.latency_ms(*span) for name, span in phases.items()} for dc, writer in writers.items()},
        "settled": settled,
        "reaches": reaches(project, members),
        "traffic_bytes": traffic(packets, members) if packets else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--project", required=True, help="name of the compose project: the directory's, unless -p")
    sys.stdout.write(json.dumps(drill(parser.parse_args().project), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
