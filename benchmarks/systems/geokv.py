"""geokv: three nodes of one datacenter, N = 3, fsync always, spoken to by its own asyncio client.

All callers share one client, as an application would: coalescing concurrent calls is the client's own doing.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import descendants
from benchmarks.systems import Caller

NODES = 3
READY_TIMEOUT_S = 30.0
NAMESPACE = "default"  # every cluster is born with it: lww, three replicas, synced before it is acknowledged


class GeokvCaller:
    """A caller on the client that all share."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    async def put(self, key: bytes, value: bytes) -> None:
        await self._namespace.put(key, value, consistency="QUORUM")

    async def get(self, key: bytes) -> bytes | None:
        value: bytes | None = (await self._namespace.get(key, consistency="QUORUM")).value
        return value

    async def get_local(self, key: bytes) -> bytes | None:
        value: bytes | None = (await self._namespace.get(key, consistency="ONE")).value
        return value


class GeokvCluster:
    """Three running nodes."""

    def __init__(self, version: str, addresses: list[str], pids: list[int]) -> None:
        self.version = version
        self.pids = pids
        self.addresses = addresses

    def create_namespace(self, name: str, **settings: Any) -> None:
        with importlib.import_module("geokv").Client(self.addresses) as client:
            client.wait_ready(READY_TIMEOUT_S)
            client.create_namespace(name, **settings)

    @asynccontextmanager
    async def connect(self, callers: int, of: str = NAMESPACE) -> AsyncIterator[list[Caller]]:
        async with importlib.import_module("geokv").AsyncClient(self.addresses) as client:
            await client.wait_ready(READY_TIMEOUT_S)
            namespace = client.namespace(of)
            yield [GeokvCaller(namespace) for _ in range(callers)]


@contextmanager
def _three_nodes(directory: Path) -> Iterator[tuple[list[str], list[int]]]:
    """The addresses of three fresh nodes and the pids of all processes that came with them."""
    before = descendants(os.getpid())
    with importlib.import_module("geokv.testing").Cluster(nodes=NODES, directory=directory) as cluster:
        yield list(cluster.addresses), sorted(descendants(os.getpid()) - before)


class Geokv:
    """The package of this checkout."""

    name = "geokv"

    def missing(self) -> str | None:
        try:
            importlib.import_module("geokv").AsyncClient  # noqa: B018
            importlib.import_module("geokv.testing").Cluster  # noqa: B018
        except (ImportError, AttributeError) as error:
            return f"this Python cannot import it ({error}); scripts/setup makes .venv, which can"
        return None

    def start(self, directory: Path) -> AbstractAsyncContextManager[GeokvCluster]:
        return self._start(directory)

    @asynccontextmanager
    async def _start(self, directory: Path) -> AsyncIterator[GeokvCluster]:
        version = importlib.import_module("geokv").__version__
        nodes = _three_nodes(directory)
        addresses, pids = await asyncio.to_thread(nodes.__enter__)
        try:
            yield GeokvCluster(f"geokv {version}", addresses, pids)
        finally:
            await asyncio.to_thread(nodes.__exit__, None, None, None)
