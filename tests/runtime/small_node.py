"""A small machine that keeps the contract of geokv.protocol.effects: a replicated dictionary, for trying the real host alone.

A write is persisted (one Persist at a time), sent to every connected peer, and answered when all of them have it. Reads
answer from memory. A few keys are orders: what the real node does on bad days, this one does when asked.
"""

from __future__ import annotations

import json
import random
from collections import deque
from pathlib import Path

from geokv.core.topology import Topology, parse_topology
from geokv.errors import StorageError
from geokv.protocol.effects import (
    Answer,
    Asked,
    CallGone,
    Delivered,
    Effect,
    EndIncarnation,
    Event,
    Note,
    PeerConnected,
    PeerLost,
    Persist,
    Persisted,
    PersistFailed,
    RoomChanged,
    Send,
    WallClockRead,
    Woken,
)
from geokv.protocol.messages import FeedClose, Replicate, Replicated, Statement
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Outcome,
    ReadBatch,
    ReadReply,
    WriteBatch,
    WriteReply,
)
from geokv.runtime.machine import Opened, Opener
from geokv.storage.disk import Disk
from geokv.storage.wal import Log

SEGMENT_BYTES = 64 * 1024
HANG, CRASH, END = b"!hang", b"!crash", b"!end"


def pack(pairs: dict[bytes, bytes]) -> bytes:
    return json.dumps({key.hex(): value.hex() for key, value in pairs.items()}).encode()


def unpack(payload: bytes) -> dict[bytes, bytes]:
    return {bytes.fromhex(key): bytes.fromhex(value) for key, value in json.loads(payload).items()}


class SmallNode:
    """See the module. `events` keeps what it was told, for tests to look at."""

    is_refusing = ""

    def __init__(self, name: str, stored: dict[bytes, bytes]) -> None:
        self.name = name
        self.incarnation = random.getrandbits(48)
        self.stored = stored
        self.connected: dict[str, int] = {}
        self.events: list[Event] = []
        self.gone: list[int] = []
        self.room_bytes = 0
        self._to_persist: deque[tuple[int, dict[bytes, bytes], Asked | None, str]] = deque()
        self._is_persisting = False
        self._next = 0
        self._waiting: dict[int, tuple[Asked, set[str]]] = {}
        self._wake_us: int | None = None
        self._effects: list[Effect] = []

    def handle(self, event: Event, now_us: int) -> list[Effect]:  # noqa: C901  # one case per event
        self._effects = []
        if not isinstance(event, WallClockRead):
            self.events.append(event)
        match event:
            case Asked(_, WriteBatch()):
                self._write(event)
            case Asked(call, ReadBatch() as batch):
                self._read(call, batch)
            case Asked(call, AdminRequest() as request):
                self._effects.append(Answer(call, AdminReply(Outcome.APPLIED, {"verb": request.verb})))
            case CallGone(call):
                self.gone.append(call)
            case Delivered(peer, message):
                self._delivered(peer, message)
            case PeerConnected(peer, incarnation):
                self.connected[peer] = incarnation
                self._effects.append(Send(peer, Statement(now_us, 0, 0, 0, 0, True, [], [], {})))
            case PeerLost(peer):
                self.connected.pop(peer, None)
                self._forget_peer(peer)
            case Persisted(_, _, _, room_bytes):
                self.room_bytes = room_bytes
                self._persisted()
            case PersistFailed(_, reason):
                self._effects.append(EndIncarnation(reason))
            case RoomChanged(room_bytes):
                self.room_bytes = room_bytes
                self._persist_next()
            case Woken():
                self._wake_us = None
                self._effects.append(Note("small.woken"))
        return self._effects

    def wake_at_us(self) -> int | None:
        return self._wake_us

    def wake_in(self, now_us: int, us: int) -> None:
        self._wake_us = now_us + us

    def metrics(self) -> dict[str, int | float]:
        return {"small.stored": len(self.stored)}

    def _write(self, event: Asked) -> None:
        batch = event.request
        assert isinstance(batch, WriteBatch)
        if batch.keys[0] == CRASH:
            raise AssertionError("told to")
        if batch.keys[0] == END:
            self._effects.append(EndIncarnation("told to"))
        if batch.keys[0] in (HANG, END):
            return
        pairs = {key: value or b"" for key, value in zip(batch.keys, batch.values, strict=True)}
        self._queue(pairs, event, "")

    def _queue(self, pairs: dict[bytes, bytes], event: Asked | None, peer: str, batch: int = 0) -> None:
        self._next += 1
        self._to_persist.append((batch or self._next, pairs, event, peer))
        self._persist_next()

    def _persist_next(self) -> None:
        if self._to_persist and not self._is_persisting:
            payload = pack(self._to_persist[0][1])
            if len(payload) <= self.room_bytes:
                self._is_persisting = True
                self._effects.append(Persist(self._to_persist[0][0], payload, True))

    def _persisted(self) -> None:
        self._is_persisting = False
        batch, pairs, event, peer = self._to_persist.popleft()
        self.stored.update(pairs)
        if event is None:
            self._effects.append(Send(peer, Replicated(batch)))
        else:
            self._waiting[batch] = (event, set(self.connected))
            self._effects.extend(Send(other, Replicate(batch, pack(pairs))) for other in self.connected)
            self._answer_if_done(batch)
        self._persist_next()

    def _delivered(self, peer: str, message: object) -> None:
        if isinstance(message, Replicate):
            self._queue(unpack(message.records), None, peer, message.batch)
        elif isinstance(message, Replicated) and message.batch in self._waiting:
            self._waiting[message.batch][1].discard(peer)
            self._answer_if_done(message.batch)
        elif isinstance(message, FeedClose):
            self._effects.append(Note("small.feed_close"))

    def _forget_peer(self, peer: str) -> None:
        for batch, (_, missing) in list(self._waiting.items()):
            missing.discard(peer)
            self._answer_if_done(batch)

    def _answer_if_done(self, batch: int) -> None:
        event, missing = self._waiting[batch]
        if not missing:
            del self._waiting[batch]
            assert isinstance(event.request, WriteBatch)
            n = len(event.request.keys)
            copies = len(self.connected) + 1
            reply = WriteReply([Outcome.APPLIED] * n, [batch] * n, [copies] * n, [1] * n, self.name, 1, 1)
            self._effects.append(Answer(event.call, reply))

    def _read(self, call: int, batch: ReadBatch) -> None:
        values = [self.stored.get(key) for key in batch.keys]
        n = len(values)
        reply = ReadReply([Outcome.APPLIED] * n, values, [1] * n, [1] * n, self.name, 1, 1)
        self._effects.append(Answer(call, reply))


