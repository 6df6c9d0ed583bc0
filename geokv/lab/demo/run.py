"""The main job, phase by phase: bring a lab up, put load on it, lose a datacenter, heal it, and read every replica.

    up ── data set ── load ── LOSS ── load ── HEAL ── all equal? ── clients back ── load ── stop ── read everything ── verdict

Writes stop at the heal until all replicas are equal, so that the time to converge is that of the backlog; reads go
on, which is how clients find their way back. The lost datacenter is cut off, not destroyed: nothing that it
acknowledged may be missing in the end. What only it had at the moment of the cut (RPO) is found by reading the
surviving replicas during the loss.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from geokv.core.ring import Member, Ring, partition_of
from geokv.core.topology import OUTSIDE, Topology
from geokv.errors import GeokvError, InvalidRequest, LabError
from geokv.lab.datasets import load_zones
from geokv.lab.demo.journal import Journal
from geokv.lab.demo.lag import LagSampler
from geokv.lab.demo.replicas import Replicas, are_equal
from geokv.lab.demo.report import FAILOVER_MS_MAX, DemoReport, percentile
from geokv.lab.demo.workload import RECORDS, ZONES, DcClients, shares
from geokv.lab.lab import Lab, read_topology
from geokv.lab.state import LabDirectory
from geokv.lab.wan.server import Kind

CONVERGE_S_MAX: Final = 40.0
FAILBACK_S_MAX: Final = 12.0
NAMESPACE_S_MAX: Final = 15.0
LOOK_AGAIN_S: Final = 0.1
SETTLE_S: Final = 0.5  # what was under way at the cut has arrived, or never will
LOST_DC_SHARE: Final = 2  # the clients of the datacenter that is lost do this many times the work of the others
SEED: Final = 1
PHASES: Final = ("before", "loss", "healing", "after")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What `geokv lab demo` was asked for."""

    topology: str | None = None
    lose: str | None = None
    directory: str | None = None
    seconds: float = 6.0
    rate: int = 60
    proxies: Kind | None = None


def run_demo(options: DemoOptions, say: Say = lambda text: None) -> DemoReport:
    """Run it all. Raises LabError where the lab itself does not work, InvalidRequest for a loss that cannot be."""
    topology = read_topology(options.topology)
    lost_dc = options.lose or topology.dc_names[0]
    if lost_dc not in topology.dc_names:
        raise InvalidRequest(f"no datacenter {lost_dc!r}; there are: {', '.join(topology.dc_names)}")
    if len(topology.dc_names) < 2:
        raise InvalidRequest("to lose a datacenter and go on takes at least two; this topology has one")
    began_s = time.monotonic()
    with _place(options.directory) as path:
        directory = LabDirectory(path)
        with directory.lock():
            say(f"starting {len(topology.nodes)} nodes in {len(topology.dc_names)} datacenters")
            with Lab(topology, directory, proxy_kind=options.proxies) as lab:
                up_ms = _ms(time.monotonic() - began_s)
                say(f"up after {up_ms / 1000:.1f} s, proxies: {lab.proxy_kind}")
                report = asyncio.run(Demo(lab, lost_dc, options, say).run())
    report.up_ms = up_ms
    report.seconds = time.monotonic() - began_s
    return report


