"""Every replica, asked by itself: digests over all that a node holds, and reads at ONE that only it answers.

All through the lab's proxies, as somebody outside sees the nodes; a node behind a cut does not answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

from geokv.errors import GeokvError, Unavailable
from geokv.lab.ask import NodeConnection
from geokv.lab.demo.journal import Found, Key
from geokv.protocol.requests import Outcome

READ_ITEMS_MAX: Final = 512
READ_TRIES_MAX: Final = 5
_T = TypeVar("_T")


class Replicas:
    """Connections to all nodes, by name. Calls block: from an event loop use a thread."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._connections = {name: NodeConnection(address) for name, address in addresses.items()}
        self._pool = ThreadPoolExecutor(max_workers=len(addresses), thread_name_prefix="replica")

    @property
    def names(self) -> list[str]:
        return list(self._connections)

    def statuses(self, timeout_s: float) -> dict[str, dict[str, Any] | None]:
        """The status of every node; None where it does not answer in time."""
        return self._each(self.names, lambda node: _or_none(lambda: node.admin("status", timeout_s=timeout_s)))

    def digests(self, namespace: str, timeout_s: float) -> dict[str, dict[str, Any] | None]:
        """Per node: partition to the digest of what it holds there; None where it does not answer."""

        def one(node: NodeConnection) -> dict[str, Any] | None:
            said = _or_none(lambda: node.admin("digest", {"namespace": namespace}, timeout_s))
            return None if said is None else dict(said["partitions"])

        return self._each(self.names, one)

    def read(
        self, keys: Iterable[Key], nodes: Iterable[str], owners: Callable[[bytes], frozenset[str]], timeout_s: float = 5.0
    ) -> dict[str, dict[Key, Found]]:
        """What each of these nodes holds under each of the keys that it owns. Raises GeokvError where one cannot be read."""
        by_namespace: dict[str, list[bytes]] = {}
        for namespace, key in keys:
            by_namespace.setdefault(namespace, []).append(key)

        def one(name: str) -> dict[Key, Found]:
            found: dict[Key, Found] = {}
            for namespace, wanted in by_namespace.items():
                mine = [key for key in wanted if name in owners(key)]
                for start in range(0, len(mine), READ_ITEMS_MAX):
                    part = mine[start : start + READ_ITEMS_MAX]
                    for key, cell in zip(part, _read(self._connections[name], namespace, part, timeout_s), strict=True):
                        found[namespace, key] = cell
            return found

        names = list(nodes)
        return dict(zip(names, self._pool.map(one, names), strict=True))

    def close(self) -> None:
        self._pool.shutdown()
        for connection in self._connections.values():
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _each(self, names: list[str], ask: Callable[[NodeConnection], _T]) -> dict[str, _T]:
        connections = [self._connections[name] for name in names]
        return dict(zip(names, self._pool.map(ask, connections), strict=True))


def are_equal(digests: Mapping[str, Mapping[str, Any] | None], owners: Mapping[int, frozenset[str]]) -> bool:
    """Whether all owners of every partition, in all datacenters, answered and hold the same."""
    if any(one is None for one in digests.values()):
        return False
    for partition, names in owners.items():
        seen = {_digest(digests[name], partition) for name in names}
        if len(seen) > 1:
            return False
    return True


def _digest(held: Mapping[str, Any] | None, partition: int) -> tuple[object, object]:
    entry = (held or {}).get(str(partition), {})
    return entry.get("live", 0), entry.get("hash", "0" * 16)


def _read(node: NodeConnection, namespace: str, keys: list[bytes], timeout_s: float) -> list[Found]:
    """One batch; a node that is busy is asked again a few times."""
    for left in reversed(range(READ_TRIES_MAX)):
        try:
            reply = node.read(namespace, keys, timeout_s)
            if all(outcome == Outcome.APPLIED for outcome in reply.outcomes):
                return [Found(version, value) for version, value in zip(reply.versions, reply.values, strict=True)]
            reason = next((detail.message for detail in reply.details.values()), "some keys could not be read")
        except Unavailable as error:
            reason = str(error)
        if not left:
            raise Unavailable(f"{node.address}: {reason}")
    raise AssertionError("the loop returns or raises")


def _or_none(ask: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return ask()
    except GeokvError:
        return None
