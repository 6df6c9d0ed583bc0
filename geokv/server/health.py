"""The standard gRPC health service: SERVING while the node takes calls, for the server as a whole and for each service.

Not the library's own servicer: that one writes to every watcher under one lock, so a watcher that does not read would keep
the status from changing, and it wants parsed messages, while our methods take bytes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from geokv.runtime import methods

# "" is the server as a whole, by the standard.
SERVICES: Final = frozenset({"", methods.KV_WRITE.service, methods.ADMIN_DO.service})
Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """One status for all services. Used on the loop's thread only."""

    def __init__(self) -> None:
        self._is_serving = False
        self._changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set_serving(self, is_serving: bool) -> None:
        if is_serving != self._is_serving:
            self._is_serving = is_serving
            self._changed.set_result(None)
            self._changed = asyncio.get_running_loop().create_future()

    async def check(self, payload: bytes, context: Context) -> bytes:
        service = await self._service(payload, context)
        if service not in SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f'no service "{service}" here')
        return self._status(service)

    async def watch(self, payload: bytes, context: Context) -> None:
        """Status now, then each change. An unknown service is SERVICE_UNKNOWN, by the standard, not an error."""
        service = await self._service(payload, context)
        told = b""
        while True:
            changed = self._changed
            status = self._status(service)
            if status != told:
                await context.write(status)
                told = status
            await asyncio.shield(changed)

    async def _service(self, payload: bytes, context: Context) -> str:
        try:
            return str(health_pb2.HealthCheckRequest.FromString(payload).service)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "these bytes are no HealthCheckRequest")
            raise

    def _status(self, service: str) -> bytes:
        statuses = health_pb2.HealthCheckResponse
        if service not in SERVICES:
            status = statuses.SERVICE_UNKNOWN
        else:
            status = statuses.SERVING if self._is_serving else statuses.NOT_SERVING
        return bytes(statuses(status=status).SerializeToString())
