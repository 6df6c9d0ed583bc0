"""A request's method and bytes, a reply's value, and what a gRPC status means for the machine.

The one hard question is whether a write may have happened when its call failed. Ours says `geokv-not-begun` in the
trailing metadata where a server turned the call away. Where no connection could be made gRPC says so only in words,
which differ by version; any other words mean that nobody knows.
"""

from __future__ import annotations

import json
from typing import Final

import grpc
import grpc.aio

from geokv.errors import InvalidRequest, WireError
from geokv.protocol.client.messages import CallFailed, CallReturned, Failure, RingAsk, RingMember, RingTold
from geokv.protocol.requests import AdminRequest, ReadBatch, Request, WriteBatch
from geokv.runtime.methods import ADMIN_DO, ADMIN_RING, KV_READ, KV_WRITE, Method
from geokv.runtime.wire import kv

NOT_BEGUN: Final = "geokv-not-begun"
RETRY_AFTER_MS: Final = "geokv-retry-after-ms"
METHODS: Final = (KV_WRITE, KV_READ, ADMIN_DO, ADMIN_RING)
_NO_CONNECTION: Final = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "DNS resolution failed",
    "Domain name not found",
    "empty address list",
)
_REFUSED: Final = "Connection refused"


def encode(request: Request | RingAsk) -> tuple[Method, bytes]:
    """Raises InvalidRequest where a value in the request has no form on the wire: nothing was sent then."""
    try:
        return _encode(request)
    except (ValueError, TypeError, RecursionError) as error:  # of protobuf, or of json
        raise InvalidRequest(f"the request cannot be written{_culprit(request)}: {error}; nothing was sent") from error


def _culprit(request: Request | RingAsk) -> str:
    """The argument that JSON cannot carry, to be named in an error."""
    for name, value in request.arguments.items() if isinstance(request, AdminRequest) else ():
        try:
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            return f" with {name} = {str(value)[:80]}"
    return ""


def _encode(request: Request | RingAsk) -> tuple[Method, bytes]:
    if request.__class__ is WriteBatch:
        return KV_WRITE, kv.encode_write_request(request)
    if isinstance(request, ReadBatch):
        return KV_READ, kv.encode_read_request(request)
    if isinstance(request, AdminRequest):
        return ADMIN_DO, kv.encode_admin_request(request)
    assert isinstance(request, RingAsk)
    return ADMIN_RING, kv.encode_ring_request(request.viewpoint)


def decode(call: int, method: Method, payload: bytes) -> CallReturned | CallFailed:
    """The event for an answer's bytes; a failure where they make no sense."""
    try:
        if method is KV_WRITE:
            return CallReturned(call, *kv.decode_write_reply(payload))
        if method is KV_READ:
            return CallReturned(call, *kv.decode_read_reply(payload))
        if method is ADMIN_DO:
            return CallReturned(call, kv.decode_admin_reply(payload))
        return CallReturned(call, _ring(kv.decode_ring_reply(payload)))
    except WireError as error:
        return CallFailed(call, Failure.MALFORMED, f"an answer that makes no sense: {error}")


def _ring(seen: kv.RingSeen) -> RingTold:
    members = [RingMember(node.name, node.dc, node.rack, node.weight, node.address) for node in seen.nodes]
    return RingTold(seen.cluster, seen.partitions, seen.version, members, seen.replicas, seen.answered_by)


def failure_of(call: int, error: grpc.aio.AioRpcError) -> CallFailed:
    """What a failed call means: whether anything can have happened, and when to come back."""
    code, text = error.code(), error.details() or ""
    # Pair by pair: the Metadata of older versions is no mapping, and dict() takes it for one.
    trailing = {key: value for key, value in error.trailing_metadata() or ()}  # noqa: C416
    retry_after_ms = _milliseconds(trailing.get(RETRY_AFTER_MS))
    return CallFailed(call, _failure(code, text, NOT_BEGUN in trailing), _describe(code, text), retry_after_ms)


def _failure(code: grpc.StatusCode, text: str, is_not_begun: bool) -> Failure:
    status = grpc.StatusCode
    if code is status.RESOURCE_EXHAUSTED:
        return Failure.OVERLOADED if is_not_begun else Failure.FAILED
    if code in (status.INVALID_ARGUMENT, status.UNIMPLEMENTED, status.PERMISSION_DENIED, status.UNAUTHENTICATED):
        return Failure.REJECTED
    if code is status.DEADLINE_EXCEEDED:
        return Failure.TIMEOUT
    if code is status.UNAVAILABLE:
        if is_not_begun:
            return Failure.NOT_READY
        if any(words in text for words in _NO_CONNECTION):
            return Failure.REFUSED if _REFUSED in text else Failure.NOT_SENT
        return Failure.BROKEN
    return Failure.NOT_READY if is_not_begun else Failure.FAILED


def _describe(code: grpc.StatusCode, text: str) -> str:
    if _REFUSED in text:
        return "connection refused"
    return f"{code.name.lower().replace('_', ' ')}: {text[:300]}" if text else code.name.lower().replace("_", " ")


def _milliseconds(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() and len(text) < 10 else 0
