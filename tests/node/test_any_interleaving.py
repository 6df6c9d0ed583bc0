"""Small clusters under seeded mischief: loss, doubling, reordering, late messages, crashes, slow disks, cuts, several closers.

While it goes on: what a node believes of others is never newer than true, and a quorum read sees every write that a
quorum acknowledged before. After it: everything acknowledged is there,
all replicas are equal, all closings are over, nobody waits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from geokv.core.cell import lww_version
from geokv.core.quorum import Consistency
from geokv.core.ring import key_hash
from geokv.protocol.requests import AdminRequest, Outcome, ReadBatch
from geokv.protocol.streams import Stream
from tests.conftest import Samples
from tests.node.harness import MS, SECOND, Cluster

LEVELS = (Consistency.ONE, Consistency.QUORUM, Consistency.QUORUM, Consistency.ALL, Consistency.EACH_QUORUM)
SHAPES = ((2, 3), (1, 3), (3, 1), (1, 5))  # datacenters, nodes of each
STEPS = 120


@dataclass
class Written:
    node: str
    call: int
    key: bytes
    is_quorum: bool = False


@dataclass
class Asked:
    node: str
    call: int
    key: bytes
    version_min: int


class Mischief:
    """One seeded run over one cluster."""

    def __init__(self, seed: int, datacenters: int, nodes: int) -> None:
        rng = self.rng = random.Random(seed)
        cluster = self.cluster = Cluster(
            datacenters,
            nodes,
            min(3, nodes),
            partitions=4,
            seed=seed,
            memtable_bytes=rng.choice((1 << 40, 3_000, 20_000)),
            stability_us=1 << 60,
        )
        for name, disk in cluster.disks.items():
            disk.segment_bytes = rng.choice((6_000, 50_000, 1 << 20))
            cluster.wall_offset_us[name] = rng.choice((0, 0, rng.randrange(-5, 5) * SECOND))
        cluster.start().serving()
        loss, doubling, delay = rng.choice((0, 0.02, 0.1)), rng.choice((0, 0.05, 0.3)), rng.choice((0, 0.05))
        cluster.is_dropped = lambda s, r, m: rng.random() < loss
        cluster.is_doubled = lambda s, r, m: rng.random() < doubling
        cluster.is_held = lambda s, r, m: rng.random() < delay
        self.open: list[Written] = []
        self.acknowledged: dict[bytes, int] = {}  # key -> the highest acknowledged version
        self.on_quorum: dict[tuple[str, bytes], int] = {}  # the same per datacenter, of those that a quorum there has
        self.asked: list[Asked] = []
        self.reads_answered = 0

    def step(self) -> None:
        cluster, rng = self.cluster, self.rng
        what = rng.choices(
            (
                self.write,
                self.read,
                self.crash,
                self.start,
                self.cut,
                cluster.heal,
                self.disks,
                self.late,
                self.close,
                self.builds,
            ),
            (60, 20, 5, 7, 3, 3, 4, 3, 2, 1),
        )[0]
        what()
        if rng.random() < 0.7:
            cluster.run(rng.choice((0, 1, 10, 100, 500, 1500)) * MS)
        if rng.random() < 0.3:
            shuffled = list(cluster.queue)
            rng.shuffle(shuffled)
            cluster.queue.clear()
            cluster.queue.extend(shuffled)
        self.end_runs(is_back=False)
        self.note_answers()

    def running(self) -> list[str]:
        return sorted(self.cluster.nodes)

    def key(self) -> bytes:
        return b"k%d" % self.rng.randrange(12)

    def write(self) -> None:
        if not self.running():
            return
        rng, node, key = self.rng, self.rng.choice(self.running()), self.key()
        value = None if rng.random() < 0.1 else rng.randbytes(4)
        level = rng.choice(LEVELS)
        call = self.cluster.write(node, {key: value}, level, timeout_ms=rng.choice((300, 2000, 4000)))
        self.open.append(Written(node, call, key, level is not Consistency.ONE))

    def read(self) -> None:
        if self.running():
            level = self.rng.choice((Consistency.QUORUM, Consistency.ALL))
            key, node = self.key(), self.rng.choice(self.running())
            batch = ReadBatch("default", [key], level, repair_before=self.rng.random() < 0.3, timeout_ms=1000)
            self.note_answers()
            version_min = self.on_quorum.get((self.cluster.dc_of[node], key), 0)
            self.asked.append(Asked(node, self.cluster.ask(node, batch), key, version_min))

    def crash(self) -> None:
        if self.running():
            self.cluster.crash(self.rng.choice(self.running()))

    def start(self) -> None:
        down = [name for name in self.cluster.names if name not in self.cluster.nodes]
        if down:
            self.cluster.start(self.rng.choice(down))

    def cut(self) -> None:
        self.cluster.cut(*self.rng.sample(self.cluster.names, 2))

    def disks(self) -> None:
        if self.running() and self.rng.random() < 0.5:
            self.cluster.slow_disks.add(self.rng.choice(self.running()))
        else:
            self.cluster.slow_disks.clear()

    def late(self) -> None:
        """What was held back arrives, in another order."""
        held, self.cluster.held = self.cluster.held, []
        self.rng.shuffle(held)
        self.cluster.queue.extend(message for message in held if message[1] in self.cluster.nodes)

    def close(self) -> None:
        """A co-owner closes the streams of a node that may well be alive."""
        if self.running():
            node = self.rng.choice(self.running())
            others = [n for n in self.cluster.names if n != node and self.cluster.dc_of[n] == self.cluster.dc_of[node]]
            if others:
                self.cluster.ask(node, AdminRequest("close_node", {"node": self.rng.choice(others)}))

    def builds(self) -> None:
        self.cluster.is_build_slow = not self.cluster.is_build_slow

    def end_runs(self, is_back: bool) -> None:
        """The host's part: a run that has ended is dropped, and comes back from its disk."""
        ended, self.cluster.ended = self.cluster.ended, []
        for name in {name for name, _ in ended}:
            if name in self.cluster.nodes:
                self.cluster.crash(name)
                if is_back:
                    self.cluster.start(name)

    def note_answers(self) -> None:
        for written in list(self.open):
            reply = self.cluster.reply(written.node, written.call)
            if reply is not None:
                self.open.remove(written)
                if reply.outcomes[0] in (Outcome.APPLIED, Outcome.PENDING):
                    self.acknowledged[written.key] = max(reply.versions[0], self.acknowledged.get(written.key, 0))
                    if written.is_quorum:
                        place = (self.cluster.dc_of[written.node], written.key)
                        self.on_quorum[place] = max(reply.versions[0], self.on_quorum.get(place, 0))
        for asked in list(self.asked):
            reply = self.cluster.reply(asked.node, asked.call)
            if reply is not None:
                self.asked.remove(asked)
                if reply.outcomes[0] == Outcome.APPLIED:
                    self.reads_answered += 1
                    assert reply.versions[0] >= asked.version_min, "a quorum read missed an acknowledged write"

    def calm(self) -> None:
        """No more faults; everybody is back; time for all to become equal."""
        cluster = self.cluster
        cluster.is_dropped = cluster.is_doubled = cluster.is_held = lambda s, r, m: False
        cluster.held.clear()
        cluster.slow_disks.clear()
        cluster.is_build_slow = False
        cluster.heal()
        for name in cluster.names:
            if name not in cluster.nodes:
                cluster.start(name)
        for _ in range(60):
            cluster.run(SECOND)
            self.end_runs(is_back=True)
            if not self.differing() and all(cluster.is_serving(n) for n in cluster.names) and not self.unfinished():
                break
        cluster.run(6 * SECOND)  # every caller's time has passed
        self.end_runs(is_back=True)
        self.note_answers()

    def unfinished(self) -> list[str]:
        """Closings that are not over."""
        return [
            f"{name} closes {r.node}: {r.waiting}" for name, n in self.cluster.nodes.items() for r in n.runs if not r.is_done
        ]

    def owners(self, key: bytes) -> list[str]:
        placement = self.cluster.nodes[self.cluster.names[0]].assembly.placement
        return [node for _, node in placement.everyone(key_hash(key) >> placement.shift)]

    def differing(self) -> list[bytes]:
        """Keys on whose cell the owners are not of one mind."""
        cells = {name: self.cluster.cells(name) for name in self.cluster.nodes}
        keys = sorted({key for held in cells.values() for key in held})
        return [key for key in keys if len({cells[node].get(key) for node in self.owners(key) if node in cells}) > 1]

    def lost(self) -> list[bytes]:
        """Keys whose newest acknowledged version, or a newer one, is not there."""
        return [key for key, version in self.acknowledged.items() if self.version(self.owners(key)[0], key) < version]

    def version(self, node: str, key: bytes) -> int:
        cell = self.cluster.cells(node).get(key)
        return lww_version(cell) if cell is not None else 0

    # --- what nodes believe of others ---------------------------------------------------------------------------------

    def assert_beliefs(self) -> None:
        for name, node in self.cluster.nodes.items():
            for table in node.context.tables.values():
                for stream in table.streams:
                    for peer, number in stream.peers.items():
                        assert self.covers(peer, stream, number), f"{name} believes {number} of {peer}"
                    for dc, number in stream.dcs.items():
                        owners = node.assembly.placement.by_dc[dc][stream.partition]
                        covering = sum(self.covers(owner, stream, number) for owner in owners)
                        assert covering >= len(owners) // 2 + 1, f"{name} believes {number} of {dc}"

    def covers(self, name: str, stream: Stream, number: int) -> bool:
        node = self.cluster.nodes.get(name)
        if node is None or stream.partition in node.context.closed.get(stream.origin, ()):
            return True  # a node that is down cannot be looked at; what is over everybody covers
        found = node.context.find_stream(*stream.key)
        return found is not None and found.frontier >= number


@pytest.mark.timeout(300)  # a hundred small clusters, half a second each where the machine is shared
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_nothing_acknowledged_is_lost_and_all_become_equal(shape: tuple[int, int], samples: Samples) -> None:
    """Whatever the order of messages, syncs and crashes."""
    reads = writes = 0
    for seed in range(samples.of(test=10, check=40, soak=2000)):
        mischief = Mischief(seed, *shape)
        for at in range(STEPS):
            mischief.step()
            if at % 10 == 0:
                mischief.assert_beliefs()
        mischief.calm()
        cluster = mischief.cluster
        mischief.assert_beliefs()
        assert [n for n in cluster.names if not cluster.is_serving(n)] == [], f"seed {seed}"
        assert mischief.unfinished() == [], f"seed {seed}"
        assert mischief.differing() == [], f"seed {seed}"
        assert mischief.lost() == [], f"seed {seed}"
        reads += mischief.reads_answered
        writes += len(mischief.acknowledged)
        assert not any(n.assembly.write.calls or n.assembly.read.calls for n in cluster.nodes.values())
        assert not cluster.after_end
    assert reads
    assert writes, "without acknowledged writes nothing was proved"
