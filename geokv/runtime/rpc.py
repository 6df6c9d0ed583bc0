"""The unary calls of clients: bytes in, a batch through the node, bytes out.

    parse (here, not in gRPC) -> ask the host -> wait for the answer -> encode

Per-operation problems are in the reply. A call as a whole fails only where it never began: malformed bytes, an overloaded
or absent node. Those carry `geokv-not-begun: 1` in the trailing metadata, so that a client can tell them from a
connection that broke, after which nobody knows: only the former may be repeated blindly.

Invariants: whatever the bytes are, the status is ours, never UNKNOWN with the name of a Python class. Requests in progress
are bounded in number (the host) and bytes (here).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

import grpc
import grpc.aio

from geokv.core.limits import CALL_BYTES_MAX
from geokv.errors import Overloaded, Unavailable, WireError
from geokv.protocol.requests import (
    AdminReply,
    AdminRequest,
    Outcome,
    ReadBatch,
    ReadReply,
    WriteBatch,
    WriteReply,
)
from geokv.runtime.counters import Counters
from geokv.runtime.host import RETRY_AFTER_S, Host
from geokv.runtime.methods import ADMIN_DO, KV_READ, KV_WRITE, Method
from geokv.runtime.wire import kv

NOT_BEGUN: Final = "geokv-not-begun"
RETRY_AFTER_MS: Final = "geokv-retry-after-ms"

Context = grpc.aio.ServicerContext[Any, Any]
Own = Callable[[AdminRequest], Awaitable[AdminReply]]
_RequestT = TypeVar("_RequestT", WriteBatch, ReadBatch, AdminRequest)


class Calls:
    """The handlers of Kv and Admin.Do."""

    def __init__(self, host: Host, counters: Counters, ring_version: int, own: Mapping[str, Own] | None = None) -> None:
        """`own`: verbs of administration that the server answers by itself, past the node."""
        self._host = host
        self._own = own or {}
        self._counters = counters
        self._ring_version = ring_version
        self._bytes = 0

    async def write(self, payload: bytes, context: Context) -> bytes:
        try:
            _check_size(KV_WRITE, payload)
            batch = kv.decode_write_request(payload)
        except WireError as error:
            await self._refuse_malformed(context, error)
        self._counters.add("calls.write")
        reply = await self._ask(batch, len(payload), context)
        if not isinstance(reply, WriteReply):
            raise TypeError(f"a write was answered with {type(reply).__name__}")
        return kv.encode_write_reply(reply, self._ring_version)

    async def read(self, payload: bytes, context: Context) -> bytes:
        try:
            _check_size(KV_READ, payload)
            batch = kv.decode_read_request(payload)
        except WireError as error:
            await self._refuse_malformed(context, error)
        self._counters.add("calls.read")
        reply = await self._ask(batch, len(payload), context)
        if not isinstance(reply, ReadReply):
            raise TypeError(f"a read was answered with {type(reply).__name__}")
        return kv.encode_read_reply(reply, self._ring_version)

    async def do(self, payload: bytes, context: Context) -> bytes:
        try:
            _check_size(ADMIN_DO, payload)
            request = kv.decode_admin_request(payload)
        except WireError as error:
            await self._refuse_malformed(context, error)
        self._counters.add("calls.admin")
        if request.verb in self._own:
            return kv.encode_admin_reply(await self._own[request.verb](request))
        reply = await self._ask(request, len(payload), context)
        if not isinstance(reply, AdminReply):
            raise TypeError(f"an admin request was answered with {type(reply).__name__}")
        if request.verb == "metrics" and reply.outcome is Outcome.APPLIED:
            reply = AdminReply(reply.outcome, dict(self._host.metrics()))  # the machine's are among them
        return kv.encode_admin_reply(reply)

    async def _ask(self, request: _RequestT, size: int, context: Context) -> object:
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            request.timeout_ms = max(1, min(request.timeout_ms, int(remaining_s * 1e3)))
        try:
            self._reserve(size)
            call, answer = self._host.ask(request)
        except Unavailable as error:
            await self._refuse(context, grpc.StatusCode.UNAVAILABLE, str(error), RETRY_AFTER_S)
        except Overloaded as error:
            await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), error.retry_after)
        self._bytes += size
        try:
            return await answer
        except asyncio.CancelledError:
            self._host.call_gone(call)
            raise
        finally:
            self._bytes -= size

    def _reserve(self, size: int) -> None:
        if self._bytes + size > CALL_BYTES_MAX:
            self._counters.add("calls.refused_bytes")
            raise Overloaded(f"{self._bytes} bytes of requests are in progress here", retry_after=RETRY_AFTER_S)

    async def _refuse_malformed(self, context: Context, error: WireError) -> NoReturn:
        self._counters.add("calls.malformed")
        await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def _refuse(self, context: Context, code: grpc.StatusCode, text: str, retry_after_s: float | None = None) -> NoReturn:
        trailing = [(NOT_BEGUN, "1")]
        if retry_after_s is not None:
            trailing.append((RETRY_AFTER_MS, str(int(retry_after_s * 1e3))))
        await context.abort(code, text, tuple(trailing))
        raise AssertionError("abort always raises")


def _check_size(method: Method, payload: bytes) -> None:
    if len(payload) > method.request_bytes_max:
        raise WireError(f"{len(payload)} bytes in one request of {method.path}: at most {method.request_bytes_max}")
