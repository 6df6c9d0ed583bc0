"""Redis: a primary and two replicas of redis-server, every write synced, acknowledged by WAIT 1.

WAIT speaks for all writes of its connection and blocks it, so every caller has a connection at a time for
itself, and SET and WAIT leave in one packet. There are two clients, and they are two systems of the
comparison:

| system | client | what it shows |
|---|---|---|
| redis | redis-py (asyncio) with hiredis and its connection pool | what a service in Python gets from Redis |
| redis_bare | the one below, which knows only the replies that are needed | what the servers can do here |

The second is asked for by name: Redis is fast enough for the client's own cost to decide, three quarters of
it for redis-py, and no service is written with a client that can do nothing else.

Replicas of Redis acknowledge to the primary after their own append-only file was synced (both happen before
the event loop sleeps, the sync first), so with `appendfsync always` WAIT 1 means: on two disks.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from benchmarks.common import BenchmarkError, Server, free_ports, servers
from benchmarks.systems import Caller

NODES = 3
READY_TIMEOUT_S = 30.0
WAIT_TIMEOUT_MS = 5_000
WAIT_ONE = b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n%d\r\n" % WAIT_TIMEOUT_MS
BUFFERED_BYTES_MAX = 1 << 20

Reply = bytes | int | str | None


class RedisError(Exception):
    """An error reply of Redis, or a connection that was lost."""


def encode_command(*words: bytes) -> bytes:
    """A command in RESP: an array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def decode_reply(buffered: bytes | bytearray, at: int) -> tuple[Reply | RedisError, int] | None:
    """The reply that begins at `at` and where the next one begins; None when it is not whole yet."""
    end = buffered.find(b"\r\n", at)
    if end < 0:
        return None
    kind, line, after = buffered[at : at + 1], bytes(buffered[at + 1 : end]), end + 2
    if kind == b"+":
        return line.decode(), after
    if kind == b":":
        return int(line), after
    if kind == b"-":
        return RedisError(line.decode()), after
    if kind != b"$":
        raise RedisError(f"unexpected kind of reply {bytes(kind)!r}")
    length = int(line)
    if length < 0:
        return None, after
    if len(buffered) < after + length + 2:
        return None
    return bytes(buffered[after : after + length]), after + length + 2


