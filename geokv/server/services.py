"""What the server offers, wired: every method of the table with its handler, on one gRPC server.

Kv and Admin.Do are the runtime's (rpc.py), streams of peers go to the host; the ring, pieces of snapshots and health are
answered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio

from geokv.core.topology import Topology
from geokv.errors import GeokvError, InvalidRequest, StorageError, Unavailable, WireError
from geokv.protocol.requests import AdminReply, AdminRequest, Outcome
from geokv.runtime import methods
from geokv.runtime.channel import SERVER_OPTIONS
from geokv.runtime.counters import Counters
from geokv.runtime.host import Host
from geokv.runtime.routes import Purpose
from geokv.runtime.rpc import NOT_BEGUN, Calls
from geokv.runtime.wire import kv
from geokv.server.health import Health
from geokv.server.keys import KeyKeeper
from geokv.server.ring import ring_seen, ring_version, viewpoint_of

FETCHES_MAX: Final = 8
VIEWPOINT_KEY = "geokv-dc"  # call metadata: the client's datacenter
Context = grpc.aio.ServicerContext[Any, Any]


class RingService:
    """Answers Admin.Ring. The replies are made once per viewpoint: the topology does not change while the node runs.

    A node that drains or recovers does not answer: clients ask this to learn whether a node takes calls again.
    """

    def __init__(self, host: Host, topology: Topology, node: str) -> None:
        self._host = host
        self._topology = topology
        self._replies = {
            viewpoint: kv.encode_ring_reply(ring_seen(topology, node, viewpoint)) for viewpoint in topology.viewpoints()
        }

    async def ring(self, payload: bytes, context: Context) -> bytes:
        if not self._host.takes_calls:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._host.why_not_serving, ((NOT_BEGUN, "1"),))
        try:
            asked = kv.decode_ring_request(payload) or _viewpoint_in(context)
            return self._replies[viewpoint_of(self._topology, asked)]
        except (WireError, InvalidRequest) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise


def _viewpoint_in(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == VIEWPOINT_KEY:
            return value if isinstance(value, str) else ""
    return ""


class SnapshotService:
    """Answers Admin.Fetch: snapshots leave the node in pieces that the caller asks for. At most FETCHES_MAX at once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._reading = 0

    async def fetch(self, payload: bytes, context: Context) -> bytes:
        if self._reading >= FETCHES_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{FETCHES_MAX} pieces of snapshots are being read here")
        self._reading += 1
        try:
            content = await self._host.read_snapshot(*kv.decode_fetch_request(payload))
        except (WireError, InvalidRequest) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except StorageError as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        finally:
            self._reading -= 1
        return kv.encode_fetch_reply(content)


class KeyService:
    """Answers the verb `keys`: which key is needed by how many files; with `rotate`, after they were read anew."""

    def __init__(self, host: Host, keeper: KeyKeeper) -> None:
        self._host = host
        self._keeper = keeper

    async def keys(self, request: AdminRequest) -> AdminReply:
        is_rotation = bool(request.arguments.get("rotate"))
        try:
            found = await asyncio.to_thread(self._keeper.rotate if is_rotation else self._keeper.report)
        except GeokvError as error:
            return AdminReply(Outcome.INVALID, {}, str(error))
        if is_rotation:
            self._host.keys_rotated()
        return AdminReply(Outcome.APPLIED, found)


class PeerService:
    """Hands peers' streams to the host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    async def replication(self, _: object, context: Context) -> None:
        await self._host.accept(Purpose.REPLICATION, context)

    async def bulk(self, _: object, context: Context) -> None:
        await self._host.accept(Purpose.BULK, context)


def implementations(
    host: Host, counters: Counters, topology: Topology, node: str, health: Health, keeper: KeyKeeper
) -> Mapping[str, methods.Handler]:
    """Path to handler, for the table of methods."""
    calls = Calls(host, counters, ring_version(topology), {"keys": KeyService(host, keeper).keys})
    peers = PeerService(host)
    return {
        methods.KV_WRITE.path: calls.write,
        methods.KV_READ.path: calls.read,
        methods.ADMIN_DO.path: calls.do,
        methods.ADMIN_RING.path: RingService(host, topology, node).ring,
        methods.ADMIN_FETCH.path: SnapshotService(host).fetch,
        methods.PEER_REPLICATION.path: peers.replication,
        methods.PEER_BULK.path: peers.bulk,
        methods.HEALTH_CHECK.path: health.check,
        methods.HEALTH_WATCH.path: health.watch,
    }


def make_server(handlers: Mapping[str, methods.Handler]) -> grpc.aio.Server:
    """A server that offers exactly the table of methods. Raises ConfigurationError where they differ."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(tuple(methods.generic_handlers(handlers)))
    return server
