"""The one table of RPC methods: name, kind, who may call it, how large a request may be.

Services are registered from this table, with bytes in and bytes out, so that malformed bytes are parsed inside our
handlers: grpc.aio answers a parser's exception with UNKNOWN and the name of a Python class.

Invariants: what is served is exactly what the table lists. An implementation without an entry, or an entry without an
implementation, keeps the server from starting, so nobody can add a method and forget who may call it.

Not here: the check of `caller`. There are no identities yet; the column says what will be asked of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import grpc

from geokv.core.limits import KIB, MESSAGE_BYTES_MAX, MIB
from geokv.errors import ConfigurationError

Handler = Callable[..., Awaitable[Any]]


class Kind(Enum):
    UNARY = "unary"
    STREAM_OUT = "stream out"
    BIDI = "bidi"


class Caller(Enum):
    CLIENT = "client"
    NODE = "node"
    OPERATOR = "operator"
    ANYBODY = "anybody"  # load balancers and orchestrators, which have no identity of ours


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC. `request_bytes_max` holds for each message of a stream."""

    service: str
    name: str
    kind: Kind
    caller: Caller
    request_bytes_max: int

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


# A batch is cut at 1 MiB of keys and values, or holds one pair of up to 1 MiB; tokens and framing come on top.
_BATCH_REQUEST_BYTES: Final = 4 * MIB

KV_WRITE: Final = Method("geokv.v1.Kv", "Write", Kind.UNARY, Caller.CLIENT, _BATCH_REQUEST_BYTES)
KV_READ: Final = Method("geokv.v1.Kv", "Read", Kind.UNARY, Caller.CLIENT, _BATCH_REQUEST_BYTES)
ADMIN_DO: Final = Method("geokv.v1.Admin", "Do", Kind.UNARY, Caller.OPERATOR, 1 * MIB)
ADMIN_RING: Final = Method("geokv.v1.Admin", "Ring", Kind.UNARY, Caller.CLIENT, 4 * KIB)
ADMIN_FETCH: Final = Method("geokv.v1.Admin", "Fetch", Kind.UNARY, Caller.OPERATOR, 4 * KIB)
PEER_REPLICATION: Final = Method("geokv.v1.Peer", "Replication", Kind.BIDI, Caller.NODE, MESSAGE_BYTES_MAX)
PEER_BULK: Final = Method("geokv.v1.Peer", "Bulk", Kind.BIDI, Caller.NODE, MESSAGE_BYTES_MAX)
HEALTH_CHECK: Final = Method("grpc.health.v1.Health", "Check", Kind.UNARY, Caller.ANYBODY, 4 * KIB)
HEALTH_WATCH: Final = Method("grpc.health.v1.Health", "Watch", Kind.STREAM_OUT, Caller.ANYBODY, 4 * KIB)

METHODS: Final = (
    KV_WRITE,
    KV_READ,
    ADMIN_DO,
    ADMIN_RING,
    ADMIN_FETCH,
    PEER_REPLICATION,
    PEER_BULK,
    HEALTH_CHECK,
    HEALTH_WATCH,
)

_MAKE: Final = {
    Kind.UNARY: grpc.unary_unary_rpc_method_handler,
    Kind.STREAM_OUT: grpc.unary_stream_rpc_method_handler,
    Kind.BIDI: grpc.stream_stream_rpc_method_handler,
}


def generic_handlers(
    implementations: Mapping[str, Handler], table: tuple[Method, ...] = METHODS
) -> list[grpc.GenericRpcHandler]:
    """What a gRPC server is given: every method of `table` with its implementation, by path. Raises ConfigurationError."""
    known = {method.path for method in table}
    if strangers := implementations.keys() - known:
        raise ConfigurationError(f"not in the table of methods: {', '.join(sorted(strangers))}")
    if missing := known - implementations.keys():
        raise ConfigurationError(f"methods without an implementation: {', '.join(sorted(missing))}")
    services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method in table:
        handler: grpc.RpcMethodHandler[Any, Any] = _MAKE[method.kind](implementations[method.path])
        services.setdefault(method.service, {})[method.name] = handler
    return [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]
