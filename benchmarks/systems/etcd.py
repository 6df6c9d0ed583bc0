"""etcd: three nodes of Debian's etcd-server, spoken to by gRPC.

The two messages that are needed are written and read here by hand (the field numbers are etcd's public
`rpc.proto`), so the client costs no more than gRPC itself. There is one channel per node, and calls go round
them, as etcd's own client has it.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.common import BenchmarkError, Server, free_ports, servers
from benchmarks.systems import Caller

NODES = 3
READY_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 10.0
PUT_METHOD = "/etcdserverpb.KV/Put"
RANGE_METHOD = "/etcdserverpb.KV/Range"
SERIALIZABLE = b"\x38\x01"  # RangeRequest.serializable = 7


def encode_varint(number: int) -> bytes:
    """A protobuf varint of a number that is not negative."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def decode_varint(message: bytes, at: int) -> tuple[int, int]:
    """The varint that begins at `at`, and where the next thing begins."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def encode_put(key: bytes, value: bytes) -> bytes:
    """PutRequest: key = 1, value = 2."""
    return b"\x0a" + encode_varint(len(key)) + key + b"\x12" + encode_varint(len(value)) + value


def encode_range(key: bytes, *, is_serializable: bool) -> bytes:
    """RangeRequest of one key: key = 1."""
    return b"\x0a" + encode_varint(len(key)) + key + (SERIALIZABLE if is_serializable else b"")


def bytes_field(message: bytes, wanted: int) -> bytes | None:
    """The first length-delimited field of that number, None when there is none."""
    at = 0
    while at < len(message):
        tag, at = decode_varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, at = decode_varint(message, at)
        elif wire_type == 2:
            length, at = decode_varint(message, at)
            if number == wanted:
                return message[at : at + length]
            at += length
        else:
            at += 8 if wire_type == 1 else 4
    return None


def value_of_range(reply: bytes) -> bytes | None:
    """RangeResponse: kvs = 2, of which KeyValue: value = 5 (not sent when empty)."""
    pair = bytes_field(reply, 2)
    return None if pair is None else bytes_field(pair, 5) or b""


class EtcdCaller:
    """A caller that goes round the channels it is given, starting with the first."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._next_put: Iterator[Any] = itertools.cycle([channel.unary_unary(PUT_METHOD) for channel in channels])
        self._next_range: Iterator[Any] = itertools.cycle([channel.unary_unary(RANGE_METHOD) for channel in channels])

    async def put(self, key: bytes, value: bytes) -> None:
        await next(self._next_put)(encode_put(key, value), timeout=CALL_TIMEOUT_S)

    async def get(self, key: bytes) -> bytes | None:
        return await self._get(encode_range(key, is_serializable=False))

    async def get_local(self, key: bytes) -> bytes | None:
        return await self._get(encode_range(key, is_serializable=True))

    async def _get(self, request: bytes) -> bytes | None:
        return value_of_range(await next(self._next_range)(request, timeout=CALL_TIMEOUT_S))


class EtcdCluster:
    """Three running nodes."""

    def __init__(self, version: str, running: list[Server], ports: list[int]) -> None:
        self.version = version
        self._running = running
        self._ports = ports

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self._running]

    @asynccontextmanager
    async def connect(self, callers: int) -> AsyncIterator[list[Caller]]:
        async with AsyncExitStack() as open_channels:
            channels = [
                await open_channels.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}")) for port in self._ports
            ]
            turns = [channels[first:] + channels[:first] for first in range(NODES)]
            yield [EtcdCaller(turns[number % NODES]) for number in range(callers)]

    async def wait_ready(self) -> None:
        """Returns when a write through every node was acknowledged."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        async with self.connect(NODES) as callers:
            for caller in callers:
                await self._wait_one(caller, deadline_s)

    async def _wait_one(self, caller: Caller, deadline_s: float) -> None:
        while True:
            for server in self._running:
                server.check()
            try:
                return await caller.put(b"ready", b"yes")
            except grpc.aio.AioRpcError as error:
                if time.monotonic() > deadline_s:
                    raise BenchmarkError(f"etcd did not serve within {READY_TIMEOUT_S:.0f} s: {error.details()}") from None
            await asyncio.sleep(0.1)


class Etcd:
    """Debian's etcd with its default timings; it syncs before it acknowledges unless told otherwise."""

    name = "etcd"

    def missing(self) -> str | None:
        return None if shutil.which("etcd") else "no etcd on the PATH (Debian, Ubuntu: apt-get install etcd-server)"

    def start(self, directory: Path) -> AbstractAsyncContextManager[EtcdCluster]:
        return self._start(directory)

    @asynccontextmanager
    async def _start(self, directory: Path) -> AsyncIterator[EtcdCluster]:
        ports = free_ports(2 * NODES)
        client_ports, peer_ports = ports[:NODES], ports[NODES:]
        commands = [_command(directory, node, client_ports[node], peer_ports) for node in range(NODES)]
        with servers(commands, directory) as running:
            cluster = EtcdCluster(_version(), running, client_ports)
            await cluster.wait_ready()
            yield cluster


def _command(directory: Path, node: int, client_port: int, peer_ports: list[int]) -> list[str]:
    client_url, peer_url = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_ports[node]}"
    members = ",".join(f"node-{number}=http://127.0.0.1:{port}" for number, port in enumerate(peer_ports))
    return [
        "etcd",
        f"--name=node-{node}",
        f"--data-dir={directory / f'node-{node}'}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster={members}",
        "--initial-cluster-state=new",
        "--initial-cluster-token=geokv-benchmark",
        "--log-level=error",
    ]


def _version() -> str:
    shown = subprocess.run(["etcd", "--version"], capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=True)
    return "etcd " + shown.stdout.partition("\n")[0].rpartition(" ")[2]
