"""NATS JetStream: a key-value bucket of three replicas on three nats-servers that sync every write.

Through the library of NATS, nats-py, with what its key-value bucket does: a put is a publish that waits for
the stream's acknowledgement, a get asks for the last message of the subject: from the stream's leader, or
directly from any replica. Callers are spread over one connection per node.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError, Server, free_ports, servers
from benchmarks.systems import Caller

NODES = 3
READY_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 10.0
VERSION_MIN = (2, 10)  # the first that has `sync_interval: always`
BUCKET = "bench"
STREAM = f"KV_{BUCKET}"

NODE_SETTINGS = """\
server_name: node-{node}
listen: "127.0.0.1:{port}"
jetstream {{
  store_dir: "{store}"
  sync_interval: always
}}
cluster {{
  name: geokv-benchmark
  listen: "127.0.0.1:{cluster_port}"
  routes: [{routes}]
}}
"""


def server_path() -> str | None:
    """nats-server on the PATH, or where `go install` puts it."""
    go_binaries = os.environ.get("GOBIN") or str(Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin")
    return shutil.which("nats-server") or shutil.which("nats-server", path=go_binaries)


def server_version(path: str) -> tuple[int, int, int] | None:
    """The version that this nats-server states, None when it states none."""
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False)
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", shown.stdout)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


class NatsCaller:
    """A caller on one of the connections."""

    def __init__(self, bucket: Any, stream: Any) -> None:
        self._bucket = bucket
        self._stream = stream

    async def put(self, key: bytes, value: bytes) -> None:
        await self._bucket.put(key.decode(), value)

    async def get(self, key: bytes) -> bytes | None:
        return await self._last(key, is_direct=False)

    async def get_local(self, key: bytes) -> bytes | None:
        return await self._last(key, is_direct=True)

    async def _last(self, key: bytes, *, is_direct: bool) -> bytes | None:
        message = await self._stream.get_last_msg(STREAM, f"$KV.{BUCKET}.{key.decode()}", direct=is_direct)
        value: bytes | None = message.data
        return value


class NatsCluster:
    """Three running nodes with the bucket."""

    def __init__(self, version: str, running: list[Server], ports: list[int]) -> None:
        self.version = version
        self._running = running
        self._ports = ports

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self._running]

    @asynccontextmanager
    async def connect(self, callers: int) -> AsyncIterator[list[Caller]]:
        clients: list[Any] = []
        try:
            for port in self._ports[: min(callers, NODES)]:
                clients.append(await _connect_to(port))  # noqa: PERF401  what is open so far is to be closed
            streams = [client.jetstream(timeout=CALL_TIMEOUT_S) for client in clients]
            buckets = [await stream.key_value(BUCKET) for stream in streams]
            turns = [number % len(clients) for number in range(callers)]
            yield [NatsCaller(buckets[turn], streams[turn]) for turn in turns]
        finally:
            for client in clients:
                await client.close()

    async def make_bucket(self) -> None:
        """Makes the bucket as soon as the three servers have found each other and it takes a write."""
        nats_error = importlib.import_module("nats.errors").Error
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            for server in self._running:
                server.check()
            try:
                return await self._try_bucket()
            except (OSError, TimeoutError, nats_error) as error:
                if time.monotonic() > deadline_s:
                    raise BenchmarkError(f"NATS was not ready within {READY_TIMEOUT_S:.0f} s: {error!r}") from None
            await asyncio.sleep(0.2)

    async def _try_bucket(self) -> None:
        settings = importlib.import_module("nats.js.api").KeyValueConfig(bucket=BUCKET, replicas=NODES, direct=True)
        client = await _connect_to(self._ports[0])
        try:
            stream = client.jetstream(timeout=2)
            bucket = await stream.create_key_value(settings)
            await bucket.put("ready", b"yes")
        finally:
            await client.close()


async def _connect_to(port: int) -> Any:
    library = importlib.import_module("nats")  # optional, hence not imported above
    address = f"nats://127.0.0.1:{port}"
    return await library.connect(address, allow_reconnect=False, connect_timeout=2, error_cb=_ignore)


async def _ignore(error: Exception) -> None:
    """Every call raises its own error; the library would print it once more."""


class Nats:
    """nats-server from its Go module, with the library nats-py."""

    name = "nats"

    def missing(self) -> str | None:
        path = server_path()
        if path is None:
            return "no nats-server on the PATH or where go installs (benchmarks/install_peers gets it)"
        version = server_version(path)
        if version is None or version[:2] < VERSION_MIN:
            return f"{path} is older than 2.10, the first that syncs always (benchmarks/install_peers gets it)"
        if importlib.util.find_spec("nats") is None:
            return "the Python package nats-py is not installed (pip install nats-py)"
        return None

    def start(self, directory: Path) -> AbstractAsyncContextManager[NatsCluster]:
        return self._start(directory)

    @asynccontextmanager
    async def _start(self, directory: Path) -> AsyncIterator[NatsCluster]:
        path = server_path()
        if path is None:
            raise BenchmarkError("nats-server is gone")
        ports = free_ports(2 * NODES)
        commands = [[path, "-c", str(_write_settings(directory, node, ports))] for node in range(NODES)]
        with servers(commands, directory) as running:
            version = ".".join(map(str, server_version(path) or ()))
            cluster = NatsCluster(f"nats-server {version}", running, ports[:NODES])
            await cluster.make_bucket()
            yield cluster


def _write_settings(directory: Path, node: int, ports: list[int]) -> Path:
    cluster_ports = ports[NODES:]
    settings = NODE_SETTINGS.format(
        node=node,
        port=ports[node],
        store=directory / f"node-{node}",
        cluster_port=cluster_ports[node],
        routes=", ".join(f'"nats://127.0.0.1:{port}"' for port in cluster_ports),
    )
    path = directory / f"node-{node}.conf"
    path.write_text(settings, encoding="utf-8")
    return path
