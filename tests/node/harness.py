"""Nodes driven by hand: every message, sync and log read stands in a queue that a test may hold, drop, double or reorder.

The simulator (geokv/sim) tries everything at large; here one interleaving is laid out step by step. A disk is a list of frames:
what `Persist` brought and was told as done is there after a crash, and nothing else; and a folder for the engine, whose jobs
find the frames there as the segments of a real log.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any
from zlib import crc32

from geokv.core.quorum import Consistency
from geokv.core.topology import Topology, parse_topology
from geokv.errors import GeokvError, StorageError
from geokv.node.config import NodeConfig
from geokv.node.node import Node
from geokv.protocol.effects import (
    Answer,
    Asked,
    Build,
    Built,
    Delivered,
    Effect,
    EndIncarnation,
    Event,
    KeepSnapshots,
    Load,
    Loaded,
    Log,
    LogRead,
    Note,
    Pace,
    PeerConnected,
    PeerLost,
    Persist,
    Persisted,
    ReadLog,
    RoomChanged,
    Send,
    SnapshotsKept,
    Trim,
    WallClockRead,
    Woken,
)
from geokv.protocol.requests import AdminReply, AdminRequest, ReadBatch, ReadReply, Request, WriteBatch, WriteReply
from geokv.storage.crash_disk import CrashDisk
from geokv.storage.lsm.engine import LsmEngine, LsmOptions
from geokv.storage.lsm.work import run_job
from geokv.storage.snapshots import Snapshots
from geokv.storage.wal_format import (
    BODY,
    FORMAT,
    FRAME_HEADER_BYTES,
    PREFIX,
    SEGMENT_HEADER_BYTES,
    encode_segment_header,
    segment_seed,
)
from geokv.storage.wal_recovery import segment_name

MS = 1_000
SECOND = 1_000_000
QUICK: Any = {"stability_us": 200_000, "collect_us": 500_000}  # what may be collected soon is
WALL_US = 1_700_000_000 * SECOND


def topology_of(datacenters: int = 1, nodes: int = 3, replicas: int = 3, partitions: int = 8) -> Topology:
    """A small cluster: dc1-1, dc1-2 …, dc2-1 …"""
    lines = ['cluster = "test"', f"partitions = {partitions}"]
    port = 7000
    for dc in range(1, datacenters + 1):
        lines += ["[[datacenter]]", f'name = "dc{dc}"', f"replicas = {replicas}"]
        for node in range(1, nodes + 1):
            port += 1
            lines += [
                "[[datacenter.node]]",
                f'name = "dc{dc}-{node}"',
                f'rack = "r{node}"',
                f'address = "127.0.0.1:{port}"',
            ]
    for one in range(1, datacenters + 1):
        for other in range(one + 1, datacenters + 1):
            lines += ["[[link]]", f'from = "dc{one}"', f'to = "dc{other}"', "round_trip_ms = 20"]
    return parse_topology("\n".join(lines), "test")


@dataclass
class Disk:
    """Frames that are synced, and the engine's folder."""

    segment_bytes: int = 1 << 20
    room_bytes: int = 32 << 20
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)
    sequence: int = 0
    folder: CrashDisk = field(default_factory=CrashDisk)
    options: LsmOptions | None = None
    is_flushed: bool = False
    _segment: int = 1
    _at: int = SEGMENT_HEADER_BYTES

    def append(self, payload: bytes) -> tuple[int, int]:
        if self._at + len(payload) + FRAME_HEADER_BYTES > self.segment_bytes and self._at > SEGMENT_HEADER_BYTES:
            self._segment, self._at = self._segment + 1, SEGMENT_HEADER_BYTES
        offset = self._at + FRAME_HEADER_BYTES
        self.frames.append((self._segment, offset, payload))
        self._at = offset + len(payload)
        self.sequence += 1
        return self._segment, offset

    def read(self, places: list[tuple[int, int, int]]) -> bytes | None:
        pieces: list[bytes] = []
        for segment, offset, length in places:
            for at_segment, at, payload in self.frames:
                if at_segment == segment and at <= offset and offset + length <= at + len(payload):
                    pieces.append(payload[offset - at : offset - at + length])
                    break
            else:
                return None
        return b"".join(pieces)

    def trim(self, segment: int) -> None:
        self.frames = [frame for frame in self.frames if frame[0] >= segment]

    def copy(self) -> Disk:
        return replace(self, frames=list(self.frames), folder=self.folder.copy())

    def engine(self) -> LsmEngine:
        """What a starting node finds in the folder."""
        return LsmEngine(self.folder, self.options)

    def build(self, engine: LsmEngine, job: Any) -> None:
        """Run a job of the engine, over the frames as a log has them, and install what it made. Raises StorageError."""
        self.folder.make_folder("log")
        for number in {segment for segment, _, _ in self.frames}:
            self.folder.allocate(segment_name(number), 0)
            self.folder.append(segment_name(number), self._segment_image(number))
        try:
            tables = run_job(self.folder, job)
        except StorageError as error:
            engine.noticed(error)
            engine.discard(job)
            raise
        engine.install(job, tables)
        self.is_flushed = True

    def _segment_image(self, number: int) -> bytes:
        pieces = [encode_segment_header(number, self.segment_bytes, 1)]
        payloads = [payload for segment, _, payload in self.frames if segment == number]
        for sequence, payload in enumerate(payloads, start=1):
            body = BODY.pack(FORMAT, 0, 0, sequence)
            pieces += [PREFIX.pack(len(payload), crc32(payload, crc32(body, segment_seed(number)))), body, payload]
        return b"".join(pieces)


