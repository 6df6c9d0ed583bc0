"""The ends of clients that nobody closed properly: a fork, and being forgotten.

After a fork the child has the parent's sockets but none of its threads, so a call would wait for ever. Every client of the parent
is therefore marked in the child, and what it holds is neither used nor collected there.
"""

from __future__ import annotations

import os
from typing import Any, Final, Protocol
from weakref import WeakSet

CLOSED: Final = "the client is closed; make a new one"
FORKED: Final = (
    "this client belongs to the process that this one was forked from; make a new one here"
    " (best in a process that was spawned, not forked: multiprocessing.get_context('spawn'))"
)


class Forkable(Protocol):
    def forked(self) -> None: ...


_clients: WeakSet[Any] = WeakSet()
_kept: list[object] = []


def remember(client: Forkable) -> None:
    _clients.add(client)


def keep_for_ever(what: object) -> None:
    if what is not None:
        _kept.append(what)


def _in_child() -> None:
    for client in list(_clients):
        client.forked()


def close_forgotten(connection: Any) -> None:
    """Close, from wherever the collector runs, a connection that its owner forgot."""
    host, connection.host = connection.host, None
    connection.closed_because = "the client was forgotten, and collected"
    if host is not None and host.loop.is_running():
        host.loop.call_soon_threadsafe(host.close_soon)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