class RedisConnection(asyncio.Protocol):
    """One connection with one exchange at a time: some commands out, as many replies back."""

    def __init__(self) -> None:
        self._buffered = bytearray()
        self._replies: list[Reply | RedisError] = []
        self._wanted = 0
        self._waiter: asyncio.Future[list[Reply | RedisError]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # that of uvloop is none by inheritance

    def data_received(self, received: bytes) -> None:
        self._buffered += received
        at = 0
        try:
            while (decoded := decode_reply(self._buffered, at)) is not None:
                self._replies.append(decoded[0])
                at = decoded[1]
        except (RedisError, ValueError) as error:
            self._fail(RedisError(str(error)))
        del self._buffered[:at]
        if len(self._buffered) > BUFFERED_BYTES_MAX:
            self._fail(RedisError(f"a reply of more than {BUFFERED_BYTES_MAX} bytes"))
        if self._waiter is not None and not self._waiter.done() and len(self._replies) >= self._wanted:
            replies, self._replies = self._replies, []
            self._waiter.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(RedisError(f"the connection was lost: {exc or 'closed by Redis'}"))

    def _fail(self, error: RedisError) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.close()

    async def exchange(self, commands: bytes, replies: int) -> list[Reply]:
        """Sends encoded commands and returns their replies; raises RedisError for the first error."""
        if self._transport is None or self._transport.is_closing():
            raise RedisError("the connection is closed")
        self._wanted = replies
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(commands)
        answered: list[Reply] = []
        for reply in await self._waiter:
            if isinstance(reply, RedisError):
                raise reply
            answered.append(reply)
        return answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect_to(port: int) -> RedisConnection:
    """A connection to the server on that port of this machine."""
    _, connection = await asyncio.get_running_loop().create_connection(RedisConnection, "127.0.0.1", port)
    return connection


class BareCaller:
    """A caller with its own bare connection to the primary and, for local reads, to one replica."""

    def __init__(self, primary: RedisConnection, replica: RedisConnection) -> None:
        self._primary = primary
        self._replica = replica

    async def put(self, key: bytes, value: bytes) -> None:
        stored, replicas = await self._primary.exchange(encode_command(b"SET", key, value) + WAIT_ONE, 2)
        _check_put(stored == "OK", replicas)

    async def get(self, key: bytes) -> bytes | None:
        return _as_value(await self._primary.exchange(encode_command(b"GET", key), 1))

    async def get_local(self, key: bytes) -> bytes | None:
        return _as_value(await self._replica.exchange(encode_command(b"GET", key), 1))


class LibraryCaller:
    """A caller on the client objects that all share: each call takes a connection from their pools."""

    def __init__(self, primary: Any, replica: Any) -> None:
        self._primary = primary
        self._replica = replica

    async def put(self, key: bytes, value: bytes) -> None:
        pipeline = self._primary.pipeline(transaction=False)
        pipeline.set(key, value)
        pipeline.wait(1, WAIT_TIMEOUT_MS)
        stored, replicas = await pipeline.execute()
        _check_put(bool(stored), replicas)

    async def get(self, key: bytes) -> bytes | None:
        return _as_value([await self._primary.get(key)])

    async def get_local(self, key: bytes) -> bytes | None:
        return _as_value([await self._replica.get(key)])


def _check_put(is_stored: bool, replicas: object) -> None:
    if not is_stored or not isinstance(replicas, int) or replicas < 1:
        raise RedisError(f"SET was {'' if is_stored else 'not '}taken, WAIT saw {replicas!r} replicas")


def _as_value(replies: Sequence[object]) -> bytes | None:
    value = replies[0]
    if value is None or isinstance(value, bytes):
        return value
    raise RedisError(f"GET answered {value!r}")


class RedisCluster:
    """The primary, on the first port, and its replicas."""

    def __init__(self, version: str, running: list[Server], ports: list[int], *, is_bare: bool) -> None:
        self.version = version
        self._running = running
        self._ports = ports
        self._is_bare = is_bare

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self._running]

    def connect(self, callers: int) -> AbstractAsyncContextManager[list[Caller]]:
        return self._connect_bare(callers) if self._is_bare else self._connect_library(callers)

    @asynccontextmanager
    async def _connect_library(self, callers: int) -> AsyncIterator[list[Caller]]:
        library = importlib.import_module("redis.asyncio")  # optional, hence not imported above
        async with AsyncExitStack() as opened:
            clients: list[Any] = [
                await opened.enter_async_context(library.Redis(host="127.0.0.1", port=port, max_connections=callers))
                for port in self._ports
            ]
            yield [LibraryCaller(clients[0], clients[1 + number % (NODES - 1)]) for number in range(callers)]

    @asynccontextmanager
    async def _connect_bare(self, callers: int) -> AsyncIterator[list[Caller]]:
        connections: list[RedisConnection] = []
        ready: list[Caller] = []
        try:
            for number in range(callers):
                connections.append(await connect_to(self._ports[0]))
                connections.append(await connect_to(self._ports[1 + number % (NODES - 1)]))
                ready.append(BareCaller(*connections[-2:]))
            yield ready
        finally:
            for connection in connections:
                connection.close()

    async def wait_ready(self) -> None:
        """Returns when both replicas follow the primary and acknowledge a write of it."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while True:
            for server in self._running:
                server.check()
            if await self._replicas_following() == NODES - 1:
                return
            if time.monotonic() > deadline_s:
                raise BenchmarkError(f"the replicas of Redis did not follow within {READY_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.05)

    async def _replicas_following(self) -> Reply:
        command = encode_command(b"SET", b"ready", b"yes") + encode_command(b"WAIT", b"2", b"100")
        try:
            connection = await connect_to(self._ports[0])
        except OSError:
            return None
        try:
            return (await connection.exchange(command, 2))[1]
        except RedisError:
            return None
        finally:
            connection.close()


class Redis:
    """redis-server with `appendfsync always` on every node and no snapshots."""

    def __init__(self, *, is_bare: bool = False) -> None:
        self.name = "redis_bare" if is_bare else "redis"
        self._is_bare = is_bare

    def missing(self) -> str | None:
        if not shutil.which("redis-server"):
            return "no redis-server on the PATH (Debian, Ubuntu: apt-get install redis-server)"
        if not self._is_bare and not all(map(importlib.util.find_spec, ("redis", "hiredis"))):
            return "the Python packages redis and hiredis are not installed (pip install 'redis[hiredis]')"
        return None

    def start(self, directory: Path) -> AbstractAsyncContextManager[RedisCluster]:
        return self._start(directory)

    @asynccontextmanager
    async def _start(self, directory: Path) -> AsyncIterator[RedisCluster]:
        ports = free_ports(NODES)
        commands = []
        for node in range(NODES):
            (directory / f"node-{node}").mkdir()
            commands.append(_command(directory / f"node-{node}", ports[node], ports[0] if node else None))
        with servers(commands, directory) as running:
            cluster = RedisCluster(self._version(), running, ports, is_bare=self._is_bare)
            await cluster.wait_ready()
            yield cluster

    def _version(self) -> str:
        command = ["redis-server", "--version"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        found = re.search(r"v=(\S+)", shown.stdout)
        return f"redis {found[1] if found else '?'}" + (", bare client" if self._is_bare else "")


def _command(directory: Path, port: int, primary_port: int | None) -> list[str]:
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "daemonize": "no",
        "repl-diskless-sync-delay": "0",  # the replicas join at once; no part of what is measured
    }
    if primary_port is not None:
        settings["replicaof"] = f"127.0.0.1 {primary_port}"
    command = ["redis-server"]
    for setting, value in settings.items():
        command += [f"--{setting}", *(value.split(" ") if value else [""])]
    return command
