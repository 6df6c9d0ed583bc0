"""The ends of clients that nobody closed properly: a fork, another event loop, and being forgotten.

After a fork the child has the parent's sockets but none of its threads, so a call would wait for ever. Every client of
the parent is therefore marked in the child, and what it holds is neither used nor collected there. gRPC itself is dead
there too where it ran in the parent, so that a new client says so at once.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol
from weakref import WeakSet

CLOSED: Final = "the client is closed; make a new one"
FORGOTTEN: Final = "the client was forgotten, and collected"
OTHER_LOOP: Final = (
    "this client belongs to the event loop that it was first used in, and this is another one: make a new client in each"
    " loop (each asyncio.run is one), or use Client, which serves any thread"
)
FORKED: Final = "this client belongs to the process that this one was forked from; make a new one in this process"
NO_GRPC: Final = (
    "a client was connected before this process was forked, and gRPC does not survive that: start such processes by"
    " spawn (multiprocessing.get_context('spawn')), or fork before the first client connects"
)


class Forkable(Protocol):
    closed_because: str

    def forked(self) -> None: ...


_clients: WeakSet[Any] = WeakSet()
_kept: list[object] = []


def remember(client: Forkable) -> None:
    _clients.add(client)


def keep_for_ever(connected: object) -> None:
    """What a connected client of the parent held: in this child it is neither used nor collected."""
    if connected is not None:
        _kept.append(connected)


def why_not_here() -> str:
    """Why no client can connect in this process, or nothing."""
    return NO_GRPC if _kept else ""


def why_forked() -> str:
    """What a client of the parent says in this child."""
    return f"{FORKED}. But {NO_GRPC}" if _kept else FORKED


def _in_child() -> None:
    clients = list(_clients)
    for client in clients:
        client.forked()
    for client in clients:
        client.closed_because = why_forked()


def close_elsewhere(connection: Any, because: str) -> None:
    """Close a connection from outside of its loop: from where the collector runs, or from another loop."""
    host, connection.host = connection.host, None
    connection.closed_because = connection.closed_because or because
    if host is not None and host.loop.is_running():
        host.loop.call_soon_threadsafe(host.close_soon)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
