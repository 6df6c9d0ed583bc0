"""What one write costs inside the nodes: `python -m benchmarks.write_profile`.

Three nodes' machines in this process, no network and no disk: each message is encoded and decoded as on the wire, each
event is timed, and the sum is divided by the writes. What this does not show is what the system around it costs: gRPC,
threads, fsync, and caches that are cold when a node wakes up.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from time import perf_counter_ns
from typing import Any, Final, cast

from benchmarks.common import cell, table
from geokv.core.cells.operation import Operation
from geokv.core.cells.wire import encode_operation
from geokv.core.topology import parse_topology
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.protocol.effects import Answer, Asked, Delivered, Effect, Event, PeerConnected, Persist, Persisted, Send, Woken
from geokv.protocol.requests import AdminRequest, WriteBatch, WriteReply
from geokv.runtime.wire import kv
from geokv.runtime.wire.peer import decode_frame, encode_message
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.lsm.engine import LsmEngine

NODES: Final = ("n1", "n2", "n3")
KEYS: Final = [b"key-%012d" % number for number in range(10_000)]
FEW_KEYS: Final = 200  # of cells of dots, so that they have something in them
ROOM_BYTES: Final = 32 << 20
WALL_US: Final = 1_700_000_000_000_000
TOPOLOGY: Final = 'cluster = "profile"\npartitions = 256\n[[datacenter]]\nname = "dc"\nreplicas = 3\n' + "".join(
    f'[[datacenter.node]]\nname = "{name}"\nrack = "{name}"\naddress = "127.0.0.1:{7001 + index}"\n'
    for index, name in enumerate(NODES)
)


class Cluster:
    """Three nodes and a queue of what is on its way between them. `spent_ns` and `times` are per step."""

    def __init__(self) -> None:
        self.topology = parse_topology(TOPOLOGY, "profile")
        self.now_us = 1_000_000
        self.queue: deque[tuple[str, Callable[[], Event]]] = deque()
        self.spent_ns: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self.ends = dict.fromkeys(NODES, 64)
        self.nodes = {
            name: Node.recover(
                NodeConfig("profile", "dc", name, self.topology),
                random.Random(name),
                self.now_us,
                WALL_US,
                None,
                (),
                ROOM_BYTES,
                0,
                LsmEngine(CrashDisk()),
            )
            for name in NODES
        }
        for name, node in self.nodes.items():
            for other in NODES:
                if other != name:
                    self.give(name, PeerConnected(other, self.nodes[other].incarnation))
            self.perform(name, node.handle(Woken(), self.now_us))
        while any(node.is_refusing or node.started_us is None for node in self.nodes.values()):
            self.work_off()
            self.now_us += 50_000
            for name in NODES:
                self.give(name, Woken())

    def timed(self, step: str, work: Callable[[], Any]) -> Any:
        begun_ns = perf_counter_ns()
        made = work()
        self.spent_ns[step] += perf_counter_ns() - begun_ns
        self.times[step] += 1
        return made

    def give(self, name: str, event: Event) -> None:
        step = type(event.message if isinstance(event, Delivered) else event).__name__
        self.perform(name, self.timed(f"machine: {step}", lambda: self.nodes[name].handle(event, self.now_us)))

    def perform(self, name: str, effects: list[Effect]) -> None:
        newest, frame = None, b""
        for effect in effects:
            if isinstance(effect, Send):
                if effect.message is not newest:  # to several peers: encoded once, as the transport does it
                    frame = self.timed("wire: encode between nodes", partial(encode_message, effect.message))
                    newest = effect.message
                self.queue.append((effect.peer, self._arrival(name, frame)))
            elif isinstance(effect, Persist):
                offset = self.ends[name]
                self.ends[name] += len(effect.payload) + 32
                synced = Persisted(effect.token, 1, offset & 0xFFFFFFF, ROOM_BYTES)
                self.queue.append((name, lambda synced=synced: synced))  # type: ignore[misc]
            elif isinstance(effect, Answer) and isinstance(effect.reply, WriteReply):
                reply = effect.reply
                self.timed("wire: encode the answer", partial(kv.encode_write_reply, reply))

    def _arrival(self, sender: str, frame: bytes) -> Callable[[], Event]:
        def arrive() -> Event:
            (message,) = self.timed("wire: decode between nodes", lambda: decode_frame(frame, self.topology.partitions))
            return Delivered(sender, message)

        return arrive

    def work_off(self) -> None:
        while self.queue:
            name, event = self.queue.popleft()
            self.give(name, event())

    def write(self, coordinator: str, call: int, payload: bytes) -> None:
        batch = self.timed("wire: decode the request", lambda: kv.decode_write_request(payload))
        self.give(coordinator, Asked(call, batch))
        self.work_off()

    def create(self, policy: str) -> None:
        """Make a namespace of that policy and by its name, and wait until all nodes have it."""
        self.give(NODES[0], Asked(0, AdminRequest("namespace_create", {"name": policy, "policy": policy})))
        while not all(node.assembly.table_named(policy) for node in self.nodes.values()):
            self.work_off()
            self.now_us += 50_000
            for name in NODES:
                self.give(name, Woken())


def measure(batches: int, items: int, rng: random.Random, policy: str) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds per write and step, and how often each step ran per batch; the best of five rounds."""
    cluster = Cluster()
    if policy != "lww":
        cluster.create(policy)
    best: dict[str, float] = {}
    often: dict[str, float] = {}
    for attempt in range(6):
        cluster.spent_ns.clear()
        cluster.times.clear()
        for number in range(batches):
            payload = request(rng.sample(KEYS if policy == "lww" else KEYS[:FEW_KEYS], items), policy, rng)
            cluster.write(NODES[number % 3], attempt * batches + number, payload)
        figures = {step: spent_ns / 1e3 / (batches * items) for step, spent_ns in cluster.spent_ns.items()}
        if attempt and (not best or sum(figures.values()) < sum(best.values())):
            best = figures
            often = {step: times / batches for step, times in cluster.times.items()}
    return best, often


def request(keys: list[bytes], policy: str, rng: random.Random) -> bytes:
    """A batch of puts, increments or additions, as the SDK sends it."""
    if policy == "lww":
        values = cast("list[bytes | None]", [bytes(256)] * len(keys))
    else:
        values = [encode_operation(operation(policy, rng)) for _ in keys]
    names = [bytes(16)] * len(keys)
    batch = WriteBatch("default" if policy == "lww" else policy, keys, values, operations=names, has_updates=policy != "lww")
    return kv.encode_write_request(batch)


def operation(policy: str, rng: random.Random) -> Operation:
    """One more, or one of a hundred elements."""
    return Operation("increment", (1,)) if policy == "counter_pn" else Operation("add", (b"element-%03d" % rng.randrange(100),))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=60, help="writes in one batch (60)")
    parser.add_argument("--batches", type=int, default=150, help="batches in one round (150)")
    parser.add_argument("--policy", choices=["lww", "counter_pn", "set_aw"], default="lww", help="of the namespace (lww)")
    asked = parser.parse_args()
    gc.set_threshold(50_000, 20, 100)
    figures, often = measure(asked.batches, asked.items, random.Random(1), asked.policy)
    steps = sorted(figures, key=lambda step: -figures[step])
    rows = [[step, cell(figures[step], 2), cell(often[step], 1)] for step in steps]
    rows.append(["all of it, on three nodes", cell(sum(figures.values()), 2), ""])
    print(table(["step", "us per write", "times per batch"], rows))


if __name__ == "__main__":
    main()
