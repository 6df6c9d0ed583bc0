"""The cluster that `benchmarks.geo` measures: a lab of nine nodes, a client process per datacenter, and what can be read
of them.

Nodes, proxies and addresses are those of `geokv lab`; only the round trips are set to be equal. Everything here is
started by this process and ends with it.

Invariants: bytes of the WAN are those that the proxies between the nodes of different datacenters sent, both
directions; clients' and operators' traffic has proxies of its own and is not in it. The real Toxiproxy counts a
connection's bytes when it ends, so before they are read those connections are closed, and the reading waits until the
nodes have found each other again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.common import BenchmarkError, cpu_seconds_of, descendants, machine_cpu_seconds
from geokv.core.topology import OUTSIDE, Topology
from geokv.errors import GeokvError
from geokv.lab.ask import NodeConnection, ask_all
from geokv.lab.lab import Lab, read_topology
from geokv.lab.state import LabDirectory
from geokv.lab.wan.server import Kind

Metrics = Mapping[str, float]
NAMESPACE: Final = "default"
CLIENTS_READY_S: Final = 30.0
SETTLE_S_MAX: Final = 120.0
POLL_S: Final = 0.1
METRICS_TIMEOUT_S: Final = 10.0
DIGEST_TIMEOUT_S: Final = 30.0


def topology_with(round_trip_ms: int) -> Topology:
    """The three datacenters that geokv comes with, all equally far apart."""
    shipped = read_topology(None)
    links = tuple(replace(link, round_trip_ms=round_trip_ms, jitter_ms=0, bandwidth_kb_s=None) for link in shipped.links)
    return replace(shipped, links=links)


class ClientProcess:
    """The clients of one datacenter, in a process of their own (geo_clients.py)."""

    def __init__(self, dc: str, place: int, places: int, addresses: Iterable[str], log: Path) -> None:
        self.dc = dc
        self._log = log
        command = [sys.executable, "-m", "benchmarks.geo_clients", "--dc", dc, "--place", str(place), "--places", str(places)]
        for address in addresses:
            command += ["--address", address]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).resolve().parents[1],
                start_new_session=True,  # a Ctrl-C is for the benchmark, which ends its clients itself
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        self._answer(CLIENTS_READY_S)

    def do(self, order: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Have an order carried out; blocks until it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer(timeout_s)

    def close(self) -> None:
        """Its standard input closes, and so it ends."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            why = "ended" if readable else f"did not answer within {timeout_s:g} s"
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-1_200:]
            raise BenchmarkError(f"the clients of {self.dc} {why}; their last words:\n{tail}")
        found: dict[str, Any] = json.loads(line)
        return found


@dataclass(frozen=True)
class Snapshot:
    """What nodes and processes had counted at one moment."""

    at_s: float
    metrics: Mapping[str, Metrics]
    cpu_s: Mapping[str, float | None]
    machine_cpu_s: float | None

    def sum(self, name: str, nodes: Iterable[str] | None = None) -> float:
        """One metric over nodes, all of them where none are named."""
        wanted = self.metrics if nodes is None else nodes
        return sum(self.metrics[node].get(name, 0) for node in wanted)