def small_opener(disk: Disk, name: str, opened: list[SmallNode]) -> Opener:
    """Recovers small nodes from a real log; each is put into `opened`."""

    def begin() -> Opened:
        log = Log.open(disk, SEGMENT_BYTES)
        stored: dict[bytes, bytes] = {}
        for _, _, payload in log.replay():
            stored.update(unpack(payload))
        log.prepare()
        node = SmallNode(name, stored)
        opened.append(node)

        def close() -> None:
            try:
                log.sync()
            except StorageError:
                pass

        def build(job: object) -> None:
            raise StorageError("a small node has no engine")

        low = SEGMENT_BYTES
        return Opened(node, log, build, lambda: None, lambda rate, is_paused: None, NoSnapshots(), close, room_bytes_low=low)

    return begin


class NoSnapshots:
    """A small node has none."""

    def do(self, order: object) -> list[object]:
        return []

    def read(self, name: str, path: str, offset: int, length: int) -> bytes:
        raise StorageError("a small node has no snapshots")


def small_topology(ports: dict[str, int], cluster: str = "small") -> Topology:
    """A cluster of nodes named `dc-n`, on loopback ports."""
    dcs: dict[str, list[str]] = {}
    for node in ports:
        dcs.setdefault(node.rpartition("-")[0], []).append(node)
    lines = [f'cluster = "{cluster}"', "partitions = 16"]
    for dc, nodes in dcs.items():
        lines += ["[[datacenter]]", f'name = "{dc}"', f"replicas = {len(nodes)}"]
        for node in nodes:
            lines += [
                "[[datacenter.node]]",
                f'name = "{node}"',
                f'rack = "{node}"',
                f'address = "127.0.0.1:{ports[node]}"',
            ]
    names = list(dcs)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            lines += ["[[link]]", f'from = "{one}"', f'to = "{other}"', "round_trip_ms = 1"]
    return parse_topology("\n".join(lines))


def write_topology(path: Path, topology: Topology) -> Path:
    from geokv.core.topology import render_topology

    path.write_text(render_topology(topology))
    return path
