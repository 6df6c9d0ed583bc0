"""One request to one node, at its address: what an operator asks of each node, past the routing of the SDK.

Calls block for up to their timeout and may be made from any thread; `ask_all` makes many at once.

Not here: retries and failover. Who asks one node wants to know about that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import grpc

from geokv.core.quorum import Consistency
from geokv.errors import (
    Ambiguous,
    GeokvError,
    InvalidRequest,
    NamespaceExists,
    NamespaceNotFound,
    Overloaded,
    StorageError,
    Unavailable,
)
from geokv.protocol.requests import AdminRequest, Outcome, ReadBatch, ReadReply
from geokv.runtime.channel import CHANNEL_OPTIONS
from geokv.runtime.methods import ADMIN_DO, ADMIN_FETCH, ADMIN_RING, KV_READ, Method
from geokv.runtime.wire import kv

TIMEOUT_S: Final = 3.0
AT_ONCE_MAX: Final = 16
_ERRORS: Final[dict[Outcome, type[GeokvError]]] = {
    Outcome.NOT_FOUND: NamespaceNotFound,
    Outcome.ALREADY_EXISTS: NamespaceExists,
    Outcome.INVALID: InvalidRequest,
    Outcome.OVERLOADED: Overloaded,
    Outcome.UNAVAILABLE: Unavailable,
}


class NodeConnection:
    """A connection to one node. Close it, or use it in a `with` block."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)

    def admin(self, verb: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Ask an administration verb; its body. Raises GeokvError (Unavailable where the node cannot be reached)."""
        request = AdminRequest(verb, dict(arguments or {}), max(1, round(timeout_s * 1000)))
        reply = kv.decode_admin_reply(self._call(ADMIN_DO, kv.encode_admin_request(request), timeout_s))
        if reply.outcome.is_error:
            raise _ERRORS.get(reply.outcome, Ambiguous)(reply.message)
        return dict(reply.body)

    def ring(self, viewpoint: str = "", timeout_s: float = TIMEOUT_S) -> kv.RingSeen:
        """The ring, with addresses as `viewpoint` (a datacenter's clients, or empty: from outside) sees them."""
        return kv.decode_ring_reply(self._call(ADMIN_RING, kv.encode_ring_request(viewpoint), timeout_s))

    def fetch(self, fetch: kv.Fetch, timeout_s: float = TIMEOUT_S) -> bytes:
        """A piece of a file of a snapshot."""
        return kv.decode_fetch_reply(self._call(ADMIN_FETCH, kv.encode_fetch_request(fetch), timeout_s))

    def read(self, namespace: str, keys: list[bytes], timeout_s: float = TIMEOUT_S) -> ReadReply:
        """Read at ONE: where this node is an owner of the keys, what it holds itself.

        In as many answers as the values need; `timeout_s` is for each of them.
        """
        reply = self._read(namespace, keys, timeout_s)
        while left := [index for index, outcome in enumerate(reply.outcomes) if outcome == Outcome.ASK_AGAIN]:
            more = self._read(namespace, [keys[index] for index in left], timeout_s)
            for position, index in enumerate(left):
                reply.outcomes[index], reply.values[index] = more.outcomes[position], more.values[position]
                reply.versions[index], reply.replicas[index] = more.versions[position], more.replicas[position]
                if position in more.details:
                    reply.details[index] = more.details[position]
        return reply

    def _read(self, namespace: str, keys: list[bytes], timeout_s: float) -> ReadReply:
        batch = ReadBatch(namespace, keys, Consistency.ONE, timeout_ms=max(1, round(timeout_s * 1000)))
        return kv.decode_read_reply(self._call(KV_READ, kv.encode_read_request(batch), timeout_s))[0]

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Method, payload: bytes, timeout_s: float) -> bytes:
        call: Callable[..., bytes] = self._channel.unary_unary(method.path)
        try:
            answer = call(payload, timeout=timeout_s)
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if code is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidRequest(text) from error
            if code is grpc.StatusCode.DATA_LOSS:
                raise StorageError(text) from error
            raise Unavailable(f"{self.address} cannot be reached: {_said(code, text)}") from error
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _said(code: grpc.StatusCode, text: str) -> str:
    """gRPC's long words, short."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED or "timed out" in text:
        return "no answer in time"
    return "connection refused" if "Connection refused" in text else f"{code.name.lower()}: {text[:200]}"


def ask(address: str, verb: str, arguments: Mapping[str, Any] | None = None, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Ask one node once."""
    with NodeConnection(address) as connection:
        return connection.admin(verb, arguments, timeout_s)


def ask_all(
    addresses: Mapping[str, str],
    verb: str,
    arguments: Mapping[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, dict[str, Any] | GeokvError]:
    """Ask many nodes (name to address) at once: name to body, or to the error where it did not answer."""

    def one(address: str) -> dict[str, Any] | GeokvError:
        try:
            return ask(address, verb, arguments, timeout_s)
        except GeokvError as error:
            return error

    with ThreadPoolExecutor(max_workers=AT_ONCE_MAX) as pool:
        return dict(zip(addresses, pool.map(one, addresses.values()), strict=True))


def why_not_serving(status: Mapping[str, object] | GeokvError) -> str:
    """Why a node that has been started does not do all that clients ask yet; empty where it does."""
    if isinstance(status, GeokvError):
        return str(status) or type(status).__name__
    # A new disk serves before it takes part in agreements, and creates no namespace until then.
    return str(status["refusing"]) or ("" if status["takes_part_in_agreements"] else "it takes no part in agreements yet")


def ring_from(addresses: Iterable[str], viewpoint: str = "", timeout_s: float = TIMEOUT_S) -> kv.RingSeen:
    """The ring, from the first of these addresses that answers. Raises Unavailable with what each said."""
    failures: list[str] = []
    for address in addresses:
        try:
            with NodeConnection(address) as connection:
                return connection.ring(viewpoint, timeout_s)
        except Unavailable as error:
            failures.append(str(error))
    raise Unavailable("; ".join(failures) or "no address was given")
