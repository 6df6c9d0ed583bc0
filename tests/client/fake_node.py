"""A small node for the client's tests: real gRPC, a dictionary for a store, and outcomes by script.

`FakeCluster` runs any number of them in one event loop. `FakeNode.script(batch)` may return a reply, raise Abort, or
hang; without one the node does what a healthy node does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from geokv.core.ring import Member, Ring
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Detail,
    Outcome,
    ReadBatch,
    ReadReply,
    WriteBatch,
    WriteReply,
)
from geokv.runtime.channel import SERVER_OPTIONS
from geokv.runtime.methods import ADMIN_DO, ADMIN_RING, KV_READ, KV_WRITE
from geokv.runtime.wire import kv

PARTITIONS = 64


@dataclass
class Abort(Exception):
    """End the call with this status."""

    code: grpc.StatusCode
    text: str = ""
    trailing: tuple[tuple[str, str], ...] = ()


Script = Callable[[Any], Awaitable[Any]]


@dataclass
class FakeNode:
    name: str
    dc: str
    rack: str
    cluster: FakeCluster
    port: int = 0
    script: Script | None = None
    batches: list[Any] = field(default_factory=list)
    server: grpc.aio.Server | None = None
    cells: dict[tuple[str, bytes], tuple[bytes | None, int]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        self.server.add_generic_rpc_handlers(self._handlers())
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def stop(self) -> None:
        server, self.server = self.server, None
        if server is not None:
            await server.stop(None)

    def _handlers(self) -> tuple[Any, ...]:
        handlers: dict[str, dict[str, Any]] = {}
        implementations = (
            (KV_WRITE, self._write),
            (KV_READ, self._read),
            (ADMIN_DO, self._do),
            (ADMIN_RING, self._ring),
        )
        for method, implementation in implementations:
            handlers.setdefault(method.service, {})[method.name] = grpc.unary_unary_rpc_method_handler(implementation)
        return tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items())

    async def _scripted(self, request: Any, context: Any) -> Any:
        self.batches.append(request)
        if self.script is None:
            return None
        try:
            return await self.script(request)
        except Abort as abort:
            await context.abort(abort.code, abort.text, abort.trailing)

    async def _write(self, payload: bytes, context: Any) -> bytes:
        batch = kv.decode_write_request(payload)
        reply = await self._scripted(batch, context) or self.apply(batch)
        return kv.encode_write_reply(reply, self.cluster.version)

    async def _read(self, payload: bytes, context: Any) -> bytes:
        batch = kv.decode_read_request(payload)
        reply = await self._scripted(batch, context) or self.look_up(batch)
        return kv.encode_read_reply(reply, self.cluster.version)

    async def _do(self, payload: bytes, context: Any) -> bytes:
        request = kv.decode_admin_request(payload)
        reply = await self._scripted(request, context) or self.administer(request)
        return kv.encode_admin_reply(reply)

    async def _ring(self, payload: bytes, context: Any) -> bytes:
        viewpoint = kv.decode_ring_request(payload)
        self.cluster.viewpoints.append(viewpoint)
        if self.cluster.is_ring_mute(self):
            await asyncio.Event().wait()
        return kv.encode_ring_reply(self.cluster.ring(self.name))

    # --- what a healthy node does -------------------------------------------------------------------------------------

    def apply(self, batch: WriteBatch) -> WriteReply:
        versions = []
        for key, value in zip(batch.keys, batch.values, strict=True):
            self.cluster.clock += 1
            versions.append(self.cluster.clock)
            for node in self.cluster.nodes.values():
                if node.dc == self.dc:
                    node.cells[batch.namespace, key] = (value, self.cluster.clock)
        count = len(batch.keys)
        return WriteReply([0] * count, versions, [2] * count, [1] * count, self.name, self.cluster.clock, 10)

    def look_up(self, batch: ReadBatch) -> ReadReply:
        found = [self.cells.get((batch.namespace, key), (None, 0)) for key in batch.keys]
        count = len(found)
        return ReadReply(
            [0] * count,
            [value for value, _ in found],
            [version for _, version in found],
            [2] * count,
            self.name,
            self.cluster.clock,
            10,
        )

    def administer(self, request: AdminRequest) -> AdminReply:
        names = self.cluster.namespaces
        name = str(request.arguments.get("name", ""))
        match request.verb:
            case "namespace_create":
                if name in names and not request.arguments["exist_ok"]:
                    return AdminReply(Outcome.ALREADY_EXISTS, message=f"{name} is taken")
                names[name] = dict(request.arguments)
                return AdminReply(Outcome.APPLIED, {"namespace": names[name]})
            case "namespace_list":
                return AdminReply(Outcome.APPLIED, {"namespaces": list(names.values())})
            case "namespace_alter":
                if name not in names:
                    return AdminReply(Outcome.NOT_FOUND, message=f"no namespace {name!r}")
                names[name].update(request.arguments)
                return AdminReply(Outcome.APPLIED, {"namespace": names[name]})
            case "namespace_delete":
                names.pop(name, None)
            case "status":
                return AdminReply(Outcome.APPLIED, {"node": self.name})
        return AdminReply(Outcome.APPLIED)


class FakeCluster:
    """`async with FakeCluster({"eu": 3, "us": 3}) as cluster:`"""

    def __init__(self, sizes: dict[str, int], replicas: int = 3) -> None:
        self.version = 7
        self.clock = 100
        self.replicas = replicas
        self.viewpoints: list[str] = []
        self.muted: set[str] = set()
        self.namespaces: dict[str, dict[str, object]] = {}
        self.nodes = {
            f"{dc}-{number}": FakeNode(f"{dc}-{number}", dc, "abc"[number % 3], self)
            for dc, count in sizes.items()
            for number in range(1, count + 1)
        }

    async def __aenter__(self) -> FakeCluster:
        for node in self.nodes.values():
            await node.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    def addresses(self, dc: str) -> list[str]:
        return [node.address for node in self.nodes.values() if node.dc == dc]

    def is_ring_mute(self, node: FakeNode) -> bool:
        return node.dc in self.muted or node.name in self.muted

    def go_dark(self, dc: str) -> None:
        """Calls to this datacenter hang, new ones and probes alike: a black hole."""

        async def hang(_: Any) -> None:
            await asyncio.Event().wait()

        self.muted.add(dc)
        for node in self.nodes.values():
            if node.dc == dc:
                node.script = hang

    def come_back(self, dc: str) -> None:
        self.muted.discard(dc)
        for node in self.nodes.values():
            if node.dc == dc:
                node.script = None

    def ring(self, answered_by: str) -> kv.RingSeen:
        nodes = [kv.RingNodeSeen(node.name, node.dc, node.rack, 1.0, node.address) for node in self.nodes.values()]
        replicas = dict.fromkeys((node.dc for node in self.nodes.values()), self.replicas)
        return kv.RingSeen("test", PARTITIONS, self.version, answered_by, nodes, replicas)

    def owners(self, key: bytes, dc: str) -> list[FakeNode]:
        """The owners of a key, computed as nodes do it."""
        members = [Member(node.name, node.rack) for node in self.nodes.values() if node.dc == dc]
        return [self.nodes[name] for name in Ring(PARTITIONS, members).owners_of_key(key, self.replicas)]


def refuse(outcome: Outcome, detail: Detail | None = None) -> Script:
    """A script: every item of every batch gets this outcome."""

    async def script(batch: Any) -> WriteReply | ReadReply:
        count = len(batch.keys)
        details = dict.fromkeys(range(count), detail) if detail is not None else {}
        zeros = [0] * count
        if isinstance(batch, WriteBatch):
            return WriteReply([outcome] * count, zeros, zeros, zeros, "scripted", 1, 1, details)
        return ReadReply([outcome] * count, [None] * count, zeros, zeros, "scripted", 1, 1, details)

    return script