@contextlib.contextmanager
def _place(directory: str | None) -> Iterator[Path]:
    """The given directory, or a temporary one that is removed."""
    if directory is not None:
        yield Path(directory)
        return
    path = Path(tempfile.mkdtemp(prefix="geokv-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Demo:
    """One run over a lab that is up."""

    def __init__(self, lab: Lab, lost_dc: str, options: DemoOptions, say: Say) -> None:
        self._lab = lab
        self._topology = lab.topology
        self._lost_dc = lost_dc
        self._options = options
        self._say = say
        self._journal = Journal()
        self._owners = owners_of(lab.topology)
        self._dc_of = {node.name: node.dc for node in lab.topology.nodes}
        self._report = DemoReport("loss", lab.topology.cluster, lost_dc, lab.proxy_kind)
        self._clients: list[DcClients] = []
        self._lagging: LagSampler
        # When the cut began; when the lost datacenter last answered anybody (a cut takes a moment to be complete); the heal.
        self._cut_s = self._dark_s = self._heal_s = 0.0

    async def run(self) -> DemoReport:
        with Replicas(self._lab.addresses(OUTSIDE)) as replicas:
            self._replicas = replicas
            self._lagging = LagSampler(replicas, self._dc_of)
            zones = load_zones()
            self._clients = [self._clients_near(dc, zones, index) for index, dc in enumerate(self._topology.dc_names)]
            try:
                await self._prepare(zones)
                await self._phases()
                await self._verdict()
            finally:
                await asyncio.to_thread(self._lagging.close)
                await asyncio.gather(*(clients.client.close() for clients in self._clients))
        self._fill_in_figures()
        return self._report

    # --- phases

    async def _prepare(self, zones: list[Any]) -> None:
        """Namespaces, known in every datacenter, and the data set."""
        await self._clients[0].client.create_namespace(ZONES, exist_ok=True)
        await self._clients[0].client.create_namespace(RECORDS, exist_ok=True)
        deadline_s = time.monotonic() + NAMESPACE_S_MAX
        for clients in self._clients:
            while not {ZONES, RECORDS} <= {one["name"] for one in await clients.client.namespaces()}:
                if time.monotonic() > deadline_s:
                    raise LabError(f"namespaces did not reach {clients.dc} within {NAMESPACE_S_MAX:g} s")
                await asyncio.sleep(LOOK_AGAIN_S)
        mine = shares(zones, self._topology.dc_names)
        await asyncio.gather(*(clients.load(mine[clients.dc]) for clients in self._clients))
        self._say(f"data set: {len(zones)} time zones of the world, written by clients in {len(self._clients)} datacenters")

    async def _phases(self) -> None:
        seconds = self._options.seconds
        self._lagging.start()
        load = [asyncio.create_task(clients.run(), name=f"load.{clients.dc}") for clients in self._clients]
        try:
            await self._hold("before", seconds, load)
            await self._lose()
            await self._hold("loss", seconds, load)
            await self._heal()
            await self._until_equal_again()
            await self._until_back(load)
            self._set_writing(True)
            await self._hold("after", seconds / 2, load)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        await asyncio.gather(*(clients.finish() for clients in self._clients))

    async def _hold(self, phase: str, seconds: float, load: list[asyncio.Task[None]]) -> None:
        """Let the load go on; a fault of the load itself comes out here."""
        self._enter(phase)
        before = self._journal.count
        done, _ = await asyncio.wait(load, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        self._say(f"{phase}: {self._journal.count - before:,} writes acknowledged in {seconds:g} s")

    async def _lose(self) -> None:
        self._enter("loss")
        self._report.rpo_records_estimated = self._estimated_rpo()
        self._report.marks["lost"] = len(self._lagging.samples)
        self._cut_s = time.monotonic()
        await asyncio.to_thread(self._lab.links.lose_dc, self._lost_dc)
        self._report.cut_took_ms = _ms(time.monotonic() - self._cut_s)
        self._say(f"LOST {self._lost_dc}: a black hole for everybody, its own clients included")
        await asyncio.sleep(SETTLE_S)
        await self._measure_rpo()

    async def _measure_rpo(self) -> None:
        """Read what the lost datacenter had acknowledged from every surviving replica."""
        survivors = [name for name, dc in self._dc_of.items() if dc != self._lost_dc]
        keys = self._journal.taken_by(self._lost_dc)
        last_s = self._journal.last_taken_s(self._lost_dc)
        self._dark_s = max(self._cut_s, last_s)
        try:
            found = await asyncio.to_thread(self._replicas.read, keys, survivors, self._owners_of_key)
        except GeokvError as error:
            self._say(f"the RPO could not be measured: {error}")
            return
        missing = self._journal.missing(self._lost_dc, found.values())
        self._report.rpo_records = len(missing)
        oldest_s = min((write.ended_s for write in missing), default=last_s)
        self._report.rpo_ms = _ms(last_s - oldest_s)

    async def _heal(self) -> None:
        self._enter("healing")
        self._set_writing(False)
        self._report.marks["healed"] = len(self._lagging.samples)
        self._heal_s = time.monotonic()
        await asyncio.to_thread(self._lab.links.heal_dc, self._lost_dc)
        self._say(f"HEALED {self._lost_dc}: writes pause until all replicas are equal")

    async def _until_equal_again(self) -> None:
        if await self._equal_within(CONVERGE_S_MAX):
            self._report.converge_ms = _ms(time.monotonic() - self._heal_s)
            self._say(f"all {len(self._dc_of)} replicas are equal, {self._report.converge_ms / 1000:.1f} s after the heal")
        else:
            self._report.failures.append(f"the replicas still differ {CONVERGE_S_MAX:g} s after the heal")

    async def _until_back(self, load: list[asyncio.Task[None]]) -> None:
        """Wait until the clients of the datacenter that was lost use it again."""
        clients = self._lost_clients()
        deadline_s = time.monotonic() + FAILBACK_S_MAX
        while time.monotonic() < deadline_s and not any(task.done() for task in load):
            for seen in clients.events:
                if seen.at_s > self._heal_s and seen.event.kind == "failback" and seen.event.dc == self._lost_dc:
                    self._report.failback_ms = _ms(seen.at_s - self._heal_s)
                    self._say(f"clients of {self._lost_dc} are back, {self._report.failback_ms / 1000:.1f} s after the heal")
                    return
            await asyncio.sleep(LOOK_AGAIN_S)
        self._report.failures.append(f"the clients of {self._lost_dc} did not come back within {FAILBACK_S_MAX:g} s")

    async def _verdict(self) -> None:
        """Everything has stopped: wait until all are equal, then read every key from every replica."""
        if not await self._equal_within(CONVERGE_S_MAX):
            self._report.failures.append(f"the replicas differ {CONVERGE_S_MAX:g} s after the last write")
        keys = self._journal.keys()
        self._say(f"reading {len(keys):,} keys from each of {len(self._dc_of)} replicas")
        found = await asyncio.to_thread(self._replicas.read, keys, list(self._dc_of), self._owners_of_key)
        verdict = self._journal.judge(found)
        report = self._report
        report.lost, report.foreign = verdict.lost, verdict.foreign
        report.keys, report.replicas_read = len(keys), len(found)
        report.replicas_equal = verdict.unequal == 0 and verdict.unread == 0 and await self._equal_within(LOOK_AGAIN_S)
        report.failures += [f"lost: {example}" for example in verdict.examples]
        if verdict.foreign:
            report.failures.append(f"{verdict.foreign} values that no client wrote")
        if not report.replicas_equal:
            report.failures.append(f"the replicas differ: {verdict.unequal} keys")

    # --- small parts

    def _clients_near(self, dc: str, zones: list[Any], index: int) -> DcClients:
        others = [name for name in self._topology.dc_names if name != dc]
        nearest_first = sorted(others, key=lambda name: self._topology.link(dc, name).round_trip_ms)
        rate = self._options.rate * (LOST_DC_SHARE if dc == self._lost_dc else 1)
        rng = random.Random(SEED + index)
        return DcClients(dc, self._lab.client_addresses(dc), nearest_first, rate * 4 // 3, zones, self._journal, rng)

    def _lost_clients(self) -> DcClients:
        return next(clients for clients in self._clients if clients.dc == self._lost_dc)

    def _enter(self, phase: str) -> None:
        for clients in self._clients:
            clients.phase = phase

    def _set_writing(self, is_writing: bool) -> None:
        for clients in self._clients:
            clients.is_writing = is_writing

    def _owners_of_key(self, key: bytes) -> frozenset[str]:
        return self._owners[partition_of(key, self._topology.partitions)]

    async def _equal_within(self, seconds: float) -> bool:
        """Whether the digests of all nodes are equal, now or within so long."""
        deadline_s = time.monotonic() + seconds
        while True:
            per_namespace = [await asyncio.to_thread(self._replicas.digests, name, 2.0) for name in (ZONES, RECORDS)]
            if all(are_equal(digests, self._owners) for digests in per_namespace):
                return True
            if time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(LOOK_AGAIN_S)

    # --- figures

    def _estimated_rpo(self) -> int | None:
        """What its nodes said shortly before: how much the datacenter that had most of it was not known to have."""
        if not self._lagging.samples:
            return None
        last = self._lagging.samples[-1].unshipped
        values = [records for (origin, _), records in last.items() if origin == self._lost_dc and records is not None]
        return min(values) if values else None

    def _fill_in_figures(self) -> None:
        report, journal = self._report, self._journal
        report.acknowledged, report.unknown, report.refused = journal.count, journal.unknown_count, journal.refused_count
        report.shed = sum(clients.shed for clients in self._clients)
        report.failed_reads = sum(clients.failed_reads for clients in self._clients)
        report.conflicts = journal.conflicts(self._one_way_ms)
        report.detect_ms = self._detect_ms()
        report.nodes_detect_ms = self._nodes_detect_ms()
        report.failover_ms = self._failover_ms()
        report.latency = [self._latency(clients, phase) for clients in self._clients for phase in PHASES]
        for sample in self._lagging.samples:
            for (origin, target), behind in sample.behind_ms.items():
                report.behind.setdefault(f"{origin} -> {target}", []).append(behind)
        if report.failover_ms is None:
            report.failures.append(f"the clients of {self._lost_dc} were not served during the loss")
        elif report.failover_ms > FAILOVER_MS_MAX:
            took = f"{report.failover_ms} ms; at most {FAILOVER_MS_MAX}"
            report.failures.append(f"the clients of {self._lost_dc} were served again only after {took}")

    def _one_way_ms(self, from_dc: str, to_dc: str) -> float:
        """The least that anything takes from one datacenter to another."""
        link = self._topology.link(from_dc, to_dc)
        return max(0.0, link.round_trip_ms - link.jitter_ms) / 2

    def _detect_ms(self) -> int | None:
        events = self._lost_clients().events
        times = [seen.at_s for seen in events if seen.at_s >= self._cut_s and seen.event.kind == "failover"]
        return _ms(max(0.0, min(times) - self._dark_s)) if times else None

    def _nodes_detect_ms(self) -> int | None:
        """The first sample in which every node that survived holds all nodes of the lost datacenter for dead."""
        gone = {name for name, dc in self._dc_of.items() if dc == self._lost_dc}
        survivors = self._dc_of.keys() - gone
        for sample in self._lagging.samples:
            knows = all(gone <= sample.dead.get(name, frozenset()) for name in survivors)
            if self._dark_s <= sample.at_s < self._heal_s and knows:
                return _ms(sample.at_s - self._dark_s)
        return None

    def _failover_ms(self) -> int | None:
        served = self._lost_clients().served
        times = [one.at_s for one in served if self._cut_s <= one.at_s < self._heal_s and one.dc != self._lost_dc]
        return _ms(max(0.0, min(times) - self._dark_s)) if times else None

    def _latency(self, clients: DcClients, phase: str) -> dict[str, Any]:
        samples = [sample for sample in clients.samples if sample.phase == phase]
        writes = [sample.milliseconds for sample in samples if sample.is_write]
        reads = [sample.milliseconds for sample in samples if not sample.is_write]
        return {
            "dc": clients.dc,
            "phase": phase,
            "writes": len(writes),
            "write_p50_ms": percentile(writes, 0.50),
            "write_p99_ms": percentile(writes, 0.99),
            "reads": len(reads),
            "read_p50_ms": percentile(reads, 0.50),
            "read_p99_ms": percentile(reads, 0.99),
        }


def owners_of(topology: Topology) -> dict[int, frozenset[str]]:
    """The owners of every partition, in all datacenters together."""
    rings = [
        (Ring(topology.partitions, [Member(node.name, node.rack, node.weight) for node in dc.nodes]), dc.replicas)
        for dc in topology.datacenters
    ]
    return {
        partition: frozenset(name for ring, replicas in rings for name in ring.owners(partition, replicas))
        for partition in range(topology.partitions)
    }


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