class Cluster:
    """All nodes of a topology on one virtual clock. Queues are worked off by `settle` and `run`."""

    def __init__(
        self, datacenters: int = 1, nodes: int = 3, replicas: int = 3, partitions: int = 8, seed: int = 1, **config: Any
    ):
        self.topology = topology_of(datacenters, nodes, replicas, partitions)
        self.rng = random.Random(seed)
        self.now_us = SECOND
        self.wall_offset_us: dict[str, int] = {}
        self.names = [node.name for node in self.topology.nodes]
        self.dc_of = {node.name: node.dc for node in self.topology.nodes}
        self.disks = {name: Disk() for name in self.names}
        self.nodes: dict[str, Node] = {}
        self.engines: dict[str, LsmEngine] = {}
        self.config = config
        self.queue: deque[tuple[str, str, object]] = deque()  # sender, receiver, message
        self.held: list[tuple[str, str, object]] = []
        self.is_dropped: Callable[[str, str, object], bool] = lambda sender, receiver, message: False
        self.is_held: Callable[[str, str, object], bool] = lambda sender, receiver, message: False
        self.is_doubled: Callable[[str, str, object], bool] = lambda sender, receiver, message: False
        self.cuts: set[frozenset[str]] = set()
        self.slow_disks: set[str] = set()  # their Persists wait in `persisting` for `sync`
        self.persisting: dict[str, Persist] = {}
        self.slow_reads: set[str] = set()
        self.reading: list[tuple[str, ReadLog]] = []
        self.slow_loads: set[str] = set()
        self.loading: list[tuple[str, Load]] = []
        self.replies: dict[tuple[str, int], Any] = {}
        self.ended: list[tuple[str, str]] = []
        self.after_end: list[Effect] = []
        self.logs: list[tuple[str, Log]] = []
        self.sent: list[tuple[str, str, object]] = []
        self.trimmed: dict[str, int] = {}
        self.builds: list[tuple[str, Build]] = []
        self.is_build_slow = False
        self.keeping: list[tuple[str, KeepSnapshots]] = []
        self.paces: dict[str, Pace] = {}
        self.notes: dict[str, int] = {}
        self._call = 0

    # --- runs of nodes ------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> Cluster:
        """Start nodes (all by default) from their disks, and connect them to whoever runs."""
        for name in names or self.names:
            self._recover(name)
            for other in self.nodes:
                if other != name and frozenset((name, other)) not in self.cuts:
                    self._connect(name, other)
        return self

    def _recover(self, name: str) -> None:
        disk = self.disks[name]
        engine = self.engines[name] = disk.engine()
        config = NodeConfig(self.topology.cluster, self.dc_of[name], name, self.topology, **self.config)
        seed = random.Random(self.rng.getrandbits(64))
        wall_us = self.wall_us(name)
        node = Node.recover(config, seed, self.now_us, wall_us, None, list(disk.frames), disk.room_bytes, disk.sequence, engine)
        self.nodes[name] = node
        self.give(name, WallClockRead(wall_us))

    def wall_us(self, name: str) -> int:
        return WALL_US + self.now_us + self.wall_offset_us.get(name, 0)

    def _connect(self, one: str, other: str) -> None:
        self.give(one, PeerConnected(other, self.nodes[other].incarnation))
        self.give(other, PeerConnected(one, self.nodes[one].incarnation))

    def crash(self, name: str) -> None:
        """The node is gone; what was told as synced stays. Messages to and from it on the way are lost."""
        self.nodes.pop(name, None)
        self.persisting.pop(name, None)
        self.reading = [entry for entry in self.reading if entry[0] != name]
        self.loading = [entry for entry in self.loading if entry[0] != name]
        self.builds = [entry for entry in self.builds if entry[0] != name]
        self.keeping = [entry for entry in self.keeping if entry[0] != name]
        self.queue = deque(m for m in self.queue if name not in m[:2])
        for other in list(self.nodes):
            self.give(other, PeerLost(name))

    def restart(self, name: str) -> None:
        self.crash(name)
        self.start(name)

    def cut(self, one: str, other: str) -> None:
        self.cuts.add(frozenset((one, other)))
        self.queue = deque(m for m in self.queue if {one, other} != set(m[:2]))
        for name, peer in ((one, other), (other, one)):
            if name in self.nodes:
                self.give(name, PeerLost(peer))

    def cut_apart(self) -> None:
        """Cut every datacenter off from every other."""
        for one, other in combinations(self.names, 2):
            if self.dc_of[one] != self.dc_of[other]:
                self.cut(one, other)

    def heal(self) -> None:
        cuts, self.cuts = self.cuts, set()
        for pair in sorted(cuts, key=sorted):
            one, other = sorted(pair)
            if one in self.nodes and other in self.nodes:
                self._connect(one, other)

    # --- events and effects -------------------------------------------------------------------------------------------

    def give(self, name: str, event: Event) -> list[Effect]:
        """Give one event to a node and perform what it wants."""
        node = self.nodes.get(name)
        if node is None:
            return []
        effects = node.handle(event, self.now_us)
        is_over = False
        for effect in effects:
            if is_over:
                self.after_end.append(effect)
                continue
            is_over = isinstance(effect, EndIncarnation)
            self._perform(name, effect)
        return effects

    def _perform(self, name: str, effect: Effect) -> None:  # noqa: C901  # one branch per effect
        match effect:
            case Send(peer=peer, message=message):
                self._send(name, peer, message)
            case Persist():
                assert name not in self.persisting, "two Persists at once"
                self.persisting[name] = effect
            case Answer(call=call, reply=reply):
                assert (name, call) not in self.replies, "answered twice"
                self.replies[name, call] = reply
            case ReadLog():
                self.reading.append((name, effect))
            case Load():
                self.loading.append((name, effect))
            case Build():
                self.builds.append((name, effect))
            case KeepSnapshots():
                self.keeping.append((name, effect))
            case Pace():
                self.paces[name] = effect
            case Trim(segment=segment):
                self.trimmed[name] = segment
                self.disks[name].trim(segment)
            case EndIncarnation(reason=reason):
                self.ended.append((name, reason))
            case Log():
                self.logs.append((name, effect))
            case Note(name=note, count=count):
                self.notes[note] = self.notes.get(note, 0) + count

    def _send(self, sender: str, receiver: str, message: object) -> None:
        self.sent.append((sender, receiver, message))
        if frozenset((sender, receiver)) in self.cuts or receiver not in self.nodes:
            return
        if self.is_dropped(sender, receiver, message):
            return
        if self.is_held(sender, receiver, message):
            self.held.append((sender, receiver, message))
            return
        self.queue.append((sender, receiver, message))
        if self.is_doubled(sender, receiver, message):
            self.queue.append((sender, receiver, message))

    def lose_one(self, is_it: Callable[[object], bool]) -> list[object]:
        """From now on drop the first message that is so, and no other; it will stand in the list returned."""
        lost: list[object] = []

        def is_dropped(sender: str, receiver: str, message: object) -> bool:
            if lost or not is_it(message):
                return False
            lost.append(message)
            return True

        self.is_dropped = is_dropped
        return lost

    def release(self) -> None:
        """What was held back arrives now."""
        held, self.held = self.held, []
        self.is_held = lambda sender, receiver, message: False
        self.queue.extend(held)

    def sync(self, name: str) -> None:
        """The Persist that a slow disk has under way is done."""
        persist = self.persisting.pop(name)
        disk = self.disks[name]
        segment, offset = disk.append(persist.payload)
        disk.room_bytes -= len(persist.payload) + FRAME_HEADER_BYTES
        self.give(name, Persisted(persist.token, segment, offset, disk.room_bytes))

    def read_log(self, name: str) -> None:
        """The first ReadLog of a slow reader is done."""
        at = next(at for at, entry in enumerate(self.reading) if entry[0] == name)
        _, effect = self.reading.pop(at)
        self.give(name, LogRead(effect.token, self.disks[name].read(effect.places)))

    def build(self, name: str) -> None:
        """The first job of the engine that waits is done, and what it made stands now, or its disk has failed it."""
        at = next(at for at, entry in enumerate(self.builds) if entry[0] == name)
        _, effect = self.builds.pop(at)
        error = ""
        try:
            self.disks[name].build(self.engines[name], effect.job)
        except StorageError as failure:
            error = str(failure)
        self.give(name, Built(effect.token, error))

    def keep(self, name: str, effect: KeepSnapshots) -> None:
        """An order about snapshots is followed."""
        found: list[Any] = []
        failure: Exception | None = None
        try:
            found = Snapshots(self.disks[name].folder, self.engines[name]).do(effect.order)
        except GeokvError as error:
            failure = error
        self.give(name, SnapshotsKept(effect.token, found, failure))

    def load(self, name: str, error: str = "") -> None:
        """The first Load of a slow disk is done, or has failed."""
        at = next(at for at, entry in enumerate(self.loading) if entry[0] == name)
        _, effect = self.loading.pop(at)
        errors = [error] * len(effect.parts)
        for at, (cells, keys) in enumerate(effect.parts if not error else ()):
            try:
                cells.load(keys)
            except StorageError as failure:
                errors[at] = str(failure)
        self.give(name, Loaded(effect.token, errors))

    def give_message(self, sender: str, receiver: str, message: object) -> None:
        """A message arrives that nobody has sent."""
        self.give(receiver, Delivered(sender, message))

    def room(self, name: str, room_bytes: int, reason: str = "") -> None:
        self.disks[name].room_bytes = room_bytes
        self.give(name, RoomChanged(room_bytes, reason))

    # --- time -----------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Work off every queue at this very moment."""
        for _ in range(100_000):
            if self.queue:
                sender, receiver, message = self.queue.popleft()
                self.give(receiver, Delivered(sender, message))
            elif name := next((n for n in self.persisting if n not in self.slow_disks), None):
                self.sync(name)
            elif name := next((n for n, _ in self.reading if n not in self.slow_reads), None):
                self.read_log(name)
            elif name := next((n for n, _ in self.loading if n not in self.slow_loads), None):
                self.load(name)
            elif self.keeping:
                self.keep(*self.keeping.pop(0))
            elif self.builds and not self.is_build_slow:
                self.build(self.builds[0][0])
            else:
                return
        raise AssertionError("the cluster does not come to rest")

    def run(self, us: int) -> Cluster:
        """Let time pass, with everything that happens in it."""
        end = self.now_us + us
        for _ in range(200_000):
            self.settle()
            wakes = [wake for node in self.nodes.values() if (wake := node.wake_at_us()) is not None]
            at = min(wakes, default=end + 1)
            if at > end:
                break
            self.now_us = max(self.now_us, at)
            for name in list(self.nodes):
                node = self.nodes.get(name)
                wake = node.wake_at_us() if node is not None else None
                if wake is not None and wake <= self.now_us:
                    self.give(name, WallClockRead(self.wall_us(name)))
                    self.give(name, Woken())
        else:
            raise AssertionError("time does not pass")
        self.now_us = end
        return self

    def run_until(self, is_so: Callable[[], bool], us: int = 20 * SECOND) -> Cluster:
        """Let time pass until something is so; fails where it never is."""
        deadline = self.now_us + us
        while not is_so():
            assert self.now_us < deadline, "it did not happen in time"
            self.run(20 * MS)
        return self

    # --- what clients do --------------------------------------------------------------------------------------------------

    def ask(self, name: str, request: Request) -> int:
        """Give a call to a node; its answer will stand in `reply`."""
        self._call += 1
        self.give(name, Asked(self._call, request))
        return self._call

    def reply(self, name: str, call: int) -> Any:
        return self.replies.get((name, call))

    def write(
        self, name: str, items: dict[bytes, bytes | None], level: Consistency = Consistency.QUORUM, **options: Any
    ) -> int:
        namespace = options.pop("namespace", "default")
        return self.ask(name, WriteBatch(namespace, list(items), list(items.values()), level, **options))

    def put(
        self, name: str, key: bytes, value: bytes | None, level: Consistency = Consistency.QUORUM, **options: Any
    ) -> WriteReply:
        """One write, worked off until it is answered."""
        call = self.write(name, {key: value}, level, **options)
        self.run_until(lambda: self.reply(name, call) is not None)
        reply = self.reply(name, call)
        assert isinstance(reply, WriteReply)
        return reply

    def get(self, name: str, key: bytes, level: Consistency = Consistency.QUORUM, **options: Any) -> ReadReply:
        """One read, worked off until it is answered."""
        namespace = options.pop("namespace", "default")
        call = self.ask(name, ReadBatch(namespace, [key], level, **options))
        self.run_until(lambda: self.reply(name, call) is not None)
        reply = self.reply(name, call)
        assert isinstance(reply, ReadReply)
        return reply

    def admin(self, name: str, verb: str, /, **arguments: Any) -> AdminReply:
        call = self.ask(name, AdminRequest(verb, arguments))
        self.run_until(lambda: self.reply(name, call) is not None)
        reply = self.reply(name, call)
        assert isinstance(reply, AdminReply)
        return reply

    def create(self, name: str, policy: str) -> Cluster:
        """A namespace, once every node has it."""
        self.admin(self.names[0], "namespace_create", name=name, policy=policy)
        return self.run_until(lambda: all(node.assembly.table_named(name) for node in self.nodes.values()))

    # --- what is so -----------------------------------------------------------------------------------------------------------

    def serving(self) -> Cluster:
        """Run until every node serves and takes part in agreements."""
        return self.run_until(lambda: all(self.is_serving(name) for name in self.nodes))

    def is_serving(self, name: str) -> bool:
        node = self.nodes[name]
        return node.started_us is not None and not node.is_refusing and node.assembly.definitions.is_member

    def cells(self, name: str, namespace: str = "default") -> dict[bytes, bytes]:
        table = self.nodes[name].assembly.table_named(namespace)
        return dict(table.cells.items()) if table is not None else {}

    def are_equal(self, namespace: str = "default") -> bool:
        first = self.cells(next(iter(self.nodes)), namespace)
        return all(self.cells(name, namespace) == first for name in self.nodes)

    def streams(self, name: str, namespace: str = "default") -> dict[tuple[int, bytes], Any]:
        table = self.nodes[name].assembly.table_named(namespace)
        assert table is not None
        return {(stream.partition, stream.origin): stream for stream in table.streams}

    def messages(self, kind: type, sender: str = "", receiver: str = "") -> list[Any]:
        """What was sent so far, of one kind."""
        return [m for s, r, m in self.sent if isinstance(m, kind) and sender in ("", s) and receiver in ("", r)]