class GeoLab:
    """The running cluster with its clients. Use it in a `with` block."""

    def __init__(self, directory: Path, round_trip_ms: int, proxies: Kind | None, say: Callable[[str], None]) -> None:
        self.directory = directory
        self._say = say
        self.lab = Lab(topology_with(round_trip_ms), LabDirectory(directory), proxy_kind=proxies, say=say)
        self.clients: dict[str, ClientProcess] = {}
        self._stack = contextlib.ExitStack()
        self._proxy_pids: list[int] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            before = descendants(os.getpid())
            stack.enter_context(self.lab)
            node_pids = {node.pid for node in self.lab.nodes.values()}
            self._proxy_pids = sorted(descendants(os.getpid()) - before - {pid for pid in node_pids if pid is not None})
            self._pool = stack.enter_context(ThreadPoolExecutor(max_workers=len(self.dcs)))
            self._connections = stack.enter_context(_connected(self.lab.addresses(OUTSIDE)))
            self._watchers = stack.enter_context(ThreadPoolExecutor(max_workers=len(self._connections)))
            self._start_clients(stack)
            self._stack = stack.pop_all()
        self.settle()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def dcs(self) -> tuple[str, ...]:
        return self.lab.topology.dc_names

    @property
    def proxies(self) -> str:
        return self.lab.proxy_kind

    def nodes_of(self, dc: str) -> list[str]:
        return [node.name for node in self.lab.topology.datacenter(dc).nodes]

    def _start_clients(self, stack: contextlib.ExitStack) -> None:
        for place, dc in enumerate(self.dcs):
            addresses = self.lab.client_addresses(dc)[: len(self.nodes_of(dc))]
            log = self.directory / f"clients-{dc}.log"
            self.clients[dc] = ClientProcess(dc, place, len(self.dcs), addresses, log)
            stack.callback(self.clients[dc].close)
        for process in self.clients.values():
            process.wait_ready()

    # --- orders

    def order(self, orders: Mapping[str, Mapping[str, Any]], timeout_s: float) -> dict[str, Future[dict[str, Any]]]:
        """Give orders to the clients of several datacenters; each is carried out in the background."""
        return {dc: self._pool.submit(self.clients[dc].do, order, timeout_s) for dc, order in orders.items()}

    # --- what can be read

    def snapshot(self, nodes: Iterable[str] | None = None) -> Snapshot:
        """The metrics of these nodes (None: all) and the CPU of every process."""
        wanted = list(self._connections) if nodes is None else list(nodes)
        metrics = dict(zip(wanted, self._watchers.map(self._metrics_of, wanted), strict=True))
        cpu = {name: cpu_seconds_of([node.pid]) if node.pid else None for name, node in self.lab.nodes.items()}
        cpu |= {f"clients.{dc}": cpu_seconds_of([process.pid]) for dc, process in self.clients.items()}
        cpu["proxies"] = cpu_seconds_of(self._proxy_pids)
        return Snapshot(time.monotonic(), metrics, cpu, machine_cpu_seconds())

    def _metrics_of(self, node: str) -> Metrics:
        found: Metrics = self._connections[node].admin("metrics", timeout_s=METRICS_TIMEOUT_S)
        return found

    def unshipped_to(self, dc: str) -> int:
        """Records of the others that are not known to be on a quorum of this datacenter."""
        others = [node.name for node in self.lab.topology.nodes if node.dc != dc]
        return round(self.snapshot(others).sum(f"ship.unshipped_records.{dc}"))

    def settle(self, to_dcs: Iterable[str] | None = None) -> None:
        """Wait until the datacenters have everything of each other and all nodes are connected."""
        wanted = list(self.dcs if to_dcs is None else to_dcs)
        deadline_s = time.monotonic() + SETTLE_S_MAX
        while True:
            left = self._unsettled(wanted)
            if not left:
                return
            if time.monotonic() > deadline_s:
                raise BenchmarkError(f"the datacenters are not even after {SETTLE_S_MAX:g} s without load: {left}")
            time.sleep(POLL_S)

    def _unsettled(self, dcs: list[str]) -> str:
        nodes = [node for dc in dcs for node in self.nodes_of(dc)]
        try:
            found = self.snapshot(nodes)
        except GeokvError as error:
            return str(error)
        unshipped = round(sum(found.sum(f"ship.unshipped_records.{dc}", nodes) for dc in dcs))
        apart = [name for name in nodes if found.metrics[name].get("peers.live", 0) < len(nodes) - 1]
        return "; ".join(
            [f"{unshipped} records are not shipped"] * bool(unshipped) + [f"{name} does not see all" for name in apart]
        )

    def wan_bytes(self) -> int:
        """Bytes that the proxies between nodes of different datacenters have sent; to be asked when all is settled."""
        if self.proxies == "real":
            self._end_wan_connections()
        return sum(count for (from_view, _), count in self.lab.links.sent_bytes().items() if from_view in self.dcs)

    def _end_wan_connections(self) -> None:
        pairs = [(one, other) for one in self.dcs for other in self.dcs if one != other]
        for one, other in pairs:
            self.lab.links.refuse(one, other, both_ways=False)
        for one, other in pairs:
            self.lab.links.heal(one, other, both_ways=False)
        self.settle()

    def replicas_are_equal(self) -> bool:
        """Whether every replica of every partition holds the same cells, by the nodes' own sums over them."""
        found = ask_all(self.lab.addresses(OUTSIDE), "digest", {"namespace": NAMESPACE}, DIGEST_TIMEOUT_S)
        for node, body in found.items():
            if isinstance(body, GeokvError):
                raise BenchmarkError(f"{node} does not say what it holds: {body}")
        held = [body["partitions"] for body in found.values() if isinstance(body, dict)]
        return bool(held[0]) and all(partitions == held[0] for partitions in held)


@contextlib.contextmanager
def _connected(addresses: Mapping[str, str]) -> Iterator[dict[str, NodeConnection]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(NodeConnection(address)) for name, address in addresses.items()}
