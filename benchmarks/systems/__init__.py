"""The systems that are compared: each module starts three local nodes and says how a caller speaks to them.

Every system is used as its own documentation has it for durable writes, through the client that a service in
Python has (etcd has none of its own: bare gRPC), by callers that are tasks of one asyncio loop in one
process. (`redis_bare` is redis with a client of our own.)

| system | a write is acknowledged when | `get` | `get_local` |
|---|---|---|---|
| geokv | QUORUM of 3 have synced it | QUORUM | ONE |
| etcd | a majority of 3 have synced it | linearizable range | serializable range |
| redis | primary and one replica have synced it (WAIT 1) | from the primary | from a replica |
| nats | a majority of 3 have synced it | from the stream's leader | direct get, from any replica |

Redis and NATS have no linearizable read: what stands there is the strongest one that they offer.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol


class Caller(Protocol):
    """One concurrent user of a system; its calls never overlap."""

    async def put(self, key: bytes, value: bytes) -> None:
        """Returns when the write is acknowledged; raises otherwise."""

    async def get(self, key: bytes) -> bytes | None:
        """The value by the strongest read of the system, None when absent."""

    async def get_local(self, key: bytes) -> bytes | None:
        """The value as one replica has it, None when absent there."""


class Cluster(Protocol):
    """Three running nodes."""

    @property
    def version(self) -> str:
        """What runs: "etcd 3.4.23"."""

    @property
    def pids(self) -> list[int]:
        """The server processes, whose CPU is counted."""

    def connect(self, callers: int) -> AbstractAsyncContextManager[list[Caller]]:
        """So many callers, connected and ready; what they share (a channel, a client) is up to the system."""


class System(Protocol):
    """Something that can be measured, if it is installed."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """What is not installed and how to get it, None when nothing is missing. Starts nothing."""

    def start(self, directory: Path) -> AbstractAsyncContextManager[Cluster]:
        """Three fresh nodes with their files in the empty `directory`, ready to serve; ended on leaving."""
